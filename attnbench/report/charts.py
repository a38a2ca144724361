"""The charts of what was measured, each defined once: a quantity over the length, a panel for all else that varies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnbench import datasheet, units
from attnbench.frame import NONE, Roofs, Row
from attnbench.metrics import METRICS
from attnbench.report import drawing, summary
from attnbench.report.drawing import Chart, Measure, Point

BARS_MOST = 40  # of one panel; more are drawn as lines
CEILING_FAR = 5  # times above all that was measured: a ceiling is named below the title and not drawn

_TIME = Measure(
    column="time_s", title="time of a call", unit="s", ends=("time_low_s", "time_high_s"), refusals=True
)  # fmt: skip
_SPEEDUP = Measure(
    column="speedup", title="speed-up over the reference", unit="x", base=2, ends=("speedup_low", "speedup_high"),
    rules=lambda points: [{"kind": "rule", "y": 1.0}],
)  # fmt: skip


def latency(rows: Sequence[Row], caption: str, most: int = drawing.PANELS_MOST) -> Chart | None:
    """Seconds a call over the length, log-log."""
    found = drawing.data(rows, _TIME, panels_most=most)
    return found and drawing.lines(found, _TIME, summary.sentence(rows), caption)


def throughput(rows: Sequence[Row], caption: str, roofs: Roofs = NONE) -> Chart | None:
    """FLOP/s from the exact visible pairs, from 0, beneath the measured peak and that of the data sheet."""
    said: dict[str, None] = {}
    shown = Measure(
        column="flop_per_s", title="FLOP/s, exact pairs", unit="FLOP/s", log=False, ends=_inverse_ends,
        rules=lambda points: _peaks(points, roofs, said),
    )  # fmt: skip
    found = drawing.data(rows, shown)
    if found is None:
        return None
    rule = "FLOPs of the visible pairs, 2 for a multiply and add; the table has the half-for-causal figure beside it"
    below = "; ".join([rule, *said])
    bars = len(found.values) * len(found.arms) <= BARS_MOST
    drawn = _bars(found, shown) if bars else drawing.layered(found, shown)
    heading = summary.sentence(rows)
    return drawing.titled(drawing.faceted(drawn, found.panels), heading, caption, below, found.left_out)


def speedup(rows: Sequence[Row], caption: str, most: int = drawing.PANELS_MOST) -> Chart | None:
    """Times faster than the reference arm, log2, 1 in the middle."""
    measured = [row for row in rows if row["speedup"] is not None]
    found = drawing.data(measured, _SPEEDUP, panels_most=most)
    return found and drawing.lines(found, _SPEEDUP, summary.sentence(rows), caption)


def memory(rows: Sequence[Row], caption: str) -> Chart | None:
    """Peak bytes of a call over the length, outputs too, beside what O(n) and O(n^2) would be."""
    seq = drawing.axis_of(rows) in ("seq_q", "seq_kv") if rows else False
    shown = Measure(
        column="total_bytes", title="peak memory of a call", unit="B", base=2, refusals=True,
        rules=_growth if seq else lambda points: (),
    )  # fmt: skip
    found = drawing.data(rows, shown)
    return found and drawing.lines(found, shown, "Peak memory of a call, with its outputs", caption)


def error(rows: Sequence[Row], caption: str) -> Chart | None:
    """Root mean square error against float64, of the worst output."""
    shown = Measure(column="rms_err", title="rms error against float64")
    found = drawing.data(rows, shown)
    return found and drawing.lines(found, shown, "Error against float64, of the worst output", caption)


def custom(rows: Sequence[Row], x: str, y: str, by: str, panels: Sequence[str] | None, caption: str) -> Chart | None:
    """Any metric over any axis, by the same rules."""
    metric = METRICS[y]
    ends = {
        "time_s": ("time_low_s", "time_high_s"),
        "speedup": ("speedup_low", "speedup_high"),
        "flop_per_s": _inverse_ends,
    }
    unit = metric.unit if metric.unit in drawing.SPELLED else "any"
    shown = Measure(
        column=y, title=y, unit=unit, log=metric.unit in ("s", "B", "") and y != "speedup",
        base=2 if unit == "B" else 10, ends=ends.get(y), refusals=y in ("time_s", "total_bytes", "peak_bytes"),
    )  # fmt: skip
    found = drawing.data(rows, shown, x=x, by=by, panels=panels)
    heading = summary.sentence(rows) if unit in ("s", "FLOP/s") else f"{y}: {metric.summary}"
    return found and drawing.lines(found, shown, heading, caption)


def _inverse_ends(row: Row) -> tuple[float | None, float | None]:
    """Ends of FLOP/s from those of the time."""
    return tuple(row["flops"] / row[name] if row[name] else None for name in ("time_high_s", "time_low_s"))  # type: ignore[return-value]


def _peaks(points: Sequence[Point], roofs: Roofs, said: dict[str, None]) -> Iterator[Point]:
    """The peaks of a panel's device and dtype; those far above everything go to `said` instead."""
    top = max(point["high"] for point in points)
    for device, dtype in dict.fromkeys((point["device"], point["dtype"]) for point in points):
        known = roofs.get(device)
        rate = known.matmul.get(dtype) if known else None
        sheet = datasheet.sheet(known.name) if known else None
        peaks = {"measured peak": rate.burst if rate else None}
        peaks["data sheet"] = sheet.flop_per_s.get(dtype) if sheet else None
        for name, peak in peaks.items():
            if peak is None:
                continue
            words = f"{name} {units.rate(peak, 'FLOP/s')}"
            if peak > CEILING_FAR * top:
                said[f"{words} ({dtype}) is far above"] = None
            else:
                yield {"kind": "peak", "y": peak, "label": words}


def _growth(points: Sequence[Point]) -> Iterator[Point]:
    """Lines of slope 1 and 2 from the least point at the shortest length."""
    left, right = min(point["x"] for point in points), max(point["x"] for point in points)
    start = min(point["y"] for point in points if point["x"] == left)
    if right > left:
        for power, label in ((1, "O(n)"), (2, "O(n²)")):
            end = start * (right / left) ** power
            yield {"kind": "guide", "x": left, "y": start, "label": label, "last": False}
            yield {"kind": "guide", "x": right, "y": end, "label": label, "last": True}


def _bars(found: drawing.Data, shown: Measure) -> Chart:
    """A bar for each arm beside its value, from 0, with its interval."""
    import altair as alt

    for point in found.points:
        if point["kind"] == "point":
            point["value"] = units.rate(point["y"], "").strip()
    whole = alt.Chart(alt.InlineData(values=found.points))
    axis = alt.Axis(labelExpr=drawing.SPELLED[shown.unit], gridOpacity=0.5, tickCount=6)
    title = drawing.AXIS_TITLES.get(found.axis, found.axis.replace("_", " "))
    y = alt.Y("y:Q", title=shown.title, axis=axis, scale=alt.Scale(zero=True))
    names = alt.Axis(labelAngle=0, grid=False, labelExpr=drawing.SHORT)
    right = alt.X("x:O", title=title, axis=names)
    beside = alt.XOffset("arm:N", sort=found.arms, scale=alt.Scale(domain=found.arms))
    bars = whole.transform_filter("datum.kind == 'point'").encode(x=right, xOffset=beside)
    layers = [
        bars.mark_bar(opacity=0.85).encode(
            y=y, color=drawing.of_arm(alt.Color, found.arms, legend=alt.Legend()), tooltip=drawing.TOOLTIP
        ),
        bars.mark_rule(color=drawing.INK, strokeWidth=1).encode(y=alt.Y("low:Q"), y2="high:Q"),
        bars.mark_text(angle=270, align="left", dx=5, fontSize=8, color=drawing.INK).encode(
            y=alt.Y("high:Q"), text="value:N"
        ),
    ]
    if any(point["kind"] == "peak" for point in found.points):
        layers += drawing.peaks(whole, y)
    return alt.layer(*layers).properties(width=drawing.WIDTH, height=drawing.HEIGHT)
