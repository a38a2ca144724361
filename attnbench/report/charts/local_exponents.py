"""Local exponents of time and memory, beside the predicted ones."""

from collections import Counter
from collections.abc import Sequence

from attnbench import units
from attnbench.report.charts.drawing import GUIDE, HEIGHT, WIDTH, Chart, Point, arm_looks, faceted, titled
from attnbench.studies.scaling import Law

PANELS = {"time": "time of a call", "peak": "peak memory"}


def chart(laws: Sequence[Law], caption: str) -> Chart | None:
    """The exponents between neighbouring values of the axis that most laws are about; a panel for each quantity."""
    if not laws:
        return None
    import altair as alt

    (axis, _), *_ = Counter(law.axis for law in laws).most_common()
    laws = [law for law in laws if law.axis == axis]
    table = [point for number, law in enumerate(laws) for point in _points(law, number)]
    color, shape, _ = arm_looks(point["arm"] for point in table if "arm" in point)
    products = {point["x"]: point["product"] for point in table if "x" in point}
    whole = alt.Chart(alt.InlineData(values=table))
    y = alt.Y("y:Q", title="local exponent", scale=alt.Scale(zero=False, padding=10))
    order = sorted(products, key=lambda step: float(products[step]))
    x = alt.X("x:O", sort=order, title=axis, axis=alt.Axis(grid=False, labelAngle=-30))
    points = whole.transform_filter("datum.kind == 'point'").encode(x=x, y=y, color=color, detail="law:N")
    layers = [
        whole.transform_filter("datum.kind == 'rule'").mark_rule(strokeDash=[4, 4], color=GUIDE).encode(y=y),
        points.mark_line(strokeWidth=1.4),
        points.mark_point(filled=True, size=40, opacity=1).encode(shape=shape, tooltip=["arm:N", "label:N", "y:Q"]),
    ]
    panel = alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT)
    panels = sorted({point["panel"] for point in table}, reverse=True)
    heading = f"Exponents between neighbours along {axis}; dashed: what is predicted"
    return titled(faceted(panel, panels), heading, caption)


def _points(law: Law, number: int) -> list[Point]:
    """One point for each pair of neighbours, and the predicted exponent."""
    panel = PANELS.get(law.quantity, law.quantity)
    table: list[Point] = [{"kind": "rule", "y": law.predicted, "panel": panel}]
    for (left, _), (right, _), slope in zip(law.points, law.points[1:], law.slopes, strict=False):
        step = f"{units.short(left)} to {units.short(right)}"
        table.append({
            "kind": "point", "x": step, "y": slope, "arm": law.arm, "panel": panel, "law": number,
            "label": f"{law.problem}: {step}", "product": left * right,
        })  # fmt: skip
    return table
