"""From rows to a chart: its points and panels, and how axes, intervals, segments and refusals are drawn.

Units are on the axes; lengths are on a log2 axis with the measured values; ratios are on a log axis; intervals are
always drawn; no line crosses a missing case; refusals are marked at the top edge with their reason; device, dtype and
shape are below the title.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from attnbench.analysis.rows import AXES, Row
from attnbench.report.charts.style import in_order, look

if TYPE_CHECKING:
    import altair as alt

    Chart = alt.Chart | alt.LayerChart | alt.FacetChart
else:
    Chart = object  # altair loads where a chart is drawn

WIDTH, HEIGHT = 320, 240  # pixels of a panel
COLUMNS = 2
INK, FAINT, GUIDE = "currentColor", "#88888866", "#888888"
TOOLTIP = ["label:N", "y:Q", "low:Q", "high:Q", "place:N"]
# Labels of axes as expressions of Vega: 512, 1k, 2k
LENGTH_LABELS = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
UNIT_LABELS = {
    "": "format(datum.value, '.0e')",
    "s": "datum.value >= 1 ? format(datum.value, '~g') + ' s' : datum.value >= 1e-3 "
    "? format(datum.value * 1e3, '~g') + ' ms' : format(datum.value * 1e6, '~g') + ' us'",
    "B": "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~r') + ' GiB' : datum.value >= 1048576 "
    "? format(datum.value / 1048576, '~r') + ' MiB' : format(datum.value / 1024, '~r') + ' KiB'",
    "any": "format(datum.value, '~s')",
    "FLOP/s": "format(datum.value, '~s')",
    "x": "format(datum.value, '~g') + 'x'",
}
MAX_PANELS = 12  # of one chart
MAX_POINTS = 3000
MAX_ROWS = 20_000  # with more, charts show the first panels only
MIN_LENGTHS = 3
_FOLLOWERS = ("kv_heads", "seq_q", "seq_kv", "head_dim_v", "scale", "lengths", "page_size")  # of other numbers, often
Point = dict[str, Any]  # one row of the chart's table; `kind` says which layers draw it
_PANELS_FIRST = ("dtype", "mode", "mask", "head_dim", "heads", "kv_heads", "batch", "device", "run")
PANEL_COLUMNS = (*_PANELS_FIRST, *(name for name in AXES if name not in _PANELS_FIRST))

_PREFIXES = {name: f"{name} " for name in ("batch", "heads", "head_dim")} | {
    "seq_q": "seq ",
    "seq_kv": "key length ",
    "kv_heads": "kv heads ",
}
# The columns of the two ends, or a function of a row that returns them.
Interval = tuple[str, str] | Callable[[Row], tuple[float | None, float | None]]


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """What a chart shows upwards, and how."""

    column: str
    title: str
    unit: str = ""
    log: bool = True
    base: int = 10
    interval: Interval | None = None
    refusals: bool = False  # whether cases without a time are marked
    guides: Callable[[Sequence[Point]], Iterable[Point]] = lambda points: ()  # extra marks of a panel, from its points


class PlotData(msgspec.Struct, frozen=True, kw_only=True):
    """The table of a chart, its panels in order, and what was left out of it."""

    points: list[Point]
    panels: list[str]
    axis: str
    left_out: str = ""

    @property
    def arms(self) -> list[str]:
        """Those with points or refusals, known backends first."""
        return in_order(point["arm"] for point in self.points if "arm" in point)

    @property
    def values(self) -> list[float]:
        return sorted({point["x"] for point in self.points if point["kind"] in ("point", "refusal")})


def line_chart(
    rows: Sequence[Row], quantity: Quantity, heading: str, caption: str, x: str = "", by: str = "arm_name",
    panels: Sequence[str] | None = None, max_panels: int = MAX_PANELS,
) -> Chart | None:  # fmt: skip
    """A line for each arm, with bands, intervals, refusals and guides; None if nothing was measured."""
    data = plot_data(rows, quantity, x, by, panels, max_panels)
    if data is None:
        return None
    return titled(faceted(layered(data, quantity), data.panels), heading, caption, data.left_out)


def layered(data: PlotData, quantity: Quantity) -> alt.LayerChart:
    """The layers of one panel."""
    import altair as alt

    scale = alt.Scale(type="log", base=quantity.base) if quantity.log else alt.Scale(zero=True)
    if quantity.log and quantity.base == 10:
        axis = alt.Axis(labelExpr=UNIT_LABELS[quantity.unit], gridOpacity=0.5, values=_ticks(data.points))
    else:
        axis = alt.Axis(labelExpr=UNIT_LABELS[quantity.unit], gridOpacity=0.5, tickCount=6)

    def y_axis(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, title=quantity.title, axis=axis)

    # Vega-Lite facets a layered chart only if all layers share one table.
    table = alt.Chart(alt.InlineData(values=data.points))
    layers = [*_lines(table, data, y_axis), *_marks(table, data, y_axis("y"))]
    return alt.LayerChart(layer=layers, width=WIDTH, height=HEIGHT)


def faceted(panel: alt.LayerChart, panels: Sequence[str]) -> alt.LayerChart | alt.FacetChart:
    """The layers of one panel, repeated for each panel if there are several."""
    import altair as alt

    if len(panels) < 2:
        return panel
    return panel.facet(facet=alt.Facet("panel:N", title=None, sort=list(panels)), columns=COLUMNS)


def titled(chart: Chart, heading: str, *below: str) -> Chart:
    """Add a title and lines below it, in the text colour of the page that holds the chart; black in a file."""
    import altair as alt

    ink = {"labelColor": INK, "titleColor": INK}
    title = alt.TitleParams(heading, subtitle=[line for line in below if line], anchor="start", fontSize=13)
    titled: Chart = (
        chart.properties(title=title)
        .configure_view(strokeWidth=0.5, stroke=FAINT)
        .configure_axis(**ink, domainColor=INK, tickColor=INK, gridColor=FAINT)
        .configure_legend(**ink, symbolSize=60, labelLimit=300)
        .configure_title(color=INK, subtitleColor=INK)
        .configure_header(**ink, labelLimit=WIDTH)
    )
    return titled


def arm_looks(arms: Iterable[str]) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """The colour of each arm, with a legend, its marker, and the dashes of its line."""
    import altair as alt

    arms = in_order(arms)
    colors, shapes, dashes = (
        alt.Scale(domain=arms, range=[getattr(look(arm), part) for arm in arms]) for part in ("color", "shape", "dash")
    )
    color = alt.Color("arm:N", scale=colors, title=None, legend=alt.Legend(symbolOpacity=1))
    return color, alt.Shape("arm:N", scale=shapes, title=None), alt.StrokeDash("arm:N", scale=dashes, title=None)


def x_axis(data: PlotData) -> alt.X:
    """A log2 axis with ticks at the measured values."""
    import altair as alt

    return alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(values=data.values, labelExpr=LENGTH_LABELS, labelOverlap=True, grid=False),
        title=axis_title(data.axis),
    )


def axis_title(name: str) -> str:
    """The title of an axis of the problem."""
    return {"seq_q": "sequence length", "seq_kv": "key length"}.get(name, name.replace("_", " "))


def peaks(table: alt.Chart, y: alt.Y) -> list[Chart]:
    """The points of kind `peak` as horizontal lines with their names."""
    import altair as alt

    peak = table.transform_filter("datum.kind == 'peak'").encode(y=y)
    names = peak.mark_text(align="left", dy=-5, color=GUIDE, fontSize=10)
    return [peak.mark_rule(strokeDash=[6, 3], color=GUIDE), names.encode(x=alt.value(4), text="label:N")]


def _lines(table: alt.Chart, data: PlotData, y_axis: Callable[[str], alt.Y]) -> Iterator[Chart]:
    """Bands, lines, intervals and points of each arm."""
    color, shape, dash = arm_looks(data.arms)
    points = table.transform_filter("datum.kind == 'point'").encode(x=x_axis(data), color=color)
    low, high = y_axis("low"), "high:Q"
    yield points.mark_area(opacity=0.18, line=False).encode(y=low, y2=high, detail="segment:N")
    yield points.mark_line(strokeWidth=1.6).encode(y=y_axis("y"), strokeDash=dash, detail="segment:N")
    yield points.mark_rule(strokeWidth=1.2).encode(y=low, y2=high)
    yield points.mark_point(filled=True, size=44, opacity=1).encode(y=y_axis("y"), shape=shape, tooltip=TOOLTIP)


def _marks(table: alt.Chart, data: PlotData, y: alt.Y) -> Iterator[Chart]:
    """The horizontal rule, guides, peaks and refusals that the table holds."""
    import altair as alt

    kinds = {point["kind"] for point in data.points}
    x = x_axis(data)
    if "rule" in kinds:
        even = table.transform_filter("datum.kind == 'rule'").mark_rule(strokeDash=[4, 4], color=GUIDE)
        yield even.encode(y=y)
    if "guide" in kinds:
        guide = table.transform_filter("datum.kind == 'guide'").encode(x=x, y=y)
        yield guide.mark_line(strokeDash=[2, 3], strokeWidth=1, color=GUIDE).encode(detail="label:N")
        names = guide.transform_filter("datum.last").mark_text(align="right", dx=-4, dy=-6, color=GUIDE, fontSize=10)
        yield names.encode(text="label:N")
    if "peak" in kinds:
        yield from peaks(table, y)
    if "refusal" in kinds:
        cross = table.transform_filter("datum.kind == 'refusal'").mark_point(shape="cross", angle=45, size=50)
        yield cross.encode(x=x, color=arm_looks(data.arms)[0], y=alt.value(4), tooltip=["label:N", "reason:N"])


def _ticks(points: Sequence[Point]) -> list[float]:
    """1, 2 and 5 times the powers of ten within the drawn range; over more than three decades the powers alone."""
    values = [point[name] for point in points if point["kind"] == "point" for name in ("low", "high")]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def plot_data(
    rows: Sequence[Row], quantity: Quantity, x: str = "", by: str = "arm_name", panels: Sequence[str] | None = None,
    max_panels: int = MAX_PANELS,
) -> PlotData | None:  # fmt: skip
    """A quantity over `x`, by default the axis that varies most, one line for each `by`; None if there is no point."""
    x = x or axis_of(rows)
    drawn = [row for row in rows if drawable(row.value(quantity.column)) and drawable(row.value(x))]
    if not drawn:
        return None
    panels = varying(rows, x) if panels is None else panels
    ordered = _panels_in_order(rows, panels, {panel_of(row, panels) for row in drawn})
    shown = set(ordered[:max_panels])
    rows = [row for row in rows if panel_of(row, panels) in shown]
    points = [_point(row, x, quantity, panels, by) for row in drawn if panel_of(row, panels) in shown]
    _number_segments(points, rows, x, panels)
    points += _refusals(rows, x, panels, by) if quantity.refusals else []
    points, step = _thin(points)
    for panel in shown:
        measured = [point for point in points if point["panel"] == panel and point["kind"] == "point"]
        points += [{"panel": panel, **guide} for guide in quantity.guides(measured)]
    cuts = [f"{len(shown)} of {len(ordered)} panels"] if len(ordered) > len(shown) else []
    cuts += [f"one of {step} values of {x} shown"] if step > 1 else []
    left_out = f"{', '.join(cuts)}; attnbench plot --only draws the others" if cuts else ""
    return PlotData(points=points, panels=ordered[:max_panels], axis=x, left_out=left_out)


def caption_of(rows: Sequence[Row], version: str) -> str:
    """The line below a title: device, what all cases share, the intervals, and the version."""
    names = ("device", "dtype", "mode", "mask", "batch", "heads", "head_dim") if rows else ()
    shared = [
        f"{_PREFIXES.get(name, '')}{rows[0].value(name)}"
        for name in names
        if len({row.value(name) for row in rows}) == 1
    ]
    interval = next((f"95 % intervals {row.interval}" for row in rows if row.interval), "")
    rounds = sorted({row.rounds for row in rows if row.rounds})
    spread = f"{rounds[0]}" + (f" to {rounds[-1]}" if len(rounds) > 1 else "") + " rounds" if rounds else ""
    return ", ".join(filter(None, [*shared, spread, interval, f"attnbench {version}"]))


def axis_of(rows: Sequence[Row]) -> str:
    """The axis of the lines: a length that takes MIN_LENGTHS values, else the numeric axis with the most values."""
    names = ("seq_q", "seq_kv", "batch", "heads", "head_dim")
    counts = {name: len({row.value(name) for row in rows}) for name in names}
    length = next((name for name in names[:2] if counts[name] >= MIN_LENGTHS), None)
    return length or max(counts, key=lambda name: counts[name])


def limit_rows(rows: list[Row]) -> tuple[list[Row], str]:
    """Keep the rows of the first panels if there are more than MAX_ROWS; say what that leaves out."""
    if len(rows) <= MAX_ROWS:
        return rows, ""
    columns = varying(rows, axis_of(rows))
    panels = [panel_of(row, columns) for row in rows]
    first = list(dict.fromkeys(panels))[:MAX_PANELS]
    charted = [row for row, panel in zip(rows, panels, strict=True) if panel in first]
    return charted, f"charts show {len(charted)} of {len(rows)} cases; attnbench plot --only draws the others"


def drawable(value: object) -> bool:
    """Whether a logarithmic axis can show the value."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def varying(rows: Sequence[Row], x: str) -> list[str]:
    """The columns that vary beside the axis, for panels; a number that follows another one is left out."""
    names = [name for name in PANEL_COLUMNS if name != x and len({row.value(name) for row in rows}) > 1]
    for name in reversed(names.copy()):
        if name in _FOLLOWERS and any(_follows(rows, name, leader) for leader in (x, *names) if leader != name):
            names.remove(name)
    return names


def _follows(rows: Sequence[Row], name: str, leader: str) -> bool:
    """Whether the value of one column determines that of the other."""
    pairs = {(row.value(leader), row.value(name)) for row in rows}
    return len(pairs) == len({leading for leading, _ in pairs})


def panel_of(row: Row, panels: Iterable[str]) -> str:
    """The heading of the panel that shows a row."""
    return ", ".join(
        f"{_PREFIXES.get(name, '' if name in _PANELS_FIRST else name + ' ')}{row.value(name)}" for name in panels
    )


def _panels_in_order(rows: Sequence[Row], panels: Sequence[str], drawn: set[str]) -> list[str]:
    """The panels with a point: numbers by size, words by their first appearance. Refusals alone make no panel."""

    def key(row: Row) -> list[int]:
        return [value if isinstance(value := row.value(name), int) else 0 for name in panels]

    return [panel for panel in dict.fromkeys(panel_of(row, panels) for row in sorted(rows, key=key)) if panel in drawn]


def _point(row: Row, x: str, quantity: Quantity, panels: Sequence[str], by: str) -> Point:
    y, low, high = row.value(quantity.column), None, None
    if callable(quantity.interval):
        low, high = quantity.interval(row)
    elif quantity.interval:
        low, high = map(row.number, quantity.interval)
    return {
        "kind": "point", "x": row.value(x), "y": y,
        "low": low if drawable(low) else y, "high": high if drawable(high) else y,
        "arm": str(row.value(by)), "label": row.name, "panel": panel_of(row, panels), "place": row.place or "",
        "device": row.device, "dtype": row.dtype,
        # The page computes speed-ups over another reference from these.
        "t": row.time_s, "t_low": row.time_low_s, "t_high": row.time_high_s,
    }  # fmt: skip


def _number_segments(points: Sequence[Point], rows: Sequence[Row], x: str, panels: Sequence[str]) -> None:
    """Number the segments of each line; a case without a value ends a segment."""
    planned: dict[str, set[float]] = {}
    for row in rows:
        planned.setdefault(panel_of(row, panels), set()).add(row.number(x) or 0.0)
    steps = {panel: {x: place for place, x in enumerate(sorted(values))} for panel, values in planned.items()}
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for point in sorted(points, key=lambda point: float(point["x"])):
        place = steps[point["panel"]][point["x"]]
        before, number = last.get((point["panel"], point["arm"]), (place - 1, 0))
        number += before != place - 1
        last[point["panel"], point["arm"]] = place, number
        point["segment"] = f"{point['arm']} {number}"


def _refusals(rows: Sequence[Row], x: str, panels: Sequence[str], by: str) -> list[Point]:
    return [
        {
            "kind": "refusal", "x": row.value(x), "arm": str(row.value(by)), "label": row.name,
            "panel": panel_of(row, panels), "reason": f"{row.status}: {row.reason}",
        }
        for row in rows
        if row.time_s is None and drawable(row.value(x))
    ]  # fmt: skip


def _thin(points: list[Point]) -> tuple[list[Point], int]:
    """Keep every n-th value along the axis and the last one, so that MAX_POINTS suffice; return n too."""
    values = sorted({point["x"] for point in points})
    step = math.ceil(len(points) / MAX_POINTS)
    if step == 1:
        return points, 1
    shown = {*values[::step], values[-1]}
    return [point for point in points if point["x"] in shown], step
