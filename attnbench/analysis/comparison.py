"""Two stored runs case by case: the ratio of times with its interval, and the cases that only one of them has."""

import math
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from attnbench import units
from attnbench.analysis import stats
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.noise_floor import BetweenRuns
from attnbench.analysis.restarts import Restarts, map_problems
from attnbench.analysis.rows import Row, one_line
from attnbench.analysis.stats import Estimate
from attnbench.errors import NotComparableError
from attnbench.machine.resources import BUSY_SHARE
from attnbench.records import run_directory
from attnbench.records.result import Status, procedure_differences
from attnbench.records.results_file import Lines
from attnbench.records.run_directory import Run

MIN_RESTARTS = 2  # of both runs: the interval of a single one does not hold what differs between restarts


class Change(StrEnum):
    """How a case changed between two runs."""

    FASTER = "faster"  # the interval is beyond the noise floor
    SLOWER = "slower"
    SAME = "~"  # the interval holds 1 and is within the noise floor
    UNDECIDED = "undecided"  # anything else that was measured in both runs
    NEW = "new"  # measured in the later run alone
    MISSING = "missing"  # measured in the earlier run alone
    BROKEN = "broken"  # was ok, and no longer is
    FIXED = "fixed"  # is ok, and was not
    NOTHING = "-"  # ok in neither


class Pair(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One (case, arm) in two runs."""

    case_id: str
    label: str
    name: str  # the case with its arm and device
    arm: str  # its name and device
    device: str
    change: Change
    old_s: float | None = None
    new_s: float | None = None
    ratio: Estimate | None = None  # new over old: above 1 is slower
    old_peak: float | None = None  # bytes over inputs and outputs
    new_peak: float | None = None
    old_noisy: bool = False
    new_noisy: bool = False
    floor: float | None = None  # the noise floor of the verdict, a share
    restarts: int = 0  # of the run that has fewer; 0: not measured in both
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
    notes: tuple[str, ...] = ()  # the noise floor, and what disturbed the runs
    commands: tuple[str, ...] = ()  # that would decide the undecided cases
    advice: str = ""  # which runs need them


BOTH = ", for both runs"
_FIRST = (Change.BROKEN, Change.MISSING, Change.FIXED, Change.NEW)


class ComparedArm(msgspec.Struct, frozen=True, gc=False):
    """What a comparison needs of one (case, arm) of a run; cheaper than a Row."""

    case_id: str
    label: str
    name: str
    arm: str
    status: str
    reason: str
    restarts: int
    noisy: bool
    time: Estimate | None
    peak: float | None


ArmsByKey = Mapping[tuple[str, str], ComparedArm]  # by case id and arm id


def compare(
    old: Run, new: Run, cross_machine: bool = False, arms: tuple[ArmsByKey, ArmsByKey] | None = None
) -> Comparison:
    """Compare two runs case by case. `arms`: those of the two runs, where they are known already.

    Raises NotComparableError where the procedures differ, where the machines differ and `cross_machine` is not set, and
    where no case has a result in both runs.
    """
    names = f"{old.path.name} and {new.path.name}"
    crossed = not old.manifest.same_machine(new.manifest)
    if crossed and not cross_machine:
        machines = ", ".join(f"{run.manifest.machine_name} ({run.manifest.machine_id})" for run in (old, new))
        raise NotComparableError(f"{names} are of two machines: {machines}; --cross-machine compares them anyway")
    if differences := procedure_differences(old.manifest.procedures, new.manifest.procedures, across_machines=crossed):
        raise NotComparableError(f"{names} were measured differently ({'; '.join(differences)})")
    before, after = arms or _arms(old, new)
    noise = BetweenRuns(new.manifest.fingerprint)
    pairs = [_pair(before.get(key), after.get(key), noise) for key in dict.fromkeys((*before, *after))]
    _check_common(names, pairs, before.keys() & after.keys())
    ratios: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.ratio:
            ratios.setdefault(pair.arm, []).append(pair.ratio.value)
    order = sorted(pairs, key=lambda pair: (_FIRST.index(pair.change) if pair.change in _FIRST else 9, -pair.effect))
    commands = _commands(old, new) if any(pair.change is Change.UNDECIDED for pair in pairs) else ()
    return Comparison(
        old=str(old.path),
        new=str(new.path),
        cross_machine=crossed,
        pairs=tuple(order),
        geomeans={arm: mean for arm, values in ratios.items() if (mean := stats.geometric_mean(values))},
        notes=(*_floors(pairs, noise), *dict.fromkeys(filter(None, map(_busy, (old, new))))),
        commands=commands,
        advice=BOTH if any(command.startswith("attnbench run") for command in commands) else "",
    )


def _check_common(names: str, pairs: Sequence[Pair], common: Collection[tuple[str, str]]) -> None:
    """Raise NotComparableError if no case was measured in one run and tried in the other. `common`: keys in both."""
    counts = Counter(pair.change for pair in pairs)
    if counts.keys() - {Change.NEW, Change.MISSING, Change.NOTHING}:
        return
    if not common:
        raise NotComparableError(f"{names} have no case in common")
    alone = f"{counts[Change.MISSING]} in the earlier run alone, {counts[Change.NEW]} in the later run alone"
    raise NotComparableError(f"{names} have no measured case in common ({alone})")


def _arms(old: Run, new: Run) -> tuple[ArmsByKey, ArmsByKey]:
    """The arms of two runs, by names that are distinct over both."""
    arms = (*old.manifest.arms, *new.manifest.arms)
    before, after = (
        dict(
            map_problems(
                run.results.plain() if isinstance(run.results, Lines) else run.results,
                lambda restarts: map(_keyed, restarts),
                arms=arms,
            )
        )
        for run in (old, new)
    )
    return before, after


def _keyed(restarts: Restarts) -> tuple[tuple[str, str], ComparedArm]:
    case, arm = restarts.case, restarts.arm
    case_id = restarts.results[0].case_id or case.id
    compared = ComparedArm(
        case_id, case.label, restarts.label, f"{restarts.name}@{arm.device}", restarts.status.value,
        one_line(restarts.worst.reason), restarts.count, restarts.noisy, restarts.time,
        METRICS["peak_bytes"].compute(restarts),
    )  # fmt: skip
    return (case_id, arm.id), compared


def arms_of(rows: Iterable[Row]) -> ArmsByKey:
    """The arms of a run whose rows are known: the interval of a Row holds all that a ratio needs."""
    arms = {}
    for row in rows:
        time = None if row.time_s is None else Estimate(value=row.time_s, low=row.time_low_s, high=row.time_high_s)
        arm = f"{row.arm_name}@{row.device}"
        arms[row.case_id, row.arm] = ComparedArm(
            row.case_id, row.label, f"{row.problem} {arm}", arm, row.status, row.reason, row.restarts,
            bool(row.noisy), time, row.peak_bytes,
        )  # fmt: skip
    return arms


def _floors(pairs: Iterable[Pair], noise: BetweenRuns) -> list[str]:
    """`noise floor 10.0 %: assumed ...`, for each noise floor that was used."""
    used = {noise.of(pair.device, pair.new_s) for pair in pairs if pair.floor is not None and pair.new_s is not None}
    return [f"noise floor {units.margin(floor)}: {source}" for floor, source in sorted(used)]


def _busy(run: Run) -> str:
    """That the machine was busy when the run began; empty if it was not."""
    load, cores = run.manifest.machine.get("load"), run.manifest.machine.get("cores")
    if not load or not cores or load <= BUSY_SHARE * cores:
        return ""
    return f"{run.path.name} began on a busy machine (load {load:.1f} on {cores} cores): measure when it is idle"


def _commands(old: Run, new: Run) -> tuple[str, ...]:
    """The gate of the two commits where both are known, else what measures a run again over six restarts."""
    before, after = (run.manifest.commit or {} for run in (old, new))
    suites, options = new.manifest.request.get("suites", ()), run_directory.problem_options(new.manifest)
    if not before.get("dirty") and before.get("commit") and before["commit"] != after.get("commit"):
        return (shlex.join(["attnbench", "gate", *suites, *options, "--base-ref", before["commit"][:12]]),)
    return (shlex.join(["attnbench", "run", *suites, *options, "--restarts", "6", "--budget", "0"]),)


def _pair(old: ComparedArm | None, new: ComparedArm | None, noise: BetweenRuns) -> Pair:
    either = new or old
    assert either
    device = either.arm.rpartition("@")[2]
    ratio = stats.unpaired_ratio(new.time, old.time) if old and new and old.time and new.time else None
    floor = noise.of(device, new.time.value)[0] if ratio and new and new.time else None
    return Pair(
        case_id=either.case_id,
        label=either.label,
        name=either.name,
        arm=either.arm,
        device=device,
        change=_change(old, new, ratio, floor),
        old_s=old.time.value if old and old.time else None,
        new_s=new.time.value if new and new.time else None,
        ratio=ratio,
        old_peak=old.peak if old else None,
        new_peak=new.peak if new else None,
        old_noisy=bool(old and old.noisy),
        new_noisy=bool(new and new.noisy),
        floor=floor,
        restarts=min(old.restarts, new.restarts) if old and new else 0,
        reason=next((side.reason for side in (new, old) if side and side.reason), ""),
    )


def _change(
    old: ComparedArm | None, new: ComparedArm | None, ratio: Estimate | None, floor: float | None
) -> Change:  # fmt: skip
    was, now = bool(old and old.status == Status.OK), bool(new and new.status == Status.OK)
    if was and now:
        assert old
        assert new
        return _verdict(ratio, floor or 0.0, min(old.restarts, new.restarts))
    if was:
        return Change.MISSING if new is None or new.status == Status.SKIPPED else Change.BROKEN
    if now:
        return Change.NEW if old is None or old.status == Status.SKIPPED else Change.FIXED
    return Change.NOTHING


def _verdict(ratio: Estimate | None, floor: float, restarts: int) -> Change:
    """Of a case that is ok in both runs."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return Change.UNDECIDED
    if 1 / (1 + floor) <= ratio.low <= 1 <= ratio.high <= 1 + floor:
        return Change.SAME
    if restarts >= MIN_RESTARTS and ratio.low > 1 + floor:
        return Change.SLOWER
    if restarts >= MIN_RESTARTS and ratio.high < 1 / (1 + floor):
        return Change.FASTER
    return Change.UNDECIDED


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
            "noise_floor": pair.floor,
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
