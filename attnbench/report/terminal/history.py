"""The history of a project: one line for each case and each change of its level, as text or as records."""

from collections.abc import Iterator, Mapping

import msgspec

from attnbench import units
from attnbench.gate import history
from attnbench.gate.history import LevelChange, Trend

MARK = "*"  # after a time that was measured with uncommitted changes


def lines(series: Mapping[str, Trend], as_json: bool, single: bool = False) -> Iterator[str]:
    """One line for each case with its first and last time, then its changes of level.

    Without `single`, cases of one point, which have no trend, are counted in one line of the text.
    """
    once = {case for case, values in series.items() if len(values) == 1 and not (single or as_json)}
    for case, changes in history.level_changes(series).items():
        if as_json:
            yield msgspec.json.encode(_record(case, series[case], changes)).decode()
            continue
        if case in once:
            continue
        yield _summary(case, series[case])
        for change in changes:
            times = f"{units.seconds(change.before_s)} -> {units.seconds(change.after_s)}"
            slowly = f", {units.change(change.ratio_each - 1)} at each of {change.commits} commits"
            where = f"{'from' if change.commits > 1 else 'at'} {change.at.name}, {change.at.measured_at}"
            yield f"    {units.change(change.ratio - 1)} {where}: {times}{slowly if change.commits > 1 else ''}"
    if once:
        yield f"{units.counted(len(once), 'case')} with one point, no trend yet; --case TEXT shows the times"


def _summary(case: str, values: Trend) -> str:
    """`naive@cpu: 10.0 ms -> 11.0 ms* over 9 points (* with uncommitted changes: 2)`; of one point its time."""
    first, last = (f"{units.seconds(seconds)}{MARK * point.dirty}" for point, seconds in (values[0], values[-1]))
    dirty = _dirty(values)
    note = f" ({MARK} with uncommitted changes: {dirty})" if dirty else ""
    if len(values) == 1:
        return f"{case}: {first} in the only run, no trend yet{note}"
    return f"{case}: {first} -> {last} over {units.counted(len(values), 'point')}{note}"


def _dirty(values: Trend) -> int:
    return sum(point.dirty for point, _ in values)


def _record(case: str, values: Trend, changes: list[LevelChange]) -> dict[str, object]:
    """One line of `history --json`."""
    return {
        "type": "trend", "case": case, "points": len(values), "dirty": _dirty(values), "first_s": values[0][1],
        "last_s": values[-1][1],
        "changes": [
            msgspec.to_builtins(change)
            | {"at": change.at.commit, "ratio": change.ratio, "ratio_each": change.ratio_each}
            for change in changes
        ],
    }  # fmt: skip
