"""Two stored runs case by case: the ratio of times with its interval, and the cases that only one of them has."""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from attnbench.analysis import stats
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.restarts import Restarts, map_problems
from attnbench.analysis.rows import TIE_MARGIN, Row, one_line
from attnbench.analysis.stats import Estimate
from attnbench.errors import NotComparableError
from attnbench.records.result import Status, procedure_differences
from attnbench.records.run_directory import Run


class Change(StrEnum):
    """How a case changed between two runs."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "~"  # the interval holds 1, or single restarts are closer than TIE_MARGIN
    NEW = "new"  # in the later run alone
    MISSING = "missing"  # in the earlier run alone
    BROKEN = "broken"  # was ok, and no longer is
    FIXED = "fixed"  # is ok, and was not
    NOTHING = "-"  # ok in neither


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One (case, arm) in two runs."""

    case_id: str
    label: str
    name: str  # the case with its arm and device
    arm: str  # its name and device
    change: Change
    old_s: float | None = None
    new_s: float | None = None
    ratio: Estimate | None = None  # new over old: above 1 is slower
    old_peak: float | None = None  # bytes over inputs and outputs
    new_peak: float | None = None
    reason: str = ""  # why it is not ok

    @property
    def effect(self) -> float:
        """The distance of the ratio from 1, in logarithms."""
        return abs(math.log(self.ratio.value)) if self.ratio else 0.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A later run against an earlier one."""

    old: str
    new: str
    cross_machine: bool
    pairs: tuple[Pair, ...]  # failures first, then the largest effects
    geomeans: dict[str, Estimate]  # of the ratios, by arm


_FIRST = (Change.BROKEN, Change.MISSING, Change.FIXED, Change.NEW)


class ComparedArm(NamedTuple):
    """What a comparison needs of one (case, arm) of a run; cheaper than a Row."""

    case_id: str
    label: str
    name: str
    arm: str
    status: str
    reason: str
    restarts: int
    time: Estimate | None
    peak: float | None


ArmsByKey = Mapping[tuple[str, str], ComparedArm]  # by case id and arm id


def compare(
    old: Run, new: Run, cross_machine: bool = False, arms: tuple[ArmsByKey, ArmsByKey] | None = None
) -> Comparison:
    """Compare two runs case by case. `arms`: those of the two runs, where they are known already.

    Raises NotComparableError where the procedures differ, where the machines differ and `cross_machine` is not set, and
    where the runs have no case in common.
    """
    names = f"{old.path.name} and {new.path.name}"
    crossed = old.manifest.fingerprint != new.manifest.fingerprint
    if crossed and not cross_machine:
        machines = f"{_machine(old)} ({old.manifest.fingerprint}), {_machine(new)} ({new.manifest.fingerprint})"
        raise NotComparableError(f"{names} are of two machines: {machines}; --cross-machine")
    if differences := procedure_differences(old.manifest.procedures, new.manifest.procedures, across_machines=crossed):
        raise NotComparableError(f"{names} were measured differently ({'; '.join(differences)})")
    before, after = arms or _arms(old, new)
    pairs = [_pair(before.get(key), after.get(key)) for key in dict.fromkeys((*before, *after))]
    if not any(pair.ratio for pair in pairs) and not set(before) & set(after):
        raise NotComparableError(f"{names} have no case in common")
    ratios: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.ratio:
            ratios.setdefault(pair.arm, []).append(pair.ratio.value)
    order = sorted(pairs, key=lambda pair: (_FIRST.index(pair.change) if pair.change in _FIRST else 9, -pair.effect))
    return Comparison(
        old=str(old.path),
        new=str(new.path),
        cross_machine=crossed,
        pairs=tuple(order),
        geomeans={arm: mean for arm, values in ratios.items() if (mean := stats.geometric_mean(values))},
    )


def _machine(run: Run) -> str:
    machine = run.manifest.machine
    return ", ".join(machine.get("gpus") or [str(machine.get("cpu"))])


def _arms(old: Run, new: Run) -> tuple[ArmsByKey, ArmsByKey]:
    """The arms of two runs, by names that are distinct over both."""
    arms = (*old.manifest.arms, *new.manifest.arms)
    before, after = (
        dict(map_problems(run.results, lambda restarts: map(_keyed, restarts), arms=arms)) for run in (old, new)
    )
    return before, after


def _keyed(restarts: Restarts) -> tuple[tuple[str, str], ComparedArm]:
    case, arm = restarts.case, restarts.arm
    case_id = case.id
    compared = ComparedArm(
        case_id, case.label, restarts.label, f"{restarts.name}@{arm.device}", restarts.status.value,
        one_line(restarts.worst.reason), restarts.count, restarts.time, METRICS["peak_bytes"].compute(restarts),
    )  # fmt: skip
    return (case_id, arm.id), compared


def arms_of(rows: Iterable[Row]) -> ArmsByKey:
    """The arms of a run whose rows are known: the interval of a Row holds all that a ratio needs."""
    arms = {}
    for row in rows:
        time = None if row.time_s is None else Estimate(value=row.time_s, low=row.time_low_s, high=row.time_high_s)
        arm = f"{row.arm_name}@{row.device}"
        arms[row.case_id, row.arm] = ComparedArm(
            row.case_id, row.label, f"{row.problem} {arm}", arm, row.status, row.reason, row.restarts, time,
            row.peak_bytes,
        )  # fmt: skip
    return arms


def _pair(old: ComparedArm | None, new: ComparedArm | None) -> Pair:
    either = new or old
    assert either
    ratio = stats.unpaired_ratio(new.time, old.time) if old and new and old.time and new.time else None
    return Pair(
        case_id=either.case_id,
        label=either.label,
        name=either.name,
        arm=either.arm,
        change=_change(old, new, ratio),
        old_s=old.time.value if old and old.time else None,
        new_s=new.time.value if new and new.time else None,
        ratio=ratio,
        old_peak=old.peak if old else None,
        new_peak=new.peak if new else None,
        reason=next((side.reason for side in (new, old) if side and side.reason), ""),
    )


def _change(old: ComparedArm | None, new: ComparedArm | None, ratio: Estimate | None) -> Change:
    was, now = bool(old and old.status == Status.OK), bool(new and new.status == Status.OK)
    if old is None or new is None:
        return Change.NEW if old is None else Change.MISSING
    if was != now:
        return Change.FIXED if now else Change.BROKEN
    if ratio is None or ratio.low is None or ratio.high is None:
        return Change.SAME if was else Change.NOTHING
    margin = TIE_MARGIN if min(old.restarts, new.restarts) == 1 else 0.0
    if ratio.low > 1 + margin:
        return Change.SLOWER
    return Change.FASTER if ratio.high < 1 / (1 + margin) else Change.SAME


def rows(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """One flat row per pair and later run, for CSV and JSON."""
    return [
        {
            "old": comparison.old,
            "new": comparison.new,
            "cross_machine": comparison.cross_machine,
            "case_id": pair.case_id,
            "label": pair.label,
            "arm": pair.arm,
            "change": pair.change.value,
            "old_s": pair.old_s,
            "new_s": pair.new_s,
            "ratio": pair.ratio and pair.ratio.value,
            "ratio_low": pair.ratio and pair.ratio.low,
            "ratio_high": pair.ratio and pair.ratio.high,
            "old_peak_bytes": pair.old_peak,
            "new_peak_bytes": pair.new_peak,
            "reason": pair.reason,
        }
        for comparison in comparisons
        for pair in comparison.pairs
    ]
