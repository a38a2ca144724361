"""Attention seconds of a trace from measured steps: of every backend, and of three ways to choose one.

The time of a step is the geometric mean of its rounds. Intervals are on logarithms of totals and of their ratios. The
variance between drawn steps is that of successive differences (Wolter, Introduction to Variance Estimation, 2007,
chapter 8), in a circle, so that every step counts twice: neighbours in the order of drawing are alike, and the noise of
their rounds is within their difference.
Certain steps add the variance of their rounds. Degrees of freedom are Satterthwaite's
(https://doi.org/10.2307/3002019): few where a few steps dominate, so that heavy tails widen the interval.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec
import numpy as np

from attnbench.analysis import stats
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Estimate, Method, Over
from attnbench.analysis.traffic import Draw, Integers
from attnbench.suite.serving.simulation import KINDS, StepKind

ALL_STEPS, DECODE, PREFILL = "all steps", "decode", "prefill and mixed"  # the steps that share a backend
NO_ROUNDS = "fewer than two rounds"  # a choice needs one round, its score another


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Paired rounds of the drawn steps."""

    backends: tuple[str, ...]
    kinds: Integers  # of the drawn steps, places in KINDS
    times_s: Floats  # [drawn steps, backends, rounds]; NaN: no reading
    refusals: Mapping[tuple[int, str], str] = {}  # by place in the draw and backend: why it has no time


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
    regret: Estimate | None = None  # seconds over those of one per step, minus 1; below 0 only by noise of the rounds
    over_phase: Estimate | None = None  # of one backend: its seconds over those of one per phase, minus 1
    excluded: tuple[Exclusion, ...] = ()

    @property
    def words(self) -> str:
        """`flex`, `flex for decode and naive for prefill and mixed`, `flex or naive`."""
        names = list(dict.fromkeys(choice.backend for choice in self.choices))
        if self.name is PolicyName.PHASE and len(names) > 1:
            return " and ".join(f"{choice.backend} for {choice.scope}" for choice in self.choices)
        return " or ".join(names)


class BackendTotal(msgspec.Struct, frozen=True, kw_only=True):
    """One backend for all steps."""

    backend: str
    seconds: Estimate  # of the trace
    over_fastest: Estimate | None = None  # its seconds over those of the fastest; None: it is the fastest


class TrafficTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Attention time of a trace, all layers together."""

    hours: float  # simulated
    drawn: int  # steps measured
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
    logs = _logs(measured)
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
        )
        for name in ordered
    )
    return TrafficTotals(
        hours=hours, drawn=len(drawn.steps), totals=totals, policies=tuple(_policies(drawn, measured, logs))
    )


def step_seconds(measured: Measured, backend: str) -> Floats:
    """Seconds of each drawn step with one backend; NaN where it has no time."""
    seconds: Floats = np.exp(_mean(_logs(measured)[:, measured.backends.index(backend)]))
    return seconds


def _logs(measured: Measured) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):  # an impossible time counts as no reading
        logs: Floats = np.log(measured.times_s)
    return logs


def _series(drawn: Draw, logs: Floats) -> _Series:
    return _Series(logs, drawn.weights * np.exp(_mean(logs)))


def _mean(logs: Floats) -> Floats:
    """Over the last axis, of finite values; NaN where there is none."""
    counts = np.isfinite(logs).sum(axis=-1)
    sums = np.where(np.isfinite(logs), logs, 0.0).sum(axis=-1)
    means: Floats = np.where(counts, sums, np.nan) / np.maximum(counts, 1)
    return means


def _total(drawn: Draw, series: _Series) -> Estimate:
    influences = series.shares
    return _interval(drawn, series.total, influences, influences[:, None] * series.logs)


def _ratio(drawn: Draw, above: _Series, below: _Series) -> Estimate:
    """The ratio of two totals, paired by step and by round."""
    noise = above.shares[:, None] * above.logs - below.shares[:, None] * below.logs
    return _interval(drawn, above.total / below.total, above.shares - below.shares, noise)


def _interval(drawn: Draw, value: float, influences: Floats, noise: Floats) -> Estimate:
    """The t interval of log(value), exponentiated.

    influences: [drawn steps], relative change of the value with a step; noise: [drawn steps, rounds], by round.
    """
    log = Estimate(value=float(np.log(value)), over=Over.STEPS, count=len(influences))
    spread = _spread(drawn, influences, noise)
    if spread is None:
        return stats.exponential(log)
    variance, freedom = spread
    half = stats.t_quantile(freedom) * float(np.sqrt(variance))
    ends = {"low": log.value - half, "high": log.value + half}
    return stats.exponential(msgspec.structs.replace(log, **ends, method=Method.T, confidence=stats.CONFIDENCE))


def _spread(drawn: Draw, influences: Floats, noise: Floats) -> tuple[float, float] | None:
    """The variance and its degrees of freedom; None where one drawn step or one round gives none."""
    sampled, certain = influences[drawn.certain :], noise[: drawn.certain]
    rounds = np.isfinite(certain).sum(axis=1)
    if len(sampled) == 1 or (rounds < 2).any():
        return None
    of_rounds = np.nanvar(certain, axis=1, ddof=1) / rounds if drawn.certain else np.empty(0)
    squares = (sampled - np.roll(sampled, 1)) ** 2
    between = float(squares.sum()) / 2
    variance = between + float(of_rounds.sum())
    if not variance:
        return 0.0, 1.0
    doubt = float((of_rounds**2 / (rounds - 1)).sum())
    if between:
        freedom = min(float(squares.sum()) ** 2 / float((squares**2).sum()), len(sampled) - 1)
        doubt += between**2 / freedom
    return variance, max(variance**2 / doubt, 1.0)


def _policies(drawn: Draw, measured: Measured, logs: Floats) -> Iterator[Policy]:
    weighted = _weighted(drawn, logs)
    scopes = _scopes(measured.kinds)
    scored = {name: _scored(drawn, logs, weighted, scopes[name]) for name in PolicyName}
    best, by_phase = scored[PolicyName.STEP], scored[PolicyName.PHASE]
    for name, series in scored.items():
        per_step, single = name is PolicyName.STEP, name is PolicyName.SINGLE
        excluded = () if per_step else tuple(_excluded(measured, weighted.all_rounds, scopes[name]))
        if series is None:
            yield Policy(name=name, excluded=excluded)
            continue
        yield Policy(
            name=name, choices=tuple(_choices(measured, weighted, scopes[name])), seconds=_total(drawn, series),
            regret=None if best is None or per_step else _excess(drawn, series, best),
            over_phase=_excess(drawn, series, by_phase) if single and by_phase else None, excluded=excluded,
        )  # fmt: skip


def _excess(drawn: Draw, series: _Series, other: _Series) -> Estimate:
    ratio = _ratio(drawn, series, other)
    low, high = (None if end is None else end - 1 for end in (ratio.low, ratio.high))
    return msgspec.structs.replace(ratio, value=ratio.value - 1, low=low, high=high)


def _scopes(kinds: Integers) -> dict[PolicyName, _Scopes]:
    numbers, phase = np.arange(len(kinds)), (kinds != KINDS.index(StepKind.DECODE)).astype(int)
    return {
        PolicyName.SINGLE: _Scopes(0 * numbers, (ALL_STEPS,)),
        PolicyName.PHASE: _Scopes(phase, (DECODE, PREFILL)),
        PolicyName.STEP: _Scopes(numbers, (ALL_STEPS,) * len(kinds)),
    }


def _weighted(drawn: Draw, logs: Floats) -> _Weighted:
    halves = _mean(logs[:, :, ::2]), _mean(logs[:, :, 1::2])
    usable = np.isfinite(halves[0]) & np.isfinite(halves[1])
    seconds = (
        np.where(usable, np.exp(means), np.inf) * drawn.weights[:, None] for means in (_mean(logs), *halves)
    )  # fmt: skip
    return _Weighted(*seconds)


def choose(weighted_s: Floats, groups: Integers) -> Integers | None:
    """The place of the backend with the fewest seconds in each group, by drawn step; None: a group has none.

    weighted_s: [drawn steps, backends], infinite where a backend cannot be used; groups: [drawn steps], from 0.
    """
    seconds = np.zeros((int(groups.max()) + 1, weighted_s.shape[1]))
    np.add.at(seconds, groups, weighted_s)
    return None if np.isinf(seconds.min(axis=1)).any() else seconds.argmin(axis=1)[groups]


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
