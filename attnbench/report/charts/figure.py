"""The parts of a chart as data: axes, marks in the units of the axes, panels, and a figure of several panels.

Charts make figures from rows; `svg` draws them, for the page, for files and for notebooks.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

WIDTH, HEIGHT = 360, 292  # pixels of a panel
NARROW = 356  # width of the variant for phones
WIDE = 520  # width of a panel that has rows with names and numbers
INK, SOFT, LINE, BAD, FAST = "ink", "soft", "line", "bad", "fast"  # colours of the page, by name


class Tick(msgspec.Struct, frozen=True):
    """A place on an axis and its text."""

    at: float
    text: str


class ChartAxis(msgspec.Struct, frozen=True, kw_only=True):
    """An axis from `low` to `high`, in the units of the marks."""

    low: float
    high: float
    log: bool = False
    title: str = ""  # shown in files; on the page the caption says it
    ticks: tuple[Tick, ...] = ()
    grid: bool = False  # a thin line at each tick
    down: bool = False  # the low end is at the top

    def share(self, value: float) -> float:
        """The place of a value between the ends: 0 to 1 within them."""
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class Dot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One measured value with its interval, as the marker of its arm."""

    x: float
    y: float
    arm: str
    tip: str = ""  # a sentence with formatted numbers
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    shift: float = 0.0  # pixels sideways, so that intervals of several arms can be told apart
    small: bool = False
    ring: bool = False  # a circle around it


class Line(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A line through values of one arm, or a guide if there is no arm."""

    points: tuple[tuple[float, float], ...]
    arm: str = ""
    thin: bool = False
    shift: float = 0.0  # as that of its points


class Area(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The band between a lower and an upper line of one arm."""

    lower: tuple[tuple[float, float], ...]
    upper: tuple[tuple[float, float], ...]
    arm: str


class Rule(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A straight line across the panel at a value of one axis, with its name."""

    at: float
    along: Literal["x", "y"]  # the axis that has the value
    text: str = ""
    color: str = SOFT
    dashed: bool = True


class Box(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A filled rectangle: a bar of an arm, a shaded region, or a cell in a colour of its own."""

    x: tuple[float, float]
    y: tuple[float, float]
    arm: str = ""
    color: str = FAST  # a name of the page's colours, or #rrggbb
    tip: str = ""


class Note(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A text at a place; beside the panel if `side` says so."""

    text: str
    x: float = 0.0
    y: float = 0.0
    arm: str = ""  # in the colour of this arm
    anchor: Literal["start", "middle", "end"] = "start"
    dx: float = 0.0  # pixels
    dy: float = 0.0
    pixel_x: float | None = None  # in place of x: pixels from the left edge of the panel
    pixel_y: float | None = None  # in place of y: pixels from the top edge of the panel
    color: str = SOFT
    bold: bool = False
    italic: bool = False


Mark = Dot | Line | Area | Rule | Box | Note


class Edges(msgspec.Struct, frozen=True):
    """Pixels between the edges of a panel and its axes."""

    left: float = 50
    right: float = 74
    top: float = 14
    bottom: float = 30


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One picture with its axes."""

    x: ChartAxis
    y: ChartAxis
    marks: tuple[Mark, ...]
    heading: str = ""
    width: float = WIDTH
    height: float = HEIGHT
    margins: Edges = Edges()


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A chart: its panels with the text around them."""

    name: str  # of its file
    heading: str
    caption: str = ""
    panels: tuple[Panel, ...]
    narrow: tuple[Panel, ...] = ()  # for screens below 640 px; empty: the panels suit them
    arms: tuple[str, ...] = ()  # all that are drawn, in order
    legend: bool = False  # above the panels, where names at line ends would not fit
    span: int = 12  # of the page's 12 columns
    left_out: str = ""  # what is not drawn, and how to draw it
