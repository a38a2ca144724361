"""Geometric means over the first run, run by run."""

from collections.abc import Mapping, Sequence

from attnbench.analysis.stats import Estimate
from attnbench.report.charts.drawing import HEIGHT, UNIT_LABELS, WIDTH, Chart, Point, arm_looks, drawable, titled


def chart(geomeans: Sequence[tuple[str, Mapping[str, Estimate]]]) -> Chart | None:
    """A line for each arm over the runs of one machine; None for less than two runs."""
    table: list[Point] = [
        {
            "kind": "point", "x": run, "y": mean.value, "arm": arm.rpartition("@")[0], "detail": arm,
            "low": mean.low if drawable(mean.low) else mean.value,
            "high": mean.high if drawable(mean.high) else mean.value,
        }
        for run, means in geomeans
        for arm, mean in means.items()
    ]  # fmt: skip
    if len(geomeans) < 2 or not table:
        return None
    import altair as alt

    color, shape, _ = arm_looks(point["arm"] for point in table)
    x_axis, y_axis = alt.Axis(labelAngle=-30, labelLimit=200), alt.Axis(labelExpr=UNIT_LABELS["x"])
    scale = alt.Scale(type="log", base=2)
    whole = alt.Chart(alt.InlineData(values=table)).encode(
        x=alt.X("x:O", sort=[run for run, _ in geomeans], title=None, axis=x_axis), color=color
    )
    y = alt.Y("y:Q", scale=scale, title="time over the first run's", axis=y_axis)
    layers = [
        whole.mark_line(strokeWidth=1.4).encode(y=y, detail="detail:N"),
        whole.mark_rule(strokeWidth=1.2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        whole.mark_point(filled=True, size=44, opacity=1).encode(
            y=y, shape=shape, tooltip=["detail:N", "x:N", "y:Q", "low:Q", "high:Q"]
        ),
    ]
    trend = alt.layer(*layers).properties(width=2 * WIDTH, height=HEIGHT)
    heading = "Run by run: geometric mean of times over the first run's"
    return titled(trend, heading, "95 % intervals over cases")
