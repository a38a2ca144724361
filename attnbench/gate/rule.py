"""The decision of the gate: effects by restart -> verdicts. A pure function of what was stored.

Cases are looked at after 4, 6, 9, 13, 18 and 26 restarts (`significance.LOOKS`). A case that is decided or too noisy
gets no more restarts, and every verdict uses all restarts of its case. The restart is the unit of all tests
(docs/method.md).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from attnbench import units
from attnbench.analysis.noise_floor import COMMON_RESTARTS, class_of, normal_factor
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import CONFIDENCE
from attnbench.gate import significance
from attnbench.gate.significance import Interval, holm, interval, p_above
from attnbench.records.result import Outcome, Verdict

TOLERANCE = 0.02  # a slowdown that is always accepted
MAX_MARGIN = 3  # tolerances: a case with a wider margin is inconclusive unless it is decided
ALPHA = 0.01  # of any false `regressed` in a run
# Few restarts may by chance all be in one of two states of a machine that is in either with equal probability; of 13
# they are with 1 in 4096. Before, only a large change is decided.
MIN_RESTARTS, EARLY_TOLERANCE = 13, 0.10
SMALL_CHANCE = 0.10  # of a change that the last look would find: a case that is too noisy gets no more restarts
IMPLAUSIBLE_RATIO = 10  # base over head: more likely a base that did not run as intended than an improvement


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The measured effects of one case by restart: logarithms of head over base."""

    case_id: str
    label: str
    device: str
    backend: str
    base_s: float
    head_s: float
    effects: tuple[float, ...]
    cycles: tuple[float, ...] = ()  # effects of all restarts in clock cycles, where the clock of a GPU was read
    tolerance: float = TOLERANCE
    max_margin: float | None = None  # a share; None: MAX_MARGIN tolerances
    unusable: str = ""  # why nothing can be decided from its times
    node: str = ""  # of a cluster

    @property
    def key(self) -> str:
        return f"{self.case_id}@{self.device}"


class Margins(msgspec.Struct, frozen=True):
    """What a change must exceed: the tolerance, the resolution of the timer, and what noise may add."""

    factor: float = 0.0  # standard errors by which A/A controls of this machine differed; 0: not known
    resolution_s: float = 0.0
    user_backends: tuple[str, ...] = ()
    user_factors: Mapping[float, float] = {}  # of `user_backends`, by the shortest call of a class of duration

    def factor_of(self, case: Evidence) -> float:
        """The factor of kernels of this kind and duration where it is known, else that of the machine."""
        user_factor = self.user_factors.get(class_of(case.base_s)) if case.backend in self.user_backends else None
        return self.factor if user_factor is None else user_factor

    def inflation(self, case: Evidence) -> float:
        """How many times as far as normal noise equal arms of this kind differed on this machine; at least 1."""
        return max(1.0, self.factor_of(case) / normal_factor(COMMON_RESTARTS))

    def tolerance(self, case: Evidence) -> float:
        """Tolerance, as a log ratio: a change below it is accepted, however precisely it was measured."""
        return math.log1p(max(case.tolerance, self.resolution_s / case.base_s if case.base_s > 0 else 0.0))

    def of(self, case: Evidence, cases: int, sd: float | None = None) -> float:
        """The smallest effect that is called a change at the last look if the spread stays as it is; a log ratio.

        `cases`: their number in the gate, for which the test is corrected. `sd`: a spread instead of that of the case.
        """
        sd = interval(case.effects).sd if sd is None else sd
        noise = self.inflation(case) * significance.last_look(ALPHA / cases) * sd
        return self.tolerance(case) + (noise if math.isfinite(noise) else 0.0)

    def largest(self, case: Evidence) -> float:
        """The widest margin with which a case may be called the same; a log ratio."""
        share = MAX_MARGIN * math.expm1(self.tolerance(case)) if case.max_margin is None else case.max_margin
        return math.log1p(share)


class NextStep(NamedTuple):
    """What a gate measures next."""

    cases: frozenset[tuple[str, str]]  # case id and device of each undecided case; empty: the gate is complete
    restarts: int  # further restarts of each, up to the next look


def next_step(cases: Sequence[Evidence], margins: Margins) -> NextStep:
    """Which cases need more restarts, and how many. Call it with all cases of the gate after each look.

    The first look is after `min(significance.LOOKS)` restarts of every case.
    """
    needed = {
        (tested.case.case_id, tested.case.device): significance.until_next_look(len(tested.case.effects))
        for tested in _tested(cases, margins)
        if not tested.case.unusable and tested.decision is None and not tested.is_too_noisy
    }
    left = {key: restarts for key, restarts in needed.items() if restarts}
    return NextStep(frozenset(left), min(left.values(), default=0))


def p_slower(effects: ArrayLike, tolerance: float | Floats, inflation: float | Floats = 1.0) -> Floats:
    """The p-value of H0: the mean effect is at most the tolerance, over all looks at the restarts on the last axis."""
    values = np.asarray(effects, dtype=np.float64)
    p = np.ones(values.shape[:-1])
    for count, share in significance.looks(values.shape[-1]):
        p = np.minimum(p, p_at_look(values[..., :count], share, tolerance, inflation))
    return p


def p_at_look(effects: Floats, share: float, tolerance: float | Floats, inflation: float | Floats = 1.0) -> Floats:
    """`p_slower` of one look with this share of the error; it may exceed 1."""
    early = effects.shape[-1] < MIN_RESTARTS
    return (
        p_above(effects, np.maximum(tolerance, math.log1p(EARLY_TOLERANCE)) if early else tolerance, inflation) / share
    )


class _Tested(NamedTuple):
    """The tests of one case, corrected for the number of cases."""

    case: Evidence
    tolerance: float
    margin: float
    least_margin: float  # with the smallest spread that the restarts allow
    largest: float
    chance: float  # that the mean exceeds the margin at the last look, if the spread stays as it is
    change: Interval
    p_slower: float
    p_faster: float

    @property
    def decision(self) -> Outcome | None:
        """The outcome, if no further restart is needed for it."""
        if self.p_slower < ALPHA and self.change.value > self.tolerance:
            return Outcome.REGRESSED
        if self.p_faster < ALPHA and self.change.value < -self.tolerance:
            return Outcome.IMPROVED
        certain = self.change.low <= self.tolerance and self.change.high < self.margin <= self.largest
        return Outcome.SAME if certain else None

    @property
    def is_too_noisy(self) -> bool:
        """Whether more restarts would hardly narrow the margin to the largest one, nor show a change beyond it."""
        return self.decision is None and self.least_margin > self.largest and self.chance < SMALL_CHANCE


def _tested(cases: Sequence[Evidence], margins: Margins) -> list[_Tested]:
    slower, faster = (holm(_p_slower(cases, margins, sign)) for sign in (1, -1))
    return [_case_tested(case, margins, len(cases), slower[case.key], faster[case.key]) for case in cases]


def _p_slower(cases: Sequence[Evidence], margins: Margins, sign: int) -> dict[str, float]:
    """`p_slower` of each case, with a sign of -1 that base is slower; cases with equally many restarts together."""
    by_restarts: dict[int, list[Evidence]] = {}
    for case in cases:
        by_restarts.setdefault(len(case.effects), []).append(case)
    p_values: dict[str, float] = {}
    for group in by_restarts.values():
        effects = sign * np.array([case.effects for case in group], dtype=np.float64)
        tolerances, inflations = (
            np.array([of_case(case) for case in group]) for of_case in (margins.tolerance, margins.inflation)
        )
        of_group = p_slower(effects, tolerances, inflations).tolist()
        p_values |= zip((case.key for case in group), of_group, strict=True)
    return {case.key: p_values[case.key] for case in cases}


def _case_tested(case: Evidence, margins: Margins, cases: int, p_slower: float, p_faster: float) -> _Tested:
    change, margin = interval(case.effects, margins.inflation(case)), margins.of(case, cases)
    return _Tested(
        case=case,
        tolerance=margins.tolerance(case),
        margin=margin,
        least_margin=margins.of(case, cases, float(significance.smallest_sd(case.effects))),
        largest=margins.largest(case),
        chance=float(significance.chance_beyond(case.effects, margin, margins.inflation(case))),
        change=change,
        p_slower=p_slower,
        p_faster=p_faster,
    )


def verdicts(cases: Sequence[Evidence], margins: Margins, doubts: Mapping[str, str] = {}) -> list[Verdict]:
    """One verdict per case, in their order. `doubts`: by node, why no case that it measured can be judged."""
    return [_verdict(tested, doubts.get(tested.case.node, "")) for tested in _tested(cases, margins)]


def _verdict(tested: _Tested, doubt: str) -> Verdict:
    case, change = tested.case, tested.change
    outcome = tested.decision or Outcome.INCONCLUSIVE
    reason = _objection(tested) if tested.decision else _why_open(tested)
    if case.unusable or reason or (doubt and outcome is not Outcome.INCONCLUSIVE):
        outcome, reason = Outcome.INCONCLUSIVE, case.unusable or reason or doubt
    return Verdict(
        case_id=case.case_id,
        label=case.label,
        device=case.device,
        backend=case.backend,
        metric="time_s",
        outcome=outcome,
        base=case.base_s,
        head=case.head_s,
        change=math.expm1(change.value),
        interval=change.relative,
        margin=math.expm1(tested.margin),
        restarts=len(case.effects),
        p=tested.p_slower if change.value > 0 else tested.p_faster,
        reason=reason,
    )


def _objection(tested: _Tested) -> str:
    """Why a decided case is not to be believed; else empty."""
    case, change = tested.case, tested.change
    if tested.decision is Outcome.SAME:
        return ""
    if case.cycles and interval(case.cycles).value * change.value <= 0:
        return "in seconds, but not in cycles: the clock changed, not the kernel"
    if -change.value > math.log(IMPLAUSIBLE_RATIO):
        times = units.factor(math.exp(-change.value))
        return f"base takes {times} the time of head: check that base ran as intended, with attnbench run in its folder"
    return ""


def _why_open(tested: _Tested) -> str:
    """Why a case is undecided, and what would decide it."""
    change, restarts = tested.change, len(tested.case.effects)
    if not math.isfinite(change.high):
        return "the spread between restarts is not known from one restart: at least 2 are needed"
    margin, largest, low, hidden = (
        units.in_percent(math.expm1(value)) for value in (tested.margin, tested.largest, change.low, change.high)
    )
    left = significance.until_next_look(restarts)
    if left and not tested.is_too_noisy:
        so_far = f"{units.change(math.expm1(change.value))} so far, after {restarts} restarts"
        return f"{so_far}: {left} more may settle it, in a gate with more time (--budget)"
    if change.low > tested.tolerance:
        too = "imprecise" if tested.margin > tested.largest else "little"
        return f"slower by {low} to {hidden}, too {too} for a test of all cases: repeat it with --case"
    if tested.margin > tested.largest:
        return f"too noisy: its margin is above max_margin, {largest}, and a slowdown of up to {hidden} may be hidden"
    return f"after all {restarts} restarts a slowdown of up to {hidden} is possible, and the margin is {margin}"


def doubts(controls: Mapping[str, Evidence], margins: Margins) -> dict[str, str]:
    """By node, the A/A control that differs significantly and beyond its tolerance: no case of it can be judged."""
    by_node: dict[str, dict[str, Evidence]] = {}
    for name, control in controls.items():
        by_node.setdefault(control.node, {})[name] = control
    reasons = {node: _too_noisy(of_node, margins) for node, of_node in by_node.items()}
    return {node: reason for node, reason in reasons.items() if reason}


def _too_noisy(controls: Mapping[str, Evidence], margins: Margins) -> str:
    tested = dict(zip(controls, _tested(list(controls.values()), margins), strict=True))
    for name, control in tested.items():
        if control.decision in (Outcome.REGRESSED, Outcome.IMPROVED):
            change = units.change(math.expm1(control.change.value))
            machine = f"node {control.case.node}" if control.case.node else "this machine"
            return f"the A/A control of {name} differs by {change}: {machine} is too noisy to judge"
    return ""


def hidden(cases: Sequence[Evidence], margins: Margins) -> tuple[float, str] | None:
    """The largest slowdown that these cases may hide, with 95 % confidence for all together, as a share; and its case.

    Infinite where a case has a single restart; None without cases.
    """
    confidence = 1 - 2 * (1 - CONFIDENCE) / len(cases) if cases else 0.0  # of each; one-sided
    ends = ((interval(case.effects, margins.inflation(case), confidence).high, case.label) for case in cases)
    high, label = max(ends, default=(None, ""))
    return None if high is None else (math.expm1(high), label)
