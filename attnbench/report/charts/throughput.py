"""FLOP/s over the length, below the measured peak and that of the data sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attnbench import units
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.analysis.rows import Row
from attnbench.machine import datasheet
from attnbench.report import summary
from attnbench.report.charts import drawing
from attnbench.report.charts.drawing import Point

if TYPE_CHECKING:
    import altair as alt

MAX_BARS = 40  # of one panel; more are drawn as lines
MAX_PEAK_RATIO = 5  # a peak more than this times above every value is named below the title, not drawn
RULE = "FLOPs of the visible pairs, 2 for a multiply and add; the table has the half-for-causal figure beside it"


def chart(rows: Sequence[Row], caption: str, ceilings: CeilingsByDevice = NO_CEILINGS) -> drawing.Chart | None:
    """FLOP/s of the exact visible pairs, from 0; bars if there are few values, else lines."""
    far_peaks: dict[str, None] = {}
    rate = drawing.Quantity(
        column="flop_per_s", title="FLOP/s, exact pairs", unit="FLOP/s", log=False, interval=interval,
        guides=lambda points: _peaks(points, ceilings, far_peaks),
    )  # fmt: skip
    data = drawing.plot_data(rows, rate)
    if data is None:
        return None
    bars = len(data.values) * len(data.arms) <= MAX_BARS
    panel = _bars(data, rate) if bars else drawing.layered(data, rate)
    below = "; ".join([RULE, *far_peaks])
    return drawing.titled(drawing.faceted(panel, data.panels), summary.sentence(rows), caption, below, data.left_out)


def interval(row: Row) -> tuple[float | None, float | None]:
    """The ends of FLOP/s, from those of the time."""
    low, high = row.time_low_s, row.time_high_s
    return row.flops / high if high else None, row.flops / low if low else None


def _peaks(points: Sequence[Point], ceilings: CeilingsByDevice, far_peaks: dict[str, None]) -> Iterator[Point]:
    """The peaks of a panel's devices and dtypes; those far above every value are added to `far_peaks` instead."""
    top = max(point["high"] for point in points)
    for device, dtype in dict.fromkeys((point["device"], point["dtype"]) for point in points):
        of_device = ceilings.get(device)
        if of_device is None:
            continue
        rate, sheet = of_device.matmul.get(dtype), datasheet.sheet(of_device.name)
        peaks = {
            "measured peak": rate.burst if rate else None,
            "data sheet": sheet.flop_per_s.get(dtype) if sheet else None,
        }
        for name, peak in peaks.items():
            if peak is None:
                continue
            label = f"{name} {units.rate(peak, 'FLOP/s')}"
            if peak > MAX_PEAK_RATIO * top:
                far_peaks[f"{label} ({dtype}) is far above"] = None
            else:
                yield {"kind": "peak", "y": peak, "label": label}


def _bars(data: drawing.PlotData, rate: drawing.Quantity) -> alt.LayerChart:
    """The bars of one panel, grouped by length, each with its value and interval."""
    import altair as alt

    for point in data.points:
        if point["kind"] == "point":
            point["value"] = units.rate(point["y"], "").strip()
    table = alt.Chart(alt.InlineData(values=data.points))
    axis = alt.Axis(labelExpr=drawing.UNIT_LABELS[rate.unit], gridOpacity=0.5, tickCount=6)
    y = alt.Y("y:Q", title=rate.title, axis=axis, scale=alt.Scale(zero=True))
    lengths = alt.Axis(labelAngle=0, grid=False, labelExpr=drawing.LENGTH_LABELS)
    bars = table.transform_filter("datum.kind == 'point'").encode(
        x=alt.X("x:O", title=drawing.axis_title(data.axis), axis=lengths),
        xOffset=alt.XOffset("arm:N", sort=data.arms, scale=alt.Scale(domain=data.arms)),
    )
    layers: list[drawing.Chart] = [
        bars.mark_bar(opacity=0.85).encode(y=y, color=drawing.arm_looks(data.arms)[0], tooltip=drawing.TOOLTIP),
        bars.mark_rule(color=drawing.INK, strokeWidth=1).encode(y=alt.Y("low:Q"), y2="high:Q"),
        bars.mark_text(angle=270, align="left", dx=5, fontSize=8, color=drawing.INK).encode(
            y=alt.Y("high:Q"), text="value:N"
        ),
    ]
    if any(point["kind"] == "peak" for point in data.points):
        layers += drawing.peaks(table, y)
    return alt.LayerChart(layer=layers, width=drawing.WIDTH, height=drawing.HEIGHT)
