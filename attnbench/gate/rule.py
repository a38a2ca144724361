"""From effects by launch to verdicts: a pure function, replayed on stored runs and on made-up noise in the tests.

Screen all cases; confirm the flagged ones on fresh launches, corrected by Holm; everything else is `same` only if its
interval says so. The launch is the unit (docs/method.md); effects are logarithms of head over base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from attnbench.result import Outcome, Verdict

TOLERANCE = 0.02  # a slowdown that nobody minds
FLOOR_FACTOR = 1.25
SCREEN_LAUNCHES = 6
CONFIRM_LEAST, CONFIRM_MOST = 12, 20
SCREEN_ALPHA, CONFIRM_ALPHA = 0.10, 0.01
CONFIDENCE = 0.95
PRECISE = 1 / 3  # of the margin: a half-width that needs no more launches
FLOOR_CONFIDENCE = 0.995  # two-sided: 99 of 100


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one case: log(head / base) of every launch, screening and confirming apart."""

    case_id: str
    label: str
    device: str
    backend: str
    base_s: float
    head_s: float
    screen: tuple[float, ...]
    confirm: tuple[float, ...] = ()
    cycles: tuple[float, ...] = ()  # the same of all launches in clock cycles, where a GPU told its clock
    tolerance: float = TOLERANCE

    @property
    def both(self) -> tuple[float, ...]:
        """All launches."""
        return self.screen + self.confirm


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean of logarithms over launches with its t interval; without ends where there is one launch."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    sd: float = math.nan

    @property
    def half_width(self) -> float:
        """In logarithms, which for small changes are shares."""
        return (self.high - self.low) / 2


def interval(effects: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean and its t interval."""
    from scipy.special import stdtrit

    values = np.asarray(effects, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(value=mean)
    sd = float(values.std(ddof=1))
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * sd / math.sqrt(count)
    return Interval(value=mean, low=mean - half, high=mean + half, sd=sd)


def exceeds(effects: Sequence[float], margin: float) -> float:
    """The p-value of H0: the mean effect is at most the margin; one-sided t over launches, 1 for a single launch."""
    from scipy.special import stdtr

    values = np.asarray(effects, dtype=np.float64)
    count = len(values)
    if count < 2:
        return 1.0
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if sd <= 1e-12 * max(1.0, abs(mean)):  # nothing varies: there is no doubt either way
        return 0.0 if mean > margin else 1.0
    return float(stdtr(count - 1, -(mean - margin) / (sd / math.sqrt(count))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Corrected for their number: reject those below alpha, and the chance of any false one stays below alpha."""
    adjusted: dict[str, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        least = max(least, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = least
    return adjusted


class Margins(msgspec.Struct, frozen=True):
    """What a change must exceed: the tolerance, the timer, and 1.25 times what equal arms would show.

    Equal arms with the spread of the case: `factor` standard errors of its screening launches, by default where 99 of
    100 means of normal launches lie. What equal arms of this machine have really shown may ask for more.
    """

    factor: float = 0.0  # measured: of standard errors; 0: none was
    resolution_s: float = 0.0

    def floor(self, one: Evidence) -> float:
        """How far equal arms with this case's spread would seem to differ; a share."""
        seen = interval(one.screen)
        if not math.isfinite(seen.sd):
            return 0.0
        return math.expm1(max(self.factor, chance(len(one.screen))) * seen.sd / math.sqrt(len(one.screen)))

    def allowance(self, one: Evidence) -> float:
        """What nobody minds, however well it is measured; in logarithms."""
        return math.log1p(max(one.tolerance, self.resolution_s / one.base_s if one.base_s > 0 else 0.0))

    def of(self, one: Evidence) -> float:
        """In logarithms."""
        return max(self.allowance(one), math.log1p(FLOOR_FACTOR * self.floor(one)))


def chance(launches: int) -> float:
    """Standard errors within which the mean of that many normal launches lies, 99 times of 100."""
    from scipy.special import stdtrit

    return float(stdtrit(launches - 1, FLOOR_CONFIDENCE))


class Flags(msgspec.Struct, frozen=True):
    """What the screen says: who must be confirmed, on which side, and who is not settled yet."""

    slower: tuple[Evidence, ...]
    faster: tuple[Evidence, ...]
    open: tuple[Evidence, ...]

    @property
    def all(self) -> tuple[Evidence, ...]:
        """Everything that wants more launches."""
        return self.slower + self.faster + self.open


def screen(cases: Sequence[Evidence], margins: Margins) -> Flags:
    """Suspicions of the first stage, at 0.10 each; nothing is decided here but who is looked at again."""
    slower, faster, undecided = [], [], []
    for one in cases:
        margin = margins.of(one)
        if exceeds(one.screen, margin) < SCREEN_ALPHA:
            slower.append(one)
        elif exceeds([-effect for effect in one.screen], margin) < SCREEN_ALPHA:
            faster.append(one)
        elif interval(one.screen).high >= margin:
            undecided.append(one)
    return Flags(tuple(slower), tuple(faster), tuple(undecided))


def precise(one: Evidence, margins: Margins) -> bool:
    """Whether more confirming launches would buy little: precision alone stops them, never significance."""
    return len(one.confirm) >= CONFIRM_LEAST and interval(one.confirm).half_width <= PRECISE * margins.of(one)


def open_enough(one: Evidence, margins: Margins) -> bool:
    """Whether a case that the screen left open has been looked at enough: precise, or twice 6 launches more."""
    return len(one.confirm) >= CONFIRM_LEAST or interval(one.both).half_width <= PRECISE * margins.of(one)


def verdicts(cases: Sequence[Evidence], margins: Margins, doubt: str = "") -> list[Verdict]:
    """One for each case, in their order. `doubt`: why nothing of this run may be believed; it turns reds and greens."""
    flags = screen(cases, margins)
    confirmed: dict[str, float] = {}
    for side, sign in ((flags.slower, 1), (flags.faster, -1)):
        tested = {_key(one): exceeds([sign * effect for effect in one.confirm], margins.of(one)) for one in side}
        confirmed |= {key: sign * p if p else sign * 1e-300 for key, p in holm(tested).items()}
    return [_verdict(one, margins, confirmed.get(_key(one)), doubt) for one in cases]


def _key(one: Evidence) -> str:
    return f"{one.case_id}@{one.device}"


def _verdict(one: Evidence, margins: Margins, signed_p: float | None, doubt: str) -> Verdict:
    """`signed_p`: corrected, negative for a suspicion of being faster; None where the screen had none."""
    flagged, margin = signed_p is not None, margins.of(one)
    # The screen chose the flagged ones for being extreme: only their fresh launches are free of that choice.
    seen = interval(one.confirm if flagged and one.confirm else one.both)
    p = abs(signed_p) if signed_p is not None else None
    if p is not None and p < CONFIRM_ALPHA:
        outcome = Outcome.REGRESSED if signed_p is not None and signed_p > 0 else Outcome.IMPROVED
        reason = ""
    elif margins.allowance(one) < seen.low < seen.high < margin:
        outcome = Outcome.INCONCLUSIVE
        allowed, shown = (100 * math.expm1(value) for value in (margins.allowance(one), margin))
        reason = f"slower by more than {allowed:.2g} %, but not beyond what equal arms might show here: {shown:.1f} %"
    elif seen.high < margin:
        outcome, reason = Outcome.SAME, ""
    else:
        outcome, reason = Outcome.INCONCLUSIVE, _why(seen, margin, len(one.both))
    if one.cycles and outcome in (Outcome.REGRESSED, Outcome.IMPROVED) and interval(one.cycles).value * seen.value <= 0:
        outcome, reason = Outcome.INCONCLUSIVE, "in seconds, but not in cycles: the clock changed, not the kernel"
    if doubt and outcome in (Outcome.REGRESSED, Outcome.IMPROVED, Outcome.SAME):
        outcome, reason = Outcome.INCONCLUSIVE, doubt
    bounded = math.isfinite(seen.low) and math.isfinite(seen.high)
    return Verdict(
        case_id=one.case_id,
        label=one.label,
        device=one.device,
        backend=one.backend,
        metric="time_s",
        outcome=outcome,
        base=one.base_s,
        head=one.head_s,
        change=math.expm1(seen.value),
        interval=(math.expm1(seen.low), math.expm1(seen.high)) if bounded else None,
        margin=math.expm1(margin),
        launches=len(one.both),
        p=p,
        reason=reason,
    )


def _why(seen: Interval, margin: float, launches: int) -> str:
    """What keeps it open, and how many launches would settle it."""
    if not math.isfinite(seen.high):
        return "one launch says nothing about the next: at least 2 are needed"
    if seen.value >= margin:
        return f"{100 * math.expm1(seen.value):+.1f} % is above the margin, but not beyond doubt"
    needed = math.ceil((2.2 * seen.sd / (margin - seen.value)) ** 2)
    more = max(1, needed - launches)
    return f"its interval reaches the margin; about {more} more launches would settle it"


def restless(twins: Mapping[str, Evidence], margins: Margins) -> str:
    """Which equal arms differ beyond doubt and beyond the margin: then nothing of the run may be believed."""
    tested = {
        name: min(exceeds(one.both, margins.of(one)), exceeds(_mirrored(one), margins.of(one)))
        for name, one in twins.items()
    }
    for name, p in holm(tested).items():
        if p < CONFIRM_ALPHA:
            change = 100 * math.expm1(interval(twins[name].both).value)
            return f"two equal arms of {name} differ by {change:+.1f} %, beyond the margin: the machine is not itself"
    return ""


def _mirrored(one: Evidence) -> list[float]:
    return [-effect for effect in one.both]


def geometric_mean(effects: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Of ratios over cases, with a bootstrap interval over cases: sees the uniform 1 % that no single case can show."""
    from scipy.stats import bootstrap

    values = np.asarray(effects, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 3 or np.ptp(values) == 0:
        return math.exp(mean), math.exp(float(values.min())), math.exp(float(values.max()))
    rng = np.random.default_rng(seed)
    found = bootstrap((values,), np.mean, n_resamples=2000, method="BCa", rng=rng).confidence_interval
    return math.exp(mean), math.exp(float(found.low)), math.exp(float(found.high))
