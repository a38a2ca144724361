"""Times by commit, with the changes of level."""

import math
from collections.abc import Mapping, Sequence

from attnbench.gate import history
from attnbench.gate.history import LevelChange
from attnbench.report.charts import axes, series
from attnbench.report.charts.figure import WIDE, Figure

MAX_CASES = 40
NO_CHANGE = "Commit by commit: no change"

Commits = Mapping[str, history.Trend]  # by case, in seconds


def figure(commits: Commits) -> Figure | None:
    """Times over the first commit's, a line for each case, largest changes first; a ring where the level changes."""
    changes = history.level_changes({case: values for case, values in commits.items() if len(values) > 1})
    if not changes:
        return None

    def largest(case: str) -> float:
        return max((abs(math.log(change.ratio)) for change in changes[case]), default=0.0)

    shown = sorted(changes, key=largest, reverse=True)[:MAX_CASES]
    names = list(dict.fromkeys(commit.name for values in commits.values() for commit, _ in values))
    places = {name: place for place, name in enumerate(names)}
    lines = tuple(_line(case, commits[case], changes[case], places) for case in shown)
    left_out = f"the {len(shown)} with the largest changes of {len(changes)}" if len(shown) < len(changes) else ""
    count, cases = sum(map(len, changes.values())), sum(map(bool, changes.values()))
    heading = f"Commit by commit: {count} changes of level, in {cases} of {len(changes)} cases" if count else NO_CHANGE
    return series.figure(
        "commits", [series.SeriesPanel(series=lines)], names, ("time over the first commit's", "x"), heading,
        "a ring: the level changes there (PELT)", left_out, width=WIDE,
    )  # fmt: skip


def _line(
    case: str, values: history.Trend, changes: Sequence[LevelChange], places: Mapping[str, int]
) -> series.Series:  # fmt: skip
    ratios = {change.at.name: change.ratio for change in changes}
    (_, first_s), *_ = values
    points = tuple(
        series.SeriesPoint(
            place=places[commit.name], value=seconds / first_s, ring=commit.name in ratios,
            tip=f"{case}, {commit.name}, {commit.measured_at}: {axes.shown(seconds, 's')}",
        )
        for commit, seconds in values
    )  # fmt: skip
    return series.Series(arm=case.rpartition(" ")[2].rpartition("@")[0], points=points)
