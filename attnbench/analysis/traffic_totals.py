"""Attention seconds of a trace from measured steps: of every backend, and of three ways to choose one.

The time of a step is the geometric mean of its rounds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec
import numpy as np

from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic import Draw, Integers
from attnbench.analysis.traffic_interval import interval, logarithms, mean, missing
from attnbench.suite.serving.simulation import KINDS, StepKind

ALL_STEPS, DECODE, PREFILL = "all steps", "decode", "prefill and mixed"  # the steps that share a backend
NO_ROUNDS = "fewer than two rounds"  # a choice needs one round, its score another


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Paired rounds of the drawn steps."""

    backends: tuple[str, ...]
    kinds: Integers  # of the drawn steps, places in KINDS
    times_s: Floats  # [drawn steps, backends, rounds]; NaN: no reading
    refusals: Mapping[tuple[int, str], str] = {}  # by place in the draw and backend: why it has no time
    plan_s: Floats | None = None  # [drawn steps, backends], of all layers, within the times; 0: it plans nothing
    layers: int = 1  # of the model

    def of(self, backend: str) -> Floats:
        """Seconds with one backend, [drawn steps, rounds]."""
        times_s: Floats = self.times_s[:, self.backends.index(backend)]
        return times_s

    def at(self, places: Integers) -> "Measured":
        """These of the drawn steps alone."""
        new = {int(place): number for number, place in enumerate(places)}
        return msgspec.structs.replace(
            self, kinds=self.kinds[places], times_s=self.times_s[places],
            refusals={(new[place], name): text for (place, name), text in self.refusals.items() if place in new},
            plan_s=None if self.plan_s is None else self.plan_s[places],
        )  # fmt: skip


class PolicyName(StrEnum):
    """How often a backend is chosen."""

    SINGLE = "one backend"
    PHASE = "one per phase"
    STEP = "one per step"


class PolicyChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that a policy uses, chosen with all rounds."""

    scope: str  # ALL_STEPS, DECODE or PREFILL
    backend: str
    steps: int  # drawn steps for which it is used
    share: float  # of the policy's seconds
    agreed: float  # of these seconds: both halves of the rounds choose this backend too


class Exclusion(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that a policy cannot use, since it has no time for some drawn steps."""

    backend: str
    scope: str
    steps: int  # without a time
    of: int  # drawn steps of the scope
    reasons: tuple[str, ...]  # the most frequent first


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A way to choose: on one half of the rounds, scored on the other, and the reverse."""

    name: PolicyName
    choices: tuple[PolicyChoice, ...] = ()
    seconds: Estimate | None = None  # of the trace; None: some step has no backend
    regret: Estimate | None = None  # seconds over those of one per step, minus 1; at least 0
    over_phase: Estimate | None = None  # of one backend: its seconds over those of one per phase, minus 1
    excluded: tuple[Exclusion, ...] = ()
    halves: tuple[str, ...] = ()  # what each half of the rounds chooses, where they differ; not of one per step

    @property
    def words(self) -> str:
        """`flex`, `flex for decode and naive for prefill and mixed`, `flex or naive`."""
        return _in_words({choice.backend: choice.scope for choice in self.choices})

    @property
    def scored(self) -> str:
        """Why its seconds are not those of its choices; empty where they are."""
        if not self.halves:
            return ""
        return (
            f"its seconds are of {self.halves[0]} in half of the rounds and of {self.halves[1]} in the others, as the "
            "other half chose"
        )


def _in_words(scopes: Mapping[str, str]) -> str:
    """Backends with the scopes that they are used for."""
    if len(set(scopes.values())) > 1:
        return " and ".join(f"{backend} for {scope}" for backend, scope in scopes.items())
    return " or ".join(scopes)


class BackendTotal(msgspec.Struct, frozen=True, kw_only=True):
    """One backend for all steps."""

    backend: str
    seconds: Estimate  # of the trace
    over_fastest: Estimate | None = None  # its seconds over those of the fastest; None: it is the fastest
    planning: float = 0.0  # share of its seconds in which batches are planned
    plan_layer_s: float = 0.0  # planning of a step for each layer, mean over the steps of the trace


class TrafficTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Attention time of a trace, all layers together."""

    hours: float  # simulated
    drawn: int  # steps measured
    missing: int = 0  # steps to draw beside these until there are intervals
    totals: tuple[BackendTotal, ...]  # of backends with a time for every drawn step; the fastest first
    policies: tuple[Policy, ...]

    def policy(self, name: PolicyName) -> Policy:
        return next(policy for policy in self.policies if policy.name is name)

    def per_hour(self, seconds: Estimate) -> Estimate:
        """Attention seconds per hour of traffic."""
        low, high = (None if end is None else end / self.hours for end in (seconds.low, seconds.high))
        return msgspec.structs.replace(seconds, value=seconds.value / self.hours, low=low, high=high)


class _Series(msgspec.Struct, frozen=True):
    """What is summed over steps: a backend, or a policy."""

    logs: Floats  # [drawn steps, rounds], of seconds
    seconds: Floats  # [drawn steps], of the trace: those of a step times its weight

    @property
    def total(self) -> float:
        return float(self.seconds.sum())

    @property
    def shares(self) -> Floats:
        shares: Floats = self.seconds / self.total
        return shares


class _Scopes(msgspec.Struct, frozen=True):
    """The drawn steps that share a backend."""

    groups: Integers  # [drawn steps]
    names: tuple[str, ...]  # of the groups


class _Weighted(msgspec.Struct, frozen=True):
    """Seconds of the trace, [drawn steps, backends]; infinite where a half of the rounds has no time."""

    all_rounds: Floats
    even_rounds: Floats
    odd_rounds: Floats


def estimate(drawn: Draw, measured: Measured, hours: float) -> TrafficTotals:
    """Totals, their paired ratios, and the three policies; raises ValueError where a drawn step has no row of times."""
    if measured.times_s.shape[:2] != (len(drawn.steps), len(measured.backends)):
        raise ValueError(f"times of {len(drawn.steps)} steps and {len(measured.backends)} backends are needed")
    logs = logarithms(measured.times_s)
    series = {
        name: _series(drawn, logs[:, place])
        for place, name in enumerate(measured.backends)
        if np.isfinite(logs[:, place]).any(axis=1).all()
    }
    ordered = sorted(series, key=lambda name: series[name].total)
    totals = tuple(
        BackendTotal(
            backend=name,
            seconds=_total(drawn, series[name]),
            over_fastest=_ratio(drawn, series[name], series[ordered[0]]) if name != ordered[0] else None,
            **_planning(drawn, measured, name, series[name].total),
        )
        for name in ordered
    )
    return TrafficTotals(
        hours=hours,
        drawn=len(drawn.steps),
        missing=missing(drawn),
        totals=totals,
        policies=tuple(_policies(drawn, measured, logs)),
    )


def _planning(drawn: Draw, measured: Measured, backend: str, total_s: float) -> dict[str, float]:
    """The fields of a BackendTotal that say what planning takes."""
    if measured.plan_s is None:
        return {}
    weighted_s = float(drawn.weights @ measured.plan_s[:, measured.backends.index(backend)])
    return {
        "planning": weighted_s / total_s, "plan_layer_s": weighted_s / float(drawn.weights.sum()) / measured.layers,
    }  # fmt: skip


def _series(drawn: Draw, logs: Floats) -> _Series:
    return _Series(logs, drawn.weights * np.exp(mean(logs)))


def _total(drawn: Draw, series: _Series) -> Estimate:
    influences = series.shares
    return interval(drawn, series.total, influences, influences[:, None] * series.logs)


def _ratio(drawn: Draw, above: _Series, below: _Series, unseen: float = 0.0) -> Estimate:
    """The ratio of two totals, paired by step and by round."""
    noise = above.shares[:, None] * above.logs - below.shares[:, None] * below.logs
    return interval(drawn, above.total / below.total, above.shares - below.shares, noise, unseen)


def _policies(drawn: Draw, measured: Measured, logs: Floats) -> Iterator[Policy]:
    weighted = _weighted(drawn, logs)
    scopes = _scopes(measured.kinds)
    scored = {name: _scored(drawn, logs, weighted, scopes[name]) for name in PolicyName}
    best, by_phase = _best(drawn, logs, weighted, scored[PolicyName.STEP]), scored[PolicyName.PHASE]
    for name, series in scored.items():
        per_step, single = name is PolicyName.STEP, name is PolicyName.SINGLE
        excluded = () if per_step else tuple(_excluded(measured, weighted.all_rounds, scopes[name]))
        if series is None:
            yield Policy(name=name, excluded=excluded)
            continue
        yield Policy(
            name=name, choices=tuple(_choices(measured, weighted, scopes[name])),
            seconds=best.seconds(drawn) if best and per_step else _total(drawn, series),
            regret=None if best is None or per_step else best.regret(drawn, series),
            over_phase=_excess(_ratio(drawn, series, by_phase)) if single and by_phase else None, excluded=excluded,
            halves=() if per_step else _halves(measured, weighted, scopes[name]),
        )  # fmt: skip


def _excess(ratio: Estimate) -> Estimate:
    low, high = (None if end is None else end - 1 for end in (ratio.low, ratio.high))
    return msgspec.structs.replace(ratio, value=ratio.value - 1, low=low, high=high)


class _Best(msgspec.Struct, frozen=True):
    """The best backend of each step: its time is between what `other_half` and `same_rounds` score."""

    other_half: _Series  # chosen on the other half of the rounds: noise makes it too slow
    same_rounds: _Series  # chosen on the rounds that score it: noise makes it too fast
    margin: float  # median over drawn steps, of the logarithm of the second fastest time over the fastest

    def seconds(self, drawn: Draw) -> Estimate:
        """Of the trace."""
        slow, fast = (_total(drawn, series) for series in (self.other_half, self.same_rounds))
        return msgspec.structs.replace(slow, low=fast.low)

    def regret(self, drawn: Draw, series: _Series) -> Estimate:
        """Of a policy, at least 0; in steps that were not drawn it may be as high as the margin of the best backend."""
        shares = self.same_rounds.shares[drawn.certain :]
        unseen = self.margin * float(shares.max()) if len(shares) else 0.0
        least = _excess(_ratio(drawn, series, self.other_half))
        most = _excess(_ratio(drawn, series, self.same_rounds, unseen))
        low = None if least.low is None else max(least.low, 0.0)
        high = None if most.high is None else max(most.high, 0.0)
        return msgspec.structs.replace(least, value=max(least.value, 0.0), low=low, high=high)


def _best(drawn: Draw, logs: Floats, weighted: _Weighted, other_half: _Series | None) -> _Best | None:
    chosen = choose(weighted.all_rounds, np.arange(len(logs)))
    if other_half is None or chosen is None:
        return None
    fastest = np.sort(np.log(weighted.all_rounds), axis=1)[:, :2]
    margins = np.diff(fastest[np.isfinite(fastest).all(axis=1)], axis=1)
    return _Best(
        other_half,
        _series(drawn, logs[np.arange(len(logs)), chosen]),
        float(np.median(margins)) if margins.size else 0.0,
    )


def _scopes(kinds: Integers) -> dict[PolicyName, _Scopes]:
    numbers, phase = np.arange(len(kinds)), (kinds != KINDS.index(StepKind.DECODE)).astype(int)
    return {
        PolicyName.SINGLE: _Scopes(0 * numbers, (ALL_STEPS,)),
        PolicyName.PHASE: _Scopes(phase, (DECODE, PREFILL)),
        PolicyName.STEP: _Scopes(numbers, (ALL_STEPS,) * len(kinds)),
    }


def _weighted(drawn: Draw, logs: Floats) -> _Weighted:
    halves = mean(logs[:, :, ::2]), mean(logs[:, :, 1::2])
    usable = np.isfinite(halves[0]) & np.isfinite(halves[1])
    seconds = (
        np.where(usable, np.exp(means), np.inf) * drawn.weights[:, None] for means in (mean(logs), *halves)
    )  # fmt: skip
    return _Weighted(*seconds)


def choose(weighted_s: Floats, groups: Integers) -> Integers | None:
    """The place of the backend with the fewest seconds in each group, by drawn step; None: a group has none.

    weighted_s: [drawn steps, backends], infinite where a backend cannot be used; groups: [drawn steps], from 0.
    """
    seconds = np.zeros((int(groups.max()) + 1, weighted_s.shape[1]))
    np.add.at(seconds, groups, weighted_s)
    return None if np.isinf(seconds.min(axis=1, initial=np.inf)).any() else seconds.argmin(axis=1)[groups]


def _scored(drawn: Draw, logs: Floats, weighted: _Weighted, scopes: _Scopes) -> _Series | None:
    """The policy's times: in each round those of the backends that the other half of the rounds chose."""
    scored = np.empty((logs.shape[0], logs.shape[2]))
    for first, other_half in enumerate((weighted.odd_rounds, weighted.even_rounds)):
        chosen = choose(other_half, scopes.groups)
        if chosen is None:
            return None
        scored[:, first::2] = logs[np.arange(len(logs)), chosen, first::2]
    return _series(drawn, scored)


def _choices(measured: Measured, weighted: _Weighted, scopes: _Scopes) -> Iterator[PolicyChoice]:
    chosen = choose(weighted.all_rounds, scopes.groups)
    assert chosen is not None  # else the policy has no score
    halves = [choose(seconds, scopes.groups) for seconds in (weighted.even_rounds, weighted.odd_rounds)]
    agreed = np.all([half == chosen for half in halves], axis=0)
    seconds = weighted.all_rounds[np.arange(len(chosen)), chosen]
    names = np.array(scopes.names)[scopes.groups]
    for name in dict.fromkeys(scopes.names):
        for place in np.unique(chosen[names == name]):
            mine = (names == name) & (chosen == place)
            of_choice = float(seconds[mine].sum())
            yield PolicyChoice(
                scope=name, backend=measured.backends[place], steps=int(mine.sum()),
                share=of_choice / float(seconds.sum()), agreed=float(seconds[mine & agreed].sum()) / of_choice,
            )  # fmt: skip


def _halves(measured: Measured, weighted: _Weighted, scopes: _Scopes) -> tuple[str, ...]:
    """The backends that even rounds are scored with, which odd ones chose, and the reverse; empty if they are equal."""
    halves = []
    for seconds in (weighted.odd_rounds, weighted.even_rounds):
        chosen = choose(seconds, scopes.groups)
        assert chosen is not None  # else the policy has no score
        pairs = dict.fromkeys(zip(chosen.tolist(), scopes.groups.tolist(), strict=True))
        halves.append(_in_words({measured.backends[place]: scopes.names[group] for place, group in pairs}))
    return () if halves[0] == halves[1] else tuple(halves)


def _excluded(measured: Measured, weighted_s: Floats, scopes: _Scopes) -> Iterator[Exclusion]:
    for group, scope in enumerate(scopes.names):
        inside = np.flatnonzero(scopes.groups == group)
        for place, backend in enumerate(measured.backends):
            missing = inside[np.isinf(weighted_s[inside, place])]
            if len(missing):
                reasons = Counter(measured.refusals.get((int(step), backend), NO_ROUNDS) for step in missing)
                yield Exclusion(
                    backend=backend, scope=scope, steps=len(missing), of=len(inside),
                    reasons=tuple(reason for reason, _ in reasons.most_common()),
                )  # fmt: skip
