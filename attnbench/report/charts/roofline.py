"""The roofline: FLOP/s over intensity, below the measured ceilings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attnbench.analysis.roofline import CeilingsByDevice
from attnbench.analysis.rows import Row
from attnbench.records.ceilings import Ceilings
from attnbench.report.charts import drawing

if TYPE_CHECKING:
    import altair as alt


def chart(rows: Sequence[Row], ceilings: CeilingsByDevice, caption: str) -> drawing.Chart | None:
    """A panel for each device and dtype, and a trail for each backend from the shortest length to the longest.

    Backends at one problem share an intensity, so that a trail is drawn along the length.
    """
    measured = [row for row in rows if row.roofline_share is not None and row.device in ceilings]
    if not measured:
        return None
    best = max(measured, key=lambda row: row.roofline_share or 0.0)
    measured = measured[:: math.ceil(len(measured) / drawing.MAX_POINTS)]
    finding = f"{best.arm_name} comes nearest to its roofline bound: {best.roofline_share:.0%}, bound by {best.bound}"
    panels = list(dict.fromkeys(map(_panel, measured)))
    return drawing.titled(drawing.faceted(_layers(_table(measured, ceilings)), panels), finding, caption)


def _panel(row: Row) -> str:
    return f"{row.device} {row.dtype}"


def _table(rows: Sequence[Row], ceilings: CeilingsByDevice) -> list[drawing.Point]:
    """The points, and the ends and ridge of each panel's bound."""
    varied = drawing.varying(rows, "seq_kv")
    table: list[drawing.Point] = [
        {
            "kind": "point", "x": row.intensity, "y": row.flop_per_s, "arm": row.arm_name, "label": row.name,
            "share": row.roofline_share, "bound": row.bound, "n": row.seq_kv, "panel": _panel(row),
            "note": row.notes or "",
            "trail": f"{row.arm_name} {drawing.panel_of(row, varied)}",
        }
        for row in rows
    ]  # fmt: skip
    for panel, row in {_panel(row): row for row in rows}.items():
        intensities = [point["x"] for point in table if point["panel"] == panel]
        table += _bound(ceilings[row.device], row.dtype, panel, min(intensities), max(intensities))
    return table


def _bound(ceilings: Ceilings, dtype: str, panel: str, low: float, high: float) -> list[drawing.Point]:
    """Memory bandwidth up to the ridge, then the burst rate of matrix products."""
    rate, memory = ceilings.matmul.get(dtype), ceilings.memory
    if rate is None or memory is None:
        return []
    ridge = rate.burst / memory
    ends = sorted({min(low, ridge) / 2, ridge, max(high, ridge) * 2})
    return [{"kind": "bound", "panel": panel, "x": x, "y": min(rate.burst, memory * x)} for x in ends]


def _layers(table: list[drawing.Point]) -> alt.LayerChart:
    import altair as alt

    color, shape, _ = drawing.arm_looks(point["arm"] for point in table if "arm" in point)
    scale = alt.Scale(type="log", nice=False, padding=8)
    x_axis = alt.Axis(gridOpacity=0.4, tickCount=4)
    y_axis = alt.Axis(gridOpacity=0.4, tickCount=4, labelExpr=drawing.UNIT_LABELS["FLOP/s"])
    x = alt.X("x:Q", scale=scale, axis=x_axis, title="FLOP a byte, exact work over compulsory traffic")
    whole = alt.Chart(alt.InlineData(values=table)).encode(
        x=x, y=alt.Y("y:Q", scale=scale, axis=y_axis, title="FLOP/s")
    )
    backends = whole.transform_filter("datum.kind == 'point'").encode(color=color)
    layers = [
        whole.transform_filter("datum.kind == 'bound'").mark_line(color=drawing.INK, strokeWidth=1.2),
        backends.mark_line(strokeWidth=1, opacity=0.5).encode(detail="trail:N", order="n:Q"),
        backends.mark_point(filled=True, size=50, opacity=1).encode(
            shape=shape, tooltip=["label:N", "x:Q", "y:Q", "share:Q", "bound:N", "note:N"]
        ),
    ]
    return alt.LayerChart(layer=layers, width=drawing.WIDTH, height=drawing.HEIGHT)
