"""Times by commit, with the changes of level."""

import math
from collections.abc import Mapping, Sequence

from attnbench.gate import history
from attnbench.gate.history import HistoryPoint, LevelChange
from attnbench.report.charts.drawing import HEIGHT, INK, UNIT_LABELS, WIDTH, Chart, Point, arm_looks, titled

MAX_CASES = 40
NO_CHANGE = "Commit by commit: no change"

Series = Mapping[str, Sequence[tuple[HistoryPoint, float]]]  # by case, in seconds


def chart(series: Series) -> Chart | None:
    """Times over the first commit's, a line for each case, largest changes first; a ring where the level changes."""
    changes = {case: history.changes(case, values) for case, values in series.items() if len(values) > 1}
    if not changes:
        return None
    import altair as alt

    def largest(case: str) -> float:
        return max((abs(math.log(change.ratio)) for change in changes[case]), default=0.0)

    shown = sorted(changes, key=largest, reverse=True)[:MAX_CASES]
    table = [point for case in shown for point in _points(case, series[case], changes[case])]
    order = list(dict.fromkeys(commit.name for values in series.values() for commit, _ in values))
    x_axis = alt.Axis(labelAngle=-30, labelLimit=140, labelOverlap=True)
    scale, y_axis = alt.Scale(type="log", base=2, nice=False, padding=10), alt.Axis(labelExpr=UNIT_LABELS["x"])
    whole = alt.Chart(alt.InlineData(values=table)).encode(
        x=alt.X("x:O", sort=order, title=None, axis=x_axis),
        y=alt.Y("y:Q", scale=scale, title="time over the first commit's", axis=y_axis),
        color=arm_looks(point["arm"] for point in table)[0],
        tooltip=["detail:N", "x:N", "at:N", "seconds:Q", "y:Q", "changed:Q"],
    )
    layers = [
        whole.mark_line(strokeWidth=1.2, opacity=0.8).encode(detail="detail:N"),
        whole.mark_point(filled=True, size=14, opacity=1),
        whole.transform_filter("isValid(datum.changed)").mark_point(size=130, strokeWidth=2, color=INK, filled=False),
    ]
    left_out = f"; the {len(shown)} with the largest changes of {len(changes)}" if len(shown) < len(changes) else ""
    count, cases = sum(map(len, changes.values())), sum(map(bool, changes.values()))
    heading = f"Commit by commit: {count} changes of level, in {cases} of {len(changes)} cases" if count else NO_CHANGE
    trend = alt.layer(*layers).properties(width=2 * WIDTH, height=HEIGHT)
    return titled(trend, heading, f"a ring: the level changes there (PELT){left_out}")


def _points(case: str, values: Sequence[tuple[HistoryPoint, float]], changes: Sequence[LevelChange]) -> list[Point]:
    ratios = {change.at.name: change.ratio for change in changes}
    (_, first_s), *_ = values
    return [
        {
            "kind": "point", "x": commit.name, "y": seconds / first_s, "detail": case, "seconds": seconds,
            "arm": case.rpartition(" ")[2].rpartition("@")[0], "at": commit.measured_at,
            "changed": ratios.get(commit.name),
        }
        for commit, seconds in values
    ]  # fmt: skip
