"""Two or more stored runs, case by case: how many times longer, how sure, and what is only in one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from attnbench import frame, stats
from attnbench.errors import NotComparableError
from attnbench.frame import Row
from attnbench.joined import Joined
from attnbench.metrics import METRICS
from attnbench.result import Status
from attnbench.stats import Estimate
from attnbench.store import Run


class Change(StrEnum):
    """What became of a case."""

    FASTER = "faster"
    SLOWER = "slower"
    LEVEL = "~"  # the interval holds 1, or the runs of one launch are closer than launches differ
    NEW = "new"  # in the later run alone
    MISSING = "missing"  # in the earlier one alone
    BROKEN = "broken"  # was ok, and no longer is
    MENDED = "mended"  # is ok, and was not
    NOTHING = "-"  # ok in neither


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One (case, arm) in two runs."""

    case_id: str
    label: str
    arm: str
    backend: str
    change: Change
    old_s: float | None = None
    new_s: float | None = None
    ratio: Estimate | None = None  # new over old: above 1 is slower
    old_peak: float | None = None  # bytes over inputs and outputs
    new_peak: float | None = None
    reason: str = ""  # why it is not ok

    @property
    def effect(self) -> float:
        """How far from 1, in logarithms; what sorts a table."""
        return abs(math.log(self.ratio.value)) if self.ratio else 0.0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A later run against an earlier one."""

    old: str
    new: str
    cross_machine: bool
    pairs: tuple[Pair, ...]  # failures first, then the largest effects
    geomeans: dict[str, Estimate]  # of the ratios, by arm


_FIRST = (Change.BROKEN, Change.MISSING, Change.MENDED, Change.NEW)


class Side(NamedTuple):
    """One (case, arm) of one run, as far as a comparison looks."""

    case_id: str
    label: str
    arm: str
    backend: str
    status: str
    reason: str
    launches: int
    time: Estimate | None
    peak: float | None

    @classmethod
    def of_row(cls, row: Row) -> Side:
        """From a row of the frame, whose interval has lost nothing that a ratio needs."""
        seconds, ends = row["time_s"], {"low": row["time_low_s"], "high": row["time_high_s"]}
        return cls(
            row["case_id"], row["label"], f"{row['arm_name']}@{row['device']}", row["backend"], row["status"],
            row["reason"], row["launches"], None if seconds is None else Estimate(value=seconds, **ends),
            row["peak_bytes"],
        )  # fmt: skip


Sides = Mapping[tuple[str, str], Side]  # by case id and arm id


def compare(old: Run, new: Run, cross_machine: bool = False, sides: tuple[Sides, Sides] | None = None) -> Comparison:
    """Case by case. NotComparableError where machine or procedure differ; `cross_machine` looks all the same.

    `sides`: those of the two runs, where they are known already.
    """
    crossed = old.manifest.fingerprint != new.manifest.fingerprint
    if crossed and not cross_machine:
        machines = f"{_machine(old)} ({old.manifest.fingerprint}), {_machine(new)} ({new.manifest.fingerprint})"
        raise NotComparableError(
            f"{old.path.name} and {new.path.name} are of two machines: {machines}; --cross-machine"
        )
    for kind, procedure in new.manifest.procedures.items():
        before = old.manifest.procedures.get(kind)
        for name in ("timing", "cache", "power", "inputs") if before else ():
            one, other = getattr(before, name), getattr(procedure, name)
            if one != other:
                raise NotComparableError(
                    f"{old.path.name} was measured with {name} {one}, {new.path.name} with {other}"
                )
    before_by, after_by = sides or (_sides(old), _sides(new))
    pairs = [_pair(before_by.get(key), after_by.get(key)) for key in dict.fromkeys((*before_by, *after_by))]
    if not any(pair.ratio for pair in pairs) and not set(before_by) & set(after_by):
        raise NotComparableError(f"{old.path.name} and {new.path.name} have no case in common")
    ratios: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.ratio:
            ratios.setdefault(pair.arm, []).append(pair.ratio.value)
    means = {arm: stats.geometric_mean(values) for arm, values in ratios.items()}
    order = sorted(pairs, key=lambda pair: (_FIRST.index(pair.change) if pair.change in _FIRST else 9, -pair.effect))
    return Comparison(
        old=str(old.path),
        new=str(new.path),
        cross_machine=crossed,
        pairs=tuple(order),
        geomeans={arm: mean for arm, mean in means.items() if mean},
    )


def _machine(run: Run) -> str:
    machine = run.manifest.machine
    return ", ".join(machine.get("gpus") or [str(machine.get("cpu"))])


def _sides(run: Run) -> Sides:
    return dict(frame.each(run.results, lambda arms: map(_keyed, arms)))


def _keyed(joined: Joined) -> tuple[tuple[str, str], Side]:
    case, arm = joined.case, joined.arm
    case_id = case.id
    side = Side(
        case_id, case.label, f"{arm.name}@{arm.device}", arm.backend, joined.status.value,
        frame.one_line(joined.worst.reason), joined.launches, joined.time, METRICS["peak_bytes"].compute(joined),
    )  # fmt: skip
    return (case_id, arm.id), side


def sides_of(rows: Iterable[Row]) -> Sides:
    """Those of a run whose rows are known."""
    return {(row["case_id"], row["arm"]): Side.of_row(row) for row in rows}


def _pair(old: Side | None, new: Side | None) -> Pair:
    one = new or old
    assert one
    ratio = stats.unpaired_ratio(new.time, old.time) if old and new and old.time and new.time else None
    return Pair(
        case_id=one.case_id,
        label=one.label,
        arm=one.arm,
        backend=one.backend,
        change=_change(old, new, ratio),
        old_s=old.time.value if old and old.time else None,
        new_s=new.time.value if new and new.time else None,
        ratio=ratio,
        old_peak=old.peak if old else None,
        new_peak=new.peak if new else None,
        reason=next((side.reason for side in (new, old) if side and side.reason), ""),
    )


def _change(old: Side | None, new: Side | None, ratio: Estimate | None) -> Change:
    was, now = bool(old and old.status == Status.OK), bool(new and new.status == Status.OK)
    if old is None or new is None:
        return Change.NEW if old is None else Change.MISSING
    if was != now:
        return Change.MENDED if now else Change.BROKEN
    if ratio is None or ratio.low is None or ratio.high is None:
        return Change.LEVEL if was else Change.NOTHING
    floor = frame.TIE_FLOOR if min(old.launches, new.launches) == 1 else 0.0
    if ratio.low > 1 + floor:
        return Change.SLOWER
    return Change.FASTER if ratio.high < 1 / (1 + floor) else Change.LEVEL


def rows(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """One flat row a pair and later run, for CSV and JSON."""
    found = []
    for one in comparisons:
        for pair in one.pairs:
            ratio = pair.ratio
            found.append(
                {
                    "old": one.old,
                    "new": one.new,
                    "cross_machine": one.cross_machine,
                    "case_id": pair.case_id,
                    "label": pair.label,
                    "arm": pair.arm,
                    "change": pair.change.value,
                    "old_s": pair.old_s,
                    "new_s": pair.new_s,
                    "ratio": ratio.value if ratio else None,
                    "ratio_low": ratio.low if ratio else None,
                    "ratio_high": ratio.high if ratio else None,
                    "old_peak_bytes": pair.old_peak,
                    "new_peak_bytes": pair.new_peak,
                    "reason": pair.reason,
                }
            )
    return found
