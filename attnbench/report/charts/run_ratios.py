"""The times of one run over those of another, case by case."""

from collections.abc import Sequence

from attnbench.analysis.comparison import Pair
from attnbench.analysis.rows import TIE_MARGIN
from attnbench.report.charts.drawing import GUIDE, UNIT_LABELS, WIDTH, Chart, Point, arm_looks, drawable, titled

MAX_PAIRS = 40


def chart(pairs: Sequence[Pair], old: str, new: str) -> Chart | None:
    """New over old with intervals, largest effects first, and the band of the restart-to-restart noise."""
    shown = sorted((pair for pair in pairs if pair.ratio), key=lambda pair: -pair.effect)[:MAX_PAIRS]
    if not shown:
        return None
    import altair as alt

    table = [_point(pair) for pair in shown]
    color, shape, _ = arm_looks(point["arm"] for point in table)
    names = [point["y"] for point in table]
    table.append({"kind": "band", "x": 1 - TIE_MARGIN, "high": 1 + TIE_MARGIN})
    whole = alt.Chart(alt.InlineData(values=table))
    scale = alt.Scale(type="log", base=2, nice=False, padding=12)
    labels = alt.Axis(labelExpr=UNIT_LABELS["x"])
    x = alt.X("x:Q", scale=scale, title="new over old: right of 1 is slower", axis=labels)
    y = alt.Y("y:N", sort=names, title=None, axis=alt.Axis(labelLimit=420))
    points = whole.transform_filter("datum.kind == 'point'").encode(y=y, color=color)
    layers = [
        whole.transform_filter("datum.kind == 'band'").mark_rect(color=GUIDE, opacity=0.2).encode(x=x, x2="high:Q"),
        points.mark_rule(strokeWidth=1.4).encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        points.mark_point(filled=True, size=44, opacity=1).encode(
            x=x, shape=shape, tooltip=["y:N", "x:Q", "low:Q", "high:Q", "change:N"]
        ),
    ]
    ratios = alt.layer(*layers).properties(width=WIDTH + 80, height=alt.Step(18))
    left_out = f"; the {len(shown)} largest of {len(pairs)}" if len(shown) < len(pairs) else ""
    below = f"grey: within the restart-to-restart noise{left_out}"
    return titled(ratios, f"{new} over {old}", below)


def _point(pair: Pair) -> Point:
    assert pair.ratio
    ratio = pair.ratio
    return {
        "kind": "point", "x": ratio.value, "y": pair.name, "arm": pair.arm.rpartition("@")[0],
        "low": ratio.low if drawable(ratio.low) else ratio.value,
        "high": ratio.high if drawable(ratio.high) else ratio.value,
        "change": pair.change.value,
    }  # fmt: skip
