"""The decision of the gate: effects by restart -> verdicts. A pure function of what was stored.

Screen all cases; confirm the flagged ones on fresh restarts, corrected by Holm; every other case is `same` only if its
interval shows it. The restart is the unit of all tests (docs/method.md). Effects are logarithms of head over base.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from attnbench import units
from attnbench.analysis.noise_floor import class_of
from attnbench.gate.significance import Interval, holm, interval, normal_factor, p_above, p_below
from attnbench.records.result import Outcome, Verdict

TOLERANCE = 0.02  # a slowdown that is always accepted
NOISE_FACTOR = 1.25  # the margin over the noise floor of a case
SCREEN_RESTARTS = 6
MIN_CONFIRM, MAX_CONFIRM = 12, 20
SCREEN_ALPHA, CONFIRM_ALPHA = 0.10, 0.01
PRECISE = 1 / 3  # of the margin: a half-width that needs no more restarts


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The measured effects of one case by restart, those of the screen apart from those of the confirmation."""

    case_id: str
    label: str
    device: str
    backend: str
    base_s: float
    head_s: float
    screen: tuple[float, ...]
    confirm: tuple[float, ...] = ()
    cycles: tuple[float, ...] = ()  # effects of all restarts in clock cycles, where the clock of a GPU was read
    tolerance: float = TOLERANCE
    impossible: str = ""  # why a time cannot be true: nothing is decided

    @property
    def effects(self) -> tuple[float, ...]:
        return self.screen + self.confirm

    @property
    def key(self) -> str:
        return f"{self.case_id}@{self.device}"


class Margins(msgspec.Struct, frozen=True):
    """What a change must exceed: the tolerance, the resolution of the timer, and 1.25 times the noise floor."""

    factor: float = 0.0  # standard errors by which A/A controls of this machine differed; 0: not known
    resolution_s: float = 0.0
    user_backends: tuple[str, ...] = ()
    user_factors: Mapping[float, float] = {}  # of `user_backends`, by the shortest call of a class of duration

    def factor_of(self, case: Evidence) -> float:
        """The factor of kernels of this kind and duration where it is known, else that of the machine."""
        user_factor = self.user_factors.get(class_of(case.base_s)) if case.backend in self.user_backends else None
        return self.factor if user_factor is None else user_factor

    def noise_floor(self, case: Evidence) -> float:
        """The difference that equal arms with the spread of this case would seem to have; a share.

        `factor_of` standard errors of the screening restarts, and at least what normal noise gives 99 times of 100.
        """
        screen = interval(case.screen)
        if not math.isfinite(screen.sd):
            return 0.0
        count = len(case.screen)
        return math.expm1(max(self.factor_of(case), normal_factor(count)) * screen.sd / math.sqrt(count))

    def tolerance(self, case: Evidence) -> float:
        """Tolerance, as a log ratio: a change below it is accepted, however precisely it was measured."""
        return math.log1p(max(case.tolerance, self.resolution_s / case.base_s if case.base_s > 0 else 0.0))

    def of(self, case: Evidence) -> float:
        return max(self.tolerance(case), math.log1p(NOISE_FACTOR * self.noise_floor(case)))


class Flags(msgspec.Struct, frozen=True):
    """The result of the screen: the cases that need confirmation on either side, and those that are still open."""

    slower: tuple[Evidence, ...]
    faster: tuple[Evidence, ...]
    open: tuple[Evidence, ...]


def screen(cases: Sequence[Evidence], margins: Margins) -> Flags:
    """Choose the cases that need more restarts, at 0.10 each. The screen decides nothing else."""
    slower, faster, undecided = [], [], []
    for case in (case for case in cases if not case.impossible):
        margin = margins.of(case)
        if p_above(case.screen, margin) < SCREEN_ALPHA:
            slower.append(case)
        elif p_below(case.screen, margin) < SCREEN_ALPHA:
            faster.append(case)
        elif interval(case.screen).high >= margin:
            undecided.append(case)
    return Flags(tuple(slower), tuple(faster), tuple(undecided))


def precise(case: Evidence, margins: Margins) -> bool:
    """Whether a flagged case needs no more restarts: precision alone stops them, never significance."""
    return len(case.confirm) >= MIN_CONFIRM and interval(case.confirm).half_width <= PRECISE * margins.of(case)


def open_enough(case: Evidence, margins: Margins) -> bool:
    """Whether an open case needs no more restarts: it is precise, or had twice six more."""
    return len(case.confirm) >= MIN_CONFIRM or interval(case.effects).half_width <= PRECISE * margins.of(case)


class Confirmation(NamedTuple):
    """The test of a flagged case on its fresh restarts."""

    outcome: Outcome  # REGRESSED or IMPROVED: the side that was tested
    p: float  # corrected for the number of cases flagged on that side


def verdicts(cases: Sequence[Evidence], margins: Margins, doubt: str = "") -> list[Verdict]:
    """One verdict per case, in their order. With `doubt`, the reason why no case can be judged, none is decided."""
    flags = screen(cases, margins)
    slower = holm({case.key: p_above(case.confirm, margins.of(case)) for case in flags.slower})
    faster = holm({case.key: p_below(case.confirm, margins.of(case)) for case in flags.faster})
    confirmations = {key: Confirmation(Outcome.REGRESSED, p) for key, p in slower.items()}
    confirmations |= {key: Confirmation(Outcome.IMPROVED, p) for key, p in faster.items()}
    return [_verdict(case, margins, confirmations.get(case.key), doubt) for case in cases]


def _verdict(case: Evidence, margins: Margins, confirmation: Confirmation | None, doubt: str) -> Verdict:
    # The screen flags cases for being extreme: only their fresh restarts are free of that selection.
    change = interval(case.confirm if confirmation and len(case.confirm) > 1 else case.effects)
    outcome, reason = _outcome(case, margins, change, confirmation)
    if case.impossible or (doubt and outcome is not Outcome.INCONCLUSIVE):
        outcome, reason = Outcome.INCONCLUSIVE, case.impossible or doubt
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
        margin=math.expm1(margins.of(case)),
        restarts=len(case.effects),
        p=confirmation.p if confirmation else None,
        reason=reason,
    )


def _outcome(
    case: Evidence, margins: Margins, change: Interval, confirmation: Confirmation | None
) -> tuple[Outcome, str]:
    """The outcome, and the reason where it is inconclusive."""
    margin, tolerance = margins.of(case), margins.tolerance(case)
    if confirmation and confirmation.p < CONFIRM_ALPHA:
        if case.cycles and interval(case.cycles).value * change.value <= 0:
            return Outcome.INCONCLUSIVE, "in seconds, but not in cycles: the clock changed, not the kernel"
        return confirmation.outcome, ""
    if tolerance < change.low < change.high < margin:
        accepted, limit = (units.margin(math.expm1(value)) for value in (tolerance, margin))
        reason = f"slower by more than {accepted}, but not beyond what equal arms might show here: {limit}"
        return Outcome.INCONCLUSIVE, reason
    if confirmation and len(case.confirm) < MIN_CONFIRM:
        done = f"{len(case.confirm)} of {MIN_CONFIRM} confirming restarts"
        return (
            Outcome.INCONCLUSIVE,
            f"{units.change(math.expm1(change.value))} so far, after {done}: a longer --budget would settle it",
        )
    if change.high < margin:
        return Outcome.SAME, ""
    return Outcome.INCONCLUSIVE, _what_would_settle(change, margin, len(case.effects))


def _what_would_settle(change: Interval, margin: float, restarts: int) -> str:
    """Why a case is open, and how many more restarts would settle it."""
    if not math.isfinite(change.high):
        return "the spread between restarts is not known from one restart: at least 2 are needed"
    if change.value >= margin:
        return f"{units.change(math.expm1(change.value))} is above the margin, but not significantly"
    needed = math.ceil((2.2 * change.sd / (margin - change.value)) ** 2)
    more = max(1, needed - restarts)
    return f"its interval reaches the margin; about {more} more restarts would settle it"


def too_noisy(controls: Mapping[str, Evidence], margins: Margins) -> str:
    """Which A/A control differs significantly and beyond its margin: then no case of the run can be judged."""
    p_values = {
        name: min(p_above(control.effects, margins.of(control)), p_below(control.effects, margins.of(control)))
        for name, control in controls.items()
    }
    for name, p in holm(p_values).items():
        if p < CONFIRM_ALPHA:
            change = units.change(math.expm1(interval(controls[name].effects).value))
            return f"the A/A control of {name} differs by {change}: this machine is too noisy to judge"
    return ""
