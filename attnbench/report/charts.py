"""Every chart, defined once, in Vega-Lite by altair; `plots` renders them. Data in, chart out; nothing is read here.

Rules of all: units on the axes; a log2 sequence axis with real values; ratios on a log axis; intervals always drawn; no
line across a case that is missing; refusals marked at the top edge with their reason; device, dtype and shape below the
title.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attnbench.ceilings import Ceilings
from attnbench.frame import Roofs, Row
from attnbench.metrics import METRICS
from attnbench.report import summary
from attnbench.report.style import in_order, look

WIDTH, HEIGHT = 320, 240
COLUMNS = 2
Chart = Any  # altair has no stubs that mypy could follow
PANEL = ("dtype", "mode", "mask", "head_dim", "heads", "batch", "device")


def latency(rows: Sequence[Row], caption: str) -> Chart | None:
    """Seconds a call over the length, log-log, a panel for everything else that varies."""
    return _lines(
        rows, "time_s", "time of a call", caption, unit="s", ends=("time_low_s", "time_high_s"), refusals=True
    )


def throughput(rows: Sequence[Row], caption: str) -> Chart | None:
    """FLOP/s over the length, from the exact visible pairs."""
    return _lines(rows, "flop_per_s", "FLOP/s, exact pairs", caption, unit="FLOP/s", log=False, ends=_inverse_ends)


def speedup(rows: Sequence[Row], caption: str) -> Chart | None:
    """Times faster than the reference arm, log2, 1 in the middle."""
    measured = [row for row in rows if row["speedup"] is not None]
    return _lines(
        measured,
        "speedup",
        "speed-up over the reference",
        caption,
        unit="x",
        base=2,
        ends=("speedup_low", "speedup_high"),
        rule=1.0,
    )


def memory(rows: Sequence[Row], caption: str) -> Chart | None:
    """Peak bytes of a call over the length, outputs too."""
    return _lines(rows, "total_bytes", "peak memory of a call", caption, unit="B", base=2, refusals=True)


def error(rows: Sequence[Row], caption: str) -> Chart | None:
    """Root mean square error against float64, of the worst output."""
    return _lines(rows, "rms_err", "rms error against float64", caption)


CHARTS: dict[str, Callable[[Sequence[Row], str], Chart | None]] = {
    "latency": latency,
    "throughput": throughput,
    "speedup": speedup,
    "memory": memory,
    "error": error,
}


def roofline(rows: Sequence[Row], roofs: Roofs, caption: str) -> Chart | None:
    """FLOP/s over intensity beneath the measured ceilings, a panel for each device and dtype."""
    measured = [row for row in rows if row["roofline_share"] is not None and row["device"] in roofs]
    if not measured:
        return None
    import altair as alt

    data: list[dict[str, Any]] = []
    for row in measured:
        data.append(
            {
                "kind": "point", "x": row["intensity"], "y": row["flop_per_s"], "arm": row["arm_name"],
                "label": row["label"], "share": row["roofline_share"], "bound": row["bound"],
                "panel": f"{row['device']} {row['dtype']}", "note": row["notes"] or "",
            }
        )  # fmt: skip
    panels = list(dict.fromkeys(point["panel"] for point in data))
    for row in {(row["device"], row["dtype"]): row for row in measured}.values():
        own = [point["x"] for point in data if point["panel"] == f"{row['device']} {row['dtype']}"]
        data += _ceiling(roofs[row["device"]], row["dtype"], f"{row['device']} {row['dtype']}", min(own), max(own))
    arms = in_order(point["arm"] for point in data if "arm" in point)
    scale = alt.Scale(type="log", nice=False, padding=8)
    thin: dict[str, Any] = {"gridOpacity": 0.4, "tickCount": 4}
    spelled = alt.Axis(labelExpr=_SPELLED["FLOP/s"], **thin)
    x = alt.X("x:Q", scale=scale, axis=alt.Axis(**thin), title="FLOP a byte, exact work over compulsory traffic")
    y = alt.Y("y:Q", scale=scale, axis=spelled, title="FLOP/s")
    color = alt.Scale(domain=arms, range=[look(arm).color for arm in arms])
    shape = alt.Scale(domain=arms, range=[look(arm).shape for arm in arms])
    whole = alt.Chart(alt.InlineData(values=data)).encode(x=x, y=y)
    points = whole.transform_filter("datum.kind == 'point'").mark_point(filled=True, size=50, opacity=1)
    layers = [
        whole.transform_filter("datum.kind == 'roof'").mark_line(color=INK, strokeWidth=1.2),
        points.encode(
            color=alt.Color("arm:N", scale=color, title=None),
            shape=alt.Shape("arm:N", scale=shape, title=None),
            tooltip=["label:N", "x:Q", "y:Q", "share:Q", "bound:N", "note:N"],
        ),
    ]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    best = max(measured, key=lambda row: row["roofline_share"])
    finding = f"{best['arm_name']} comes nearest to its roof: {best['roofline_share']:.0%}, bound by {best['bound']}"
    if len(panels) > 1:
        drawn = drawn.facet(facet=alt.Facet("panel:N", title=None, sort=panels), columns=COLUMNS)
    return _painted(drawn.properties(title=alt.TitleParams(finding, subtitle=[caption], anchor="start", fontSize=13)))


def _ceiling(known: Ceilings, dtype: str, panel: str, low: float, high: float) -> list[dict[str, Any]]:
    """The roof as a line: memory up to the ridge, then the burst rate of matrix products."""
    rate, memory = known.matmul.get(dtype), known.memory
    if rate is None or memory is None:
        return []
    ridge = rate.burst / memory
    ends = sorted({min(low, ridge) / 2, ridge, max(high, ridge) * 2})
    return [{"kind": "roof", "panel": panel, "x": x, "y": min(rate.burst, memory * x)} for x in ends]


def custom(rows: Sequence[Row], x: str, y: str, by: str, panels: Sequence[str] | None, caption: str) -> Chart | None:
    """Any metric over any axis, by the same rules."""
    metric = METRICS[y]
    ends = {
        "time_s": ("time_low_s", "time_high_s"),
        "speedup": ("speedup_low", "speedup_high"),
        "flop_per_s": _inverse_ends,
    }
    unit = metric.unit if metric.unit in _SPELLED else "any"
    log = metric.unit in ("s", "B", "") and y != "speedup"
    return _lines(
        rows, y, y, caption, unit=unit, log=log, base=2 if unit == "B" else 10, ends=ends.get(y),
        refusals=y in ("time_s", "total_bytes", "peak_bytes"), x=x, by=by, panels=panels,
        heading=f"{y}: {metric.summary}",
    )  # fmt: skip


def caption_of(rows: Sequence[Row], version: str) -> str:
    """Device, what all cases share, and the version: what stands below a title."""
    names = ("device", "dtype", "mode", "mask", "batch", "heads", "head_dim")
    shared = (
        [f"{_WORD.get(name, '')}{rows[0][name]}" for name in names if len({row[name] for row in rows}) == 1]
        if rows
        else []
    )
    interval = next((row["interval"] for row in rows if row["interval"]), "")
    return ", ".join([*map(str, shared), f"95 % intervals {interval}" if interval else "", f"attnbench {version}"])


_WORD = {"batch": "batch ", "heads": "heads ", "head_dim": "head_dim "}


def axis_of(rows: Sequence[Row]) -> str:
    """The numeric axis with the most values: what a line is drawn along."""
    return max(("seq_q", "seq_kv", "batch", "heads", "head_dim"), key=lambda name: len({row[name] for row in rows}))


def _inverse_ends(row: Row) -> tuple[float | None, float | None]:
    """Ends of FLOP/s from those of the time."""
    return tuple(row["flops"] / row[name] if row[name] else None for name in ("time_high_s", "time_low_s"))  # type: ignore[return-value]


def _lines(
    rows: Sequence[Row], value: str, title: str, caption: str, *, unit: str = "", log: bool = True, base: int = 10,
    ends: Any = None, refusals: bool = False, rule: float | None = None, x: str = "", by: str = "arm_name",
    panels: Sequence[str] | None = None, heading: str = "",
) -> Chart | None:  # fmt: skip
    """A value over `x`, by default the axis that varies most, a line for each `by`; None where nothing can be drawn."""
    measured = [row for row in rows if _drawable(row[value])]
    if not measured:
        return None
    import altair as alt

    x = x or axis_of(rows)
    panels = _panels(rows, x) if panels is None else panels
    data = [_point(row, x, value, ends, panels, by) for row in measured if _drawable(row[x])]
    if not data:
        return None
    _segment(data, rows, x, panels)
    # Numbers by size, words by their first appearance.
    ordered = sorted(rows, key=lambda row: [row[name] if isinstance(row[name], int) else 0 for name in panels])
    drawn_panels = {point["panel"] for point in data}
    named = [panel for panel in dict.fromkeys(_panel(row, panels) for row in ordered) if panel in drawn_panels]
    data += _refusals(rows, x, panels, by) if refusals else []
    data += [{"kind": "rule", "panel": panel, "y": rule} for panel in named] if rule is not None else []
    scale = alt.Scale(type="log", base=base) if log else alt.Scale(zero=True)
    ticks = {"values": _ticks(data)} if log and base == 10 else {"tickCount": 6}
    axis = alt.Axis(labelExpr=_SPELLED[unit], gridOpacity=0.5, **ticks)

    def upward(field: str) -> Any:
        return alt.Y(f"{field}:Q", scale=scale, title=title, axis=axis)

    # One table for all layers: a chart of panels takes no other.
    whole = alt.Chart(alt.InlineData(values=data))
    drawn = alt.layer(*_layers(whole, data, x, upward)).properties(width=WIDTH, height=HEIGHT)
    finding = summary.sentence(rows) if unit in ("s", "FLOP/s", "x") else heading or title
    above = alt.TitleParams(finding, subtitle=[caption], anchor="start", fontSize=13)
    if len(named) > 1:
        drawn = drawn.facet(facet=alt.Facet("panel:N", title=None, sort=named), columns=COLUMNS)
    drawn = drawn.properties(title=above)
    return _painted(drawn)


def _painted(chart: Chart) -> Chart:
    """Text and lines in the colour of the page that the chart stands on; black where it stands alone."""
    ink = {"labelColor": INK, "titleColor": INK}
    return (
        chart.configure_view(strokeWidth=0.5, stroke=FAINT)
        .configure_axis(**ink, domainColor=INK, tickColor=INK, gridColor=FAINT)
        .configure_legend(**ink, symbolSize=60, labelLimit=300)
        .configure_title(color=INK, subtitleColor=INK)
        .configure_header(**ink)
    )


INK, FAINT = "currentColor", "#88888866"


def _layers(whole: Chart, data: Sequence[Mapping[str, Any]], x: str, upward: Callable[[str], Any]) -> Iterator[Chart]:
    """Bands and lines, intervals, points; the even line; the refusals at the top edge."""
    import altair as alt

    arms = in_order(one["arm"] for one in data if "arm" in one)
    kinds = {one["kind"] for one in data}
    values = sorted({one["x"] for one in data if "x" in one})
    along = alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(values=values, labelExpr=_SHORT, labelOverlap=True, grid=False),
        title={"seq_q": "sequence length", "seq_kv": "key length"}.get(x, x.replace("_", " ")),
    )

    def of_arm(channel: Any, drawn: list[Any], **options: Any) -> Any:
        return channel("arm:N", scale=alt.Scale(domain=arms, range=drawn), title=None, **options)

    color = of_arm(alt.Color, [look(arm).color for arm in arms], legend=alt.Legend(symbolOpacity=1))
    shape = of_arm(alt.Shape, [look(arm).shape for arm in arms])
    dash = of_arm(alt.StrokeDash, [list(look(arm).dash) for arm in arms])
    points = whole.transform_filter("datum.kind == 'point'").encode(x=along, color=color)
    y, band = upward("y"), {"y": upward("low"), "y2": "high:Q"}
    yield points.mark_area(opacity=0.18, line=False).encode(**band, detail="segment:N")
    yield points.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash, detail="segment:N")
    yield points.mark_rule(strokeWidth=1.2).encode(**band)
    yield points.mark_point(filled=True, size=44, opacity=1).encode(y=y, shape=shape, tooltip=_TOOLTIP)
    if "rule" in kinds:
        even = whole.transform_filter("datum.kind == 'rule'").mark_rule(strokeDash=[4, 4], color="#888888")
        yield even.encode(y=y)
    if "refusal" in kinds:
        cross = whole.transform_filter("datum.kind == 'refusal'").mark_point(shape="cross", angle=45, size=50)
        yield cross.encode(x=along, color=color, y=alt.value(4), tooltip=["label:N", "reason:N"])


_TOOLTIP = ["label:N", "y:Q", "low:Q", "high:Q", "place:N"]
# 512, 1k, 2k
_SHORT = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
_SPELLED = {
    "": "format(datum.value, '.0e')",
    "s": "datum.value >= 1 ? format(datum.value, '~g') + ' s' : datum.value >= 1e-3 "
    "? format(datum.value * 1e3, '~g') + ' ms' : format(datum.value * 1e6, '~g') + ' us'",
    "B": "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~r') + ' GiB' : datum.value >= 1048576 "
    "? format(datum.value / 1048576, '~r') + ' MiB' : format(datum.value / 1024, '~r') + ' KiB'",
    "any": "format(datum.value, '~s')",
    "FLOP/s": "format(datum.value, '~s')",
    "x": "format(datum.value, '~g') + 'x'",
}


def _ticks(data: Sequence[Mapping[str, Any]]) -> list[float]:
    """1, 2, 5 and their multiples by ten within what is drawn; over more than three decades the powers of ten alone."""
    values = [one[name] for one in data if one["kind"] == "point" for name in ("low", "high")]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _panels(rows: Sequence[Row], x: str) -> list[str]:
    """The columns that vary beside the axis: each of their values gets a panel."""
    return [name for name in PANEL if name != x and len({row[name] for row in rows}) > 1]


def _panel(row: Row, panels: Iterable[str]) -> str:
    return ", ".join(f"{_WORD.get(name, '')}{row[name]}" for name in panels)


def _point(row: Row, x: str, value: str, ends: Any, panels: Sequence[str], by: str) -> dict[str, Any]:
    low, high = ends(row) if callable(ends) else (row[ends[0]], row[ends[1]]) if ends else (None, None)
    y = row[value]
    return {
        "kind": "point", "x": row[x], "y": y,
        "low": low if _drawable(low) else y, "high": high if _drawable(high) else y,
        "arm": str(row[by]), "label": row["label"], "panel": _panel(row, panels), "place": row["place"] or "",
        "t": row["time_s"], "t_low": row["time_low_s"], "t_high": row["time_high_s"],  # for another reference
    }  # fmt: skip


def _segment(data: list[dict[str, Any]], rows: Sequence[Row], x: str, panels: Sequence[str]) -> None:
    """Number the stretches of each line that no missing case interrupts."""
    planned: dict[str, list[float]] = {}
    for row in rows:
        planned.setdefault(_panel(row, panels), []).append(row[x])
    steps = {panel: sorted(set(values)) for panel, values in planned.items()}
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for point in sorted(data, key=lambda one: one["x"]):
        place = steps[point["panel"]].index(point["x"])
        before, number = last.get((point["panel"], point["arm"]), (place - 1, 0))
        number += before != place - 1
        last[point["panel"], point["arm"]] = place, number
        point["segment"] = f"{point['arm']} {number}"


def _refusals(rows: Sequence[Row], x: str, panels: Sequence[str], by: str) -> list[dict[str, Any]]:
    return [
        {
            "kind": "refusal", "x": row[x], "arm": str(row[by]), "label": row["label"], "panel": _panel(row, panels),
            "reason": f"{row['status']}: {row['reason']}",
        }
        for row in rows
        if row["time_s"] is None and _drawable(row[x])
    ]  # fmt: skip
