"""How every chart is drawn: panels, axes, intervals, segments, refusals, colours. `charts` and `diagrams` use it.

Rules of all: units on the axes; a log2 sequence axis with real values; ratios on a log axis; intervals always drawn; no
line across a case that is missing; refusals marked at the top edge with their reason; device, dtype and shape below the
title.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from attnbench.frame import Row
from attnbench.report.style import in_order, look

WIDTH, HEIGHT = 320, 240
COLUMNS = 2
PANELS_MOST = 12  # of one chart
POINTS_MOST = 3000
ROWS_MOST = 20_000  # beyond it charts look at the first panels alone
LENGTHS_LEAST = 3
Chart = Any  # altair has no stubs that mypy could follow
Point = dict[str, Any]
PANEL = (
    "dtype",
    "mode",
    "mask",
    "head_dim",
    "heads",
    "kv_heads",
    "batch",
    "device",
    "run",
)  # run: of a report of several
INK, FAINT, GUIDE = "currentColor", "#88888866", "#888888"

_WORD = {
    "batch": "batch ",
    "seq_q": "seq ",
    "seq_kv": "key length ",
    "heads": "heads ",
    "kv_heads": "kv heads ",
    "head_dim": "head_dim ",
}
# 512, 1k, 2k
SHORT = "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : datum.value"
SPELLED = {
    "": "format(datum.value, '.0e')",
    "s": "datum.value >= 1 ? format(datum.value, '~g') + ' s' : datum.value >= 1e-3 "
    "? format(datum.value * 1e3, '~g') + ' ms' : format(datum.value * 1e6, '~g') + ' us'",
    "B": "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~r') + ' GiB' : datum.value >= 1048576 "
    "? format(datum.value / 1048576, '~r') + ' MiB' : format(datum.value / 1024, '~r') + ' KiB'",
    "any": "format(datum.value, '~s')",
    "FLOP/s": "format(datum.value, '~s')",
    "x": "format(datum.value, '~g') + 'x'",
}
AXIS_TITLES = {"seq_q": "sequence length", "seq_kv": "key length"}


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What a chart shows upwards, and how."""

    column: str
    title: str
    unit: str = ""
    log: bool = True
    base: int = 10
    ends: Any = None  # two columns, or a function of a row: the interval
    refusals: bool = False
    rules: Callable[[Sequence[Point]], Iterable[Point]] = lambda points: ()  # guides, from the points of one panel


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The one table of a chart, its panels in order, and what was left out of it."""

    points: list[Point]
    panels: list[str]
    axis: str
    left_out: str = ""

    @property
    def arms(self) -> list[str]:
        """Those with points or refusals, in the registry's order."""
        return in_order(point["arm"] for point in self.points if "arm" in point)

    @property
    def values(self) -> list[float]:
        """Along the axis, rising."""
        return sorted({point["x"] for point in self.points if point["kind"] in ("point", "refusal")})


def caption_of(rows: Sequence[Row], version: str) -> str:
    """Device, what all cases share, how sure they are, and the version: what stands below a title."""
    names = ("device", "dtype", "mode", "mask", "batch", "heads", "head_dim")
    shared = (
        [f"{_WORD.get(name, '')}{rows[0][name]}" for name in names if len({row[name] for row in rows}) == 1]
        if rows
        else []
    )
    interval = next((row["interval"] for row in rows if row["interval"]), "")
    rounds = sorted({row["rounds"] for row in rows if row["rounds"]})
    spread = f"{rounds[0]}" + (f" to {rounds[-1]}" if len(rounds) > 1 else "") + " rounds" if rounds else ""
    ends = f"95 % intervals {interval}" if interval else ""
    return ", ".join(filter(None, [*map(str, shared), spread, ends, f"attnbench {version}"]))


def axis_of(rows: Sequence[Row]) -> str:
    """What lines are drawn along: the length, or where it hardly varies the numeric axis with the most values."""
    for name in ("seq_q", "seq_kv"):
        if len({row[name] for row in rows}) >= LENGTHS_LEAST:
            return name
    return max(("seq_q", "seq_kv", "batch", "heads", "head_dim"), key=lambda name: len({row[name] for row in rows}))


def focus(rows: list[Row]) -> tuple[list[Row], str]:
    """Of very many rows those of the first panels, and words on what that leaves out."""
    if len(rows) <= ROWS_MOST:
        return rows, ""
    panels = varying(rows, axis_of(rows))
    named = [panel_of(row, panels) for row in rows]
    first = list(dict.fromkeys(named))[:PANELS_MOST]
    kept = [row for row, panel in zip(rows, named, strict=True) if panel in first]
    return kept, f"charts show {len(kept)} of {len(rows)} cases; attnbench plot --only draws the others"


def data(
    rows: Sequence[Row], shown: Measure, x: str = "", by: str = "arm_name", panels: Sequence[str] | None = None,
    panels_most: int = PANELS_MOST,
) -> Data | None:  # fmt: skip
    """A value over `x`, by default the axis that varies most, for each `by`; None where nothing can be drawn."""
    if not any(drawable(row[shown.column]) for row in rows):
        return None
    x = x or axis_of(rows)
    panels = varying(rows, x) if panels is None else panels
    # Numbers by size, words by their first appearance.
    ordered = sorted(rows, key=lambda row: [row[name] if isinstance(row[name], int) else 0 for name in panels])
    drawn = {
        panel_of(row, panels) for row in rows if drawable(row[shown.column]) and drawable(row[x])
    }  # a panel of nothing but refusals would be empty
    every = [panel for panel in dict.fromkeys(panel_of(row, panels) for row in ordered) if panel in drawn]
    named = set(every[:panels_most])
    rows = [row for row in rows if panel_of(row, panels) in named]
    points = [_point(row, x, shown, panels, by) for row in rows if drawable(row[shown.column]) and drawable(row[x])]
    if not points:
        return None
    _segment(points, rows, x, panels)
    points += _refusals(rows, x, panels, by) if shown.refusals else []
    points, step = _thinned(points)
    for panel in named:
        own = [point for point in points if point["panel"] == panel and point["kind"] == "point"]
        points += [{"panel": panel, **guide} for guide in shown.rules(own)]
    said = [f"{len(named)} of {len(every)} panels"] if len(every) > len(named) else []
    said += [f"one of {step} values of {x} shown"] if step > 1 else []
    left_out = f"{', '.join(said)}; attnbench plot --only draws the others" if said else ""
    return Data(points=points, panels=every[:panels_most], axis=x, left_out=left_out)


def lines(found: Data, shown: Measure, heading: str, caption: str) -> Chart:
    """A line for each arm, with bands, intervals, refusals and guides."""
    return titled(faceted(layered(found, shown), found.panels), heading, caption, found.left_out)


def layered(found: Data, shown: Measure) -> Chart:
    """The layers of one panel."""
    import altair as alt

    scale = alt.Scale(type="log", base=shown.base) if shown.log else alt.Scale(zero=True)
    ticks = {"values": _ticks(found.points)} if shown.log and shown.base == 10 else {"tickCount": 6}
    axis = alt.Axis(labelExpr=SPELLED[shown.unit], gridOpacity=0.5, **ticks)

    def upward(field: str) -> Any:
        return alt.Y(f"{field}:Q", scale=scale, title=shown.title, axis=axis)

    # One table for all layers: a chart of panels takes no other.
    whole = alt.Chart(alt.InlineData(values=found.points))
    return alt.layer(*_layers(whole, found, upward)).properties(width=WIDTH, height=HEIGHT)


def faceted(drawn: Chart, panels: Sequence[str]) -> Chart:
    """The layers of one panel, in all panels that there are."""
    import altair as alt

    if len(panels) < 2:
        return drawn
    return drawn.facet(facet=alt.Facet("panel:N", title=None, sort=list(panels)), columns=COLUMNS)


def titled(drawn: Chart, heading: str, *below: str) -> Chart:
    """Text and lines in the colour of the page that the chart stands on; black where it stands alone."""
    import altair as alt

    ink = {"labelColor": INK, "titleColor": INK}
    above = alt.TitleParams(heading, subtitle=[line for line in below if line], anchor="start", fontSize=13)
    return (
        drawn.properties(title=above)
        .configure_view(strokeWidth=0.5, stroke=FAINT)
        .configure_axis(**ink, domainColor=INK, tickColor=INK, gridColor=FAINT)
        .configure_legend(**ink, symbolSize=60, labelLimit=300)
        .configure_title(color=INK, subtitleColor=INK)
        .configure_header(**ink, labelLimit=WIDTH)
    )


def of_arm(channel: Any, arms: Sequence[str], **options: Any) -> Any:
    """Colour, shape or dash of each arm, as the registry has them."""
    import altair as alt

    looks = [look(arm) for arm in arms]
    ways: dict[Any, list[Any]] = {
        alt.Color: [one.color for one in looks],
        alt.Shape: [one.shape for one in looks],
        alt.StrokeDash: [list(one.dash) for one in looks],
    }
    drawn = ways[channel]
    return channel("arm:N", scale=alt.Scale(domain=list(arms), range=drawn), title=None, **options)


def along(found: Data) -> Any:
    """The axis to the right: log2, with the values that were measured."""
    import altair as alt

    return alt.X(
        "x:Q",
        scale=alt.Scale(type="log", base=2, nice=False, padding=12),
        axis=alt.Axis(values=found.values, labelExpr=SHORT, labelOverlap=True, grid=False),
        title=AXIS_TITLES.get(found.axis, found.axis.replace("_", " ")),
    )


def _layers(whole: Chart, found: Data, upward: Callable[[str], Any]) -> Iterator[Chart]:
    """Bands and lines, intervals, points; guides; the refusals at the top edge."""
    import altair as alt

    kinds = {point["kind"] for point in found.points}
    right = along(found)
    color = of_arm(alt.Color, found.arms, legend=alt.Legend(symbolOpacity=1))
    points = whole.transform_filter("datum.kind == 'point'").encode(x=right, color=color)
    y, band = upward("y"), {"y": upward("low"), "y2": "high:Q"}
    yield points.mark_area(opacity=0.18, line=False).encode(**band, detail="segment:N")
    dash = of_arm(alt.StrokeDash, found.arms)
    yield points.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash, detail="segment:N")
    yield points.mark_rule(strokeWidth=1.2).encode(**band)
    shape = of_arm(alt.Shape, found.arms)
    yield points.mark_point(filled=True, size=44, opacity=1).encode(y=y, shape=shape, tooltip=TOOLTIP)
    if "rule" in kinds:
        even = whole.transform_filter("datum.kind == 'rule'").mark_rule(strokeDash=[4, 4], color=GUIDE)
        yield even.encode(y=y)
    if "guide" in kinds:
        guide = whole.transform_filter("datum.kind == 'guide'").encode(x=right, y=y)
        yield guide.mark_line(strokeDash=[2, 3], strokeWidth=1, color=GUIDE).encode(detail="label:N")
        named = guide.transform_filter("datum.last").mark_text(align="right", dx=-4, dy=-6, color=GUIDE, fontSize=10)
        yield named.encode(text="label:N")
    if "peak" in kinds:
        yield from peaks(whole, y)
    if "refusal" in kinds:
        cross = whole.transform_filter("datum.kind == 'refusal'").mark_point(shape="cross", angle=45, size=50)
        yield cross.encode(x=right, color=color, y=alt.value(4), tooltip=["label:N", "reason:N"])


def peaks(whole: Chart, y: Any) -> list[Chart]:
    """Ceilings as lines with their names."""
    import altair as alt

    peak = whole.transform_filter("datum.kind == 'peak'").encode(y=y)
    named = peak.mark_text(align="left", dy=-5, color=GUIDE, fontSize=10)
    return [peak.mark_rule(strokeDash=[6, 3], color=GUIDE), named.encode(x=alt.value(4), text="label:N")]


TOOLTIP = ["label:N", "y:Q", "low:Q", "high:Q", "place:N"]


def _ticks(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """1, 2, 5 and their multiples by ten within what is drawn; over more than three decades the powers of ten alone."""
    values = [one[name] for one in points if one["kind"] == "point" for name in ("low", "high")]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def drawable(value: Any) -> bool:
    """Whether it can stand on a logarithmic axis."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def varying(rows: Sequence[Row], x: str) -> list[str]:
    """The columns that vary beside the axis: each of their values gets a panel. What follows another is left out."""
    found = [name for name in PANEL if name != x and len({row.get(name) for row in rows}) > 1]
    for name, other in (("kv_heads", "heads"), ("seq_kv", "seq_q"), ("seq_q", "seq_kv")):
        leader = other if other in found or other == x else None
        if (
            name in found
            and leader
            and len({(row[name], row[other]) for row in rows}) == len({row[other] for row in rows})
        ):
            found.remove(name)
    return found


def panel_of(row: Row, panels: Iterable[str]) -> str:
    """The heading of the panel that a row stands in."""
    return ", ".join(f"{_WORD.get(name, '')}{row[name]}" for name in panels)


def _point(row: Row, x: str, shown: Measure, panels: Sequence[str], by: str) -> Point:
    ends, y = shown.ends, row[shown.column]
    low, high = ends(row) if callable(ends) else (row[ends[0]], row[ends[1]]) if ends else (None, None)
    return {
        "kind": "point", "x": row[x], "y": y,
        "low": low if drawable(low) else y, "high": high if drawable(high) else y,
        "arm": str(row[by]), "label": row["label"], "panel": panel_of(row, panels), "place": row["place"] or "",
        "device": row["device"], "dtype": row["dtype"],
        "t": row["time_s"], "t_low": row["time_low_s"], "t_high": row["time_high_s"],  # for another reference
    }  # fmt: skip


def _segment(points: Sequence[Point], rows: Sequence[Row], x: str, panels: Sequence[str]) -> None:
    """Number the stretches of each line that no missing case interrupts."""
    planned: dict[str, set[float]] = {}
    for row in rows:
        planned.setdefault(panel_of(row, panels), set()).add(row[x])
    steps = {panel: {x: place for place, x in enumerate(sorted(values))} for panel, values in planned.items()}
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for point in sorted(points, key=lambda one: one["x"]):
        place = steps[point["panel"]][point["x"]]
        before, number = last.get((point["panel"], point["arm"]), (place - 1, 0))
        number += before != place - 1
        last[point["panel"], point["arm"]] = place, number
        point["segment"] = f"{point['arm']} {number}"


def _refusals(rows: Sequence[Row], x: str, panels: Sequence[str], by: str) -> list[Point]:
    return [
        {
            "kind": "refusal", "x": row[x], "arm": str(row[by]), "label": row["label"], "panel": panel_of(row, panels),
            "reason": f"{row['status']}: {row['reason']}",
        }
        for row in rows
        if row["time_s"] is None and drawable(row[x])
    ]  # fmt: skip


def _thinned(points: list[Point]) -> tuple[list[Point], int]:
    """Few enough to draw: every n-th value along the axis, the first and the last always; and n."""
    values = sorted({point["x"] for point in points})
    step = math.ceil(len(points) / POINTS_MOST)
    if step == 1:
        return points, 1
    kept = {*values[::step], values[-1]}
    return [point for point in points if point["x"] in kept], step
