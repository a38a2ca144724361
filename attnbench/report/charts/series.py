"""Lines over places with names, such as runs or commits: a panel for each group of series."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from attnbench.report.charts import axes
from attnbench.report.charts.figure import WIDTH, ChartAxis, Dot, Edges, Figure, Line, Mark, Panel, Rule
from attnbench.report.charts.lines import names_at_ends
from attnbench.report.charts.sizes import Size
from attnbench.report.charts.style import in_order
from attnbench.report.charts.svg import FONT, text_width

MAX_NAMED = 6


class SeriesPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One value at a place, with its interval."""

    place: int  # of `names`
    value: float
    ends: tuple[float, float] | None = None
    tip: str = ""
    ring: bool = False


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    arm: str
    points: tuple[SeriesPoint, ...]


class SeriesPanel(msgspec.Struct, frozen=True, kw_only=True):
    """One panel."""

    series: tuple[Series, ...]
    heading: str = ""
    rules: tuple[float, ...] = ()  # dashed lines


def figure(
    name: str, groups: Sequence[SeriesPanel], names: Sequence[str], quantity: tuple[str, str], heading: str,
    caption: str, left_out: str = "", log: bool = True, width: float = WIDTH,
) -> Figure:  # fmt: skip
    """`names` are those of the places; `quantity` is the title and the unit of what is drawn."""
    arms = in_order(series.arm for group in groups for series in group.series)
    lines = max((len(group.series) for group in groups), default=0)
    legend = len(arms) > MAX_NAMED or lines > len(arms)
    title, unit = quantity
    values = [value for group in groups for each in group.series for point in each.points
              for value in (point.value, *(point.ends or ()))]  # fmt: skip
    values += [rule for group in groups for rule in group.rules]
    y = axes.log_axis(values, unit, title) if log else axes.linear_axis(values, unit, title)
    room = 14 if legend else max(map(text_width, arms), default=0) * 1.08 + 14
    margins = Edges(left=max(text_width(tick.text) for tick in y.ticks) + 12 if y.ticks else 50, right=room)
    x = axes.ordinal_axis(names, "", width - margins.left - margins.right)
    return Figure(
        name=name, heading=heading, caption=caption, arms=tuple(arms), legend=legend, left_out=left_out,
        panels=tuple(
            Panel(heading=group.heading, x=x, y=y, width=width, margins=margins,
                  marks=tuple(_marks(group, x, y, margins, Size(width=width), legend)))
            for group in groups
        ),
    )  # fmt: skip


def _marks(group: SeriesPanel, x: ChartAxis, y: ChartAxis, margins: Edges, size: Size, legend: bool) -> list[Mark]:
    marks: list[Mark] = [Rule(at=value, along="y") for value in group.rules]
    ends = []
    for each in group.series:
        points = tuple((float(point.place), point.value) for point in each.points)
        if len(points) > 1:
            marks.append(Line(points=points, arm=each.arm, thin=legend))
        marks += [
            Dot(x=point.place, y=point.value, arm=each.arm, y_ends=point.ends, tip=point.tip, ring=point.ring)
            for point in each.points
        ]
        place, value = points[-1]
        width, height = size.width - margins.left - margins.right, size.height - margins.top - margins.bottom
        ends.append((each.arm, margins.left + x.share(place) * width, margins.top + (1 - y.share(value)) * height))
    if not legend:
        marks += names_at_ends(ends, margins.top + FONT / 2, size.height - margins.bottom)
    return marks
