"""Charts of one quantity over the axis of a run: a panel for each combination of all else, a line for each arm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from attnbench import units
from attnbench.analysis.rows import Row
from attnbench.records.result import Status
from attnbench.report.charts import axes, panels
from attnbench.report.charts.figure import Area, ChartAxis, Dot, Edges, Figure, Line, Mark, Note, Panel, Rule
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.charts.sizes import SCREEN, Size
from attnbench.report.charts.style import in_order
from attnbench.report.charts.svg import BOLD, FONT, spread, text_width

MAX_PANELS = 12
MAX_NAMED = 6  # arms whose names stand at the ends of their lines; more get a legend
MAX_WHISKERS = 8  # lengths; more get a band
DODGE = 3.0  # pixels between the whiskers of neighbouring arms
LABEL = 14.0  # least pixels between names
MAX_NAME_SHARE = 0.36  # of the width of a panel: longer names get a legend
MAX_WORDS = 2  # at missing points of one place; of more their counts
MAX_REASON = 14  # characters of the word at a missing point
WORDS = {
    Status.OOM: "OOM", Status.TIMEOUT: "timeout", Status.CRASHED: "crashed", Status.ERROR: "error",
    Status.INCORRECT: "wrong", Status.UNAVAILABLE: "unavailable",
}  # fmt: skip
Ends = tuple[float, float]


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """What a chart shows upwards, and how."""

    column: str
    title: str
    unit: str = ""
    log: bool = True
    interval: Callable[[Row], Ends | None] = lambda row: None
    guides: Callable[[Sequence[Row], ChartAxis], Iterable[Mark]] = lambda rows, axis: ()  # of a panel
    more: Callable[[Sequence[Row]], Iterable[float]] = lambda rows: ()  # further values that the axis holds


def figure(
    name: str, rows: Sequence[Row], quantity: Quantity, heading: str, caption: str, layout: PanelLayout | None = None,
    by: str = "arm_name", size: Size = SCREEN,
) -> Figure | None:  # fmt: skip
    """A line for each arm with intervals, guides, and a word for each missing point; None if nothing was measured."""
    layout = layout or panels.layout(rows)
    groups = {key: group for key, group in layout.panels(rows).items() if any(_drawn(group, quantity, layout.axis))}
    if not groups:
        return None
    shown = list(groups.values())[:MAX_PANELS]
    drawn = [row for group in shown for row in _drawn(group, quantity, layout.axis)]
    arms = in_order(str(row.value(by)) for row in drawn)
    legend = len(arms) > MAX_NAMED or max(_name_width(arm, size.font) for arm in arms) > size.width * MAX_NAME_SHARE
    margins = _margins(drawn, quantity, arms, legend, size)
    y = _y_axis(drawn, quantity)
    values = sorted({number for group in shown for row in group if (number := row.number(layout.axis))})
    x = axes.length_axis(
        values, panels.axis_title(layout.axis, rows), size.width - margins.left - margins.right,
        lambda value: panels.axis_value(layout.axis, value),
    )  # fmt: skip
    left_out = f"{len(shown)} of {len(groups)} panels; attnbench plot --only draws the others"
    return Figure(
        name=name, heading=heading, caption=caption, arms=tuple(arms), legend=legend,
        left_out=left_out if len(shown) < len(groups) else "",
        panels=tuple(
            Panel(
                x=x, y=y, heading=layout.heading(group[0]), width=size.width, height=size.height, margins=margins,
                marks=tuple(_marks(group, quantity, layout, by, arms, (x, y), margins, legend, size)),
            )
            for group in shown
        ),
    )  # fmt: skip


def drawable(value: object) -> bool:
    """Whether a logarithmic axis can show the value."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def ends_of(row: Row, low: str, high: str) -> Ends | None:
    """The interval in two columns, if an axis can show it."""
    first, last = row.number(low), row.number(high)
    return (first, last) if first and last and drawable(first) and drawable(last) else None


def names_at_ends(
    ends: Sequence[tuple[str, float, float]], top: float, bottom: float, size: Size = SCREEN
) -> list[Note]:
    """The names of arms beside the ends of their lines, which are pixels, far enough apart to be read."""
    heights = spread([y for _, _, y in ends], LABEL * size.font / FONT, top + 4, bottom)
    return [
        Note(text=arm, arm=arm, pixel_x=x + 8, pixel_y=height + size.font / 3, bold=True)
        for (arm, x, _), height in zip(ends, heights, strict=True)
    ]


def missing_word(row: Row) -> str:
    """Why a case has no value, in a word or two: `budget`, `OOM`, `no window`."""
    if row.status in WORDS:
        return WORDS[row.status]
    text = row.reason.partition(";")[0].partition(":")[0].partition(",")[0].strip() or row.status.value
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1].rstrip() + "…"


def _drawn(group: Sequence[Row], quantity: Quantity, axis: str) -> list[Row]:
    return [row for row in group if drawable(row.value(quantity.column)) and drawable(row.value(axis))]


def _margins(rows: Sequence[Row], quantity: Quantity, arms: Sequence[str], legend: bool, size: Size) -> Edges:
    """Room for the ticks at the left and the names at the right."""
    ticks = _y_axis(rows, quantity).ticks
    left = max((text_width(tick.text, size.font) for tick in ticks), default=20) + 12
    right = 12 if legend else max(_name_width(arm, size.font) for arm in arms)
    return Edges(left=left, right=right, top=size.font + 4, bottom=size.font * 2 + 5)


def _name_width(arm: str, font: float) -> float:
    """Pixels that a name takes beside the end of its line."""
    return text_width(arm, font) * BOLD + 14


def _y_axis(rows: Sequence[Row], quantity: Quantity) -> ChartAxis:
    values = [row.number(quantity.column) or 0.0 for row in rows]
    values += [end for row in rows if (ends := quantity.interval(row)) for end in ends]
    values += quantity.more(rows)
    make = axes.log_axis if quantity.log else axes.linear_axis
    return make(values, quantity.unit, quantity.title)


def _marks(
    group: Sequence[Row], quantity: Quantity, layout: PanelLayout, by: str, arms: Sequence[str],
    scales: tuple[ChartAxis, ChartAxis], margins: Edges, legend: bool, size: Size,
) -> list[Mark]:  # fmt: skip
    """All that one panel shows."""
    axis, (x, y) = layout.axis, scales
    by_arm: dict[str, dict[float, Row]] = {arm: {} for arm in arms}
    for row in group:
        if (arm := str(row.value(by))) in by_arm and drawable(row.value(axis)):
            by_arm[arm][row.number(axis) or 0.0] = row
    places = sorted({place for rows in by_arm.values() for place in rows})
    marks: list[Mark] = list(quantity.guides(_drawn(group, quantity, axis), y))
    ends = []
    width, height = size.width - margins.left - margins.right, size.height - margins.top - margins.bottom
    for number, arm in enumerate(arms):
        segments = _segments(by_arm[arm], places, quantity)
        shift = DODGE * (number - (len(arms) - 1) / 2) if len(arms) <= MAX_NAMED else 0.0
        for segment in segments:
            marks += _segment(segment, arm, quantity, axis, shift)
        if segments:
            last = segments[-1][-1]
            value = last.number(quantity.column) or 0.0
            ends.append((
                arm,
                margins.left + x.share(last.number(axis) or 0.0) * width + max(shift, 0.0),
                margins.top + (1 - y.share(value)) * height,
            ))  # fmt: skip
    if not legend:
        marks += names_at_ends(ends, margins.top, size.height - margins.bottom, size)
    marks += _missing(by_arm, places, quantity, margins, size, x)
    return marks


def _segments(rows: dict[float, Row], places: Sequence[float], quantity: Quantity) -> list[list[Row]]:
    """Neighbouring values of one arm; a place without a value ends a segment."""
    segments: list[list[Row]] = [[]]
    for place in places:
        row = rows.get(place)
        if row is not None and drawable(row.value(quantity.column)):
            segments[-1].append(row)
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def _segment(rows: Sequence[Row], arm: str, quantity: Quantity, axis: str, shift: float) -> list[Mark]:
    """The line, the intervals and the points of neighbouring values."""
    points = [(row.number(axis) or 0.0, row.number(quantity.column) or 0.0) for row in rows]
    intervals = [quantity.interval(row) for row in rows]
    marks: list[Mark] = []
    band = len(points) > MAX_WHISKERS and all(intervals)
    if band:
        lower, upper = (tuple((x, (ends or (y, y))[end]) for (x, y), ends in zip(points, intervals, strict=True))
                        for end in (0, 1))  # fmt: skip
        marks.append(Area(lower=lower, upper=upper, arm=arm))
    shift = 0.0 if band else shift
    if len(points) > 1:
        marks.append(Line(points=tuple(points), arm=arm, shift=shift))
    for row, (x, y), ends in zip(rows, points, intervals, strict=True):
        marks.append(Dot(x=x, y=y, arm=arm, y_ends=None if band else ends, shift=shift,
                         tip=tip(row, y, ends, quantity.unit)))  # fmt: skip
    return marks


def tip(row: Row, value: float, ends: Ends | None, unit: str) -> str:
    """A sentence on one point: `sdpa:flash, causal 512: 815 µs (95 %: 800 µs .. 830 µs), 16 rounds`."""
    text = f"{row.arm_name}, {row.problem}: {axes.shown(value, unit)}"
    if ends:
        text += f" (95 %: {units.between(*(axes.shown(end, unit) for end in ends))})"
    return text + (f", {row.rounds:.0f} rounds" if row.rounds else "") + (", noisy" if row.noisy else "")


def _missing(
    by_arm: dict[str, dict[float, Row]], places: Sequence[float], quantity: Quantity, margins: Edges, size: Size,
    x: ChartAxis,
) -> list[Mark]:  # fmt: skip
    """A word at each place where an arm has no value, in its colour; in grey if it holds for all, or how many have it.

    Of neighbouring places with the same words only the first has them.
    """
    marks: list[Mark] = []
    before: object = None
    drawn = {arm for arm, rows in by_arm.items() if any(drawable(row.value(quantity.column)) for row in rows.values())}
    for place in places:
        here = {arm: rows[place] for arm, rows in by_arm.items() if place in rows}
        words = {arm: missing_word(row) for arm, row in here.items() if not drawable(row.value(quantity.column))}
        if len(set(words.values())) > 1 or len(words) < len(here):  # an arm without a line has no name in the panel
            words = {arm: word if arm in drawn else f"{arm}: {word}" for arm, word in words.items()}
        repeated, before = words == before, words
        if len(words) == len(here):
            marks.append(Rule(at=place, along="x", color="line"))
        if words and not repeated:
            left = x.share(place) > 0.5
            note = Note(text="", x=place, pixel_y=margins.top - 3, dx=-5 if left else 5, italic=True,
                        anchor="end" if left else "start")  # fmt: skip
            marks += _words(words, len(words) == len(here), note, size)
    return marks


def _words(words: dict[str, str], common: bool, note: Note, size: Size) -> list[Mark]:
    """The words of one place below each other, or one text in grey."""
    counts = Counter(words.values())
    if common and len(counts) == 1:
        return [replace(note, text=next(iter(counts)))]
    if len(words) > MAX_WORDS:
        listed = ", ".join(f"{count} {word}" for word, count in counts.most_common())
        return [replace(note, text=listed if len(listed) <= 2 * MAX_REASON else f"{len(words)} missing")]
    return [
        replace(note, text=word, arm=arm, dy=number * (size.font + 1))
        for number, (arm, word) in enumerate(words.items())
    ]
