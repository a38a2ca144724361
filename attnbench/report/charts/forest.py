"""Charts with a row for each case: markers with intervals along one axis, names at the left, numbers at the right."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from attnbench.report.charts import axes
from attnbench.report.charts.figure import (
    INK,
    NARROW,
    SOFT,
    WIDE,
    Box,
    ChartAxis,
    Dot,
    Edges,
    Figure,
    Mark,
    Note,
    Panel,
    Rule,
)
from attnbench.report.charts.style import in_order
from attnbench.report.charts.svg import FONT, fit, text_width

ROW, STEP = 22.0, 9.0  # pixels of a row, and between the markers of a row
MAX_ROWS = 40
MAX_ARMS = 12
MAX_COLUMNS = 4  # of numbers at the right
NAMES_SHARE = 0.45  # of the width of a panel, for names that are longer than their numbers


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One marker."""

    arm: str
    value: float
    ends: tuple[float, float] | None = None
    text: str = ""  # its number at the right
    unsure: bool = False  # whether the number is grey
    tip: str = ""


class ForestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row; `group` is the heading above the rows that share it."""

    label: str
    items: tuple[Item, ...]
    group: str = ""
    note: str = ""  # in place of markers


class Forest(msgspec.Struct, frozen=True, kw_only=True):
    """What the axis is about; the dashed line is at 1."""

    title: str
    sides: tuple[str, str]  # what left and right of the line mean
    shade: bool = True  # whether the right side is shaded
    percent: bool = False  # whether the axis is linear, in percent: for values near 1


def figure(
    name: str, rows: Sequence[ForestRow], forest: Forest, heading: str, caption: str, left_out: str = ""
) -> Figure | None:
    """One panel, and a narrow variant; the first MAX_ROWS rows. None if no row has a marker."""
    shown = rows[:MAX_ROWS]
    every = in_order(item.arm for row in shown for item in row.items)
    if not every:
        return None
    arms = every[:MAX_ARMS]
    if len(arms) < len(every):
        shown = [replace(row, items=tuple(item for item in row.items if item.arm in arms)) for row in shown]
        left_out = f"the first {len(arms)} of {len(every)} backends; the table has all"
    if len(shown) < len(rows):
        left_out = left_out or f"the first {len(shown)} of {len(rows)}; the table has all"
    wide, narrow = (_Drawing(shown, arms, width).panel(forest) for width in (WIDE, NARROW))
    return Figure(name=name, heading=heading, caption=caption, panels=(wide,), narrow=(narrow,), arms=tuple(arms),
                  legend=len(arms) > 1, left_out=left_out)  # fmt: skip


def short_names(arms: Sequence[str]) -> dict[str, str]:
    """What follows the last colon of a name; where several arms have that, the file before it too, or all."""
    shortened = {arm: [arm.rpartition(":")[2], arm.rpartition("/")[2], arm] for arm in arms}
    names = {}
    for arm, candidates in shortened.items():
        others = [text for other, texts in shortened.items() if other != arm for text in texts]
        names[arm] = next((text for text in candidates if text not in others), arm)
    return names


class _Drawing:
    """The rows at one width of the panel."""

    def __init__(self, rows: Sequence[ForestRow], arms: Sequence[str], width: float) -> None:
        self.rows, self.arms, self.width = rows, arms, width
        items = [item for row in rows for item in row.items]
        numbered = [arm for arm in arms if any(item.arm == arm and item.text for item in items)]
        self.numbered = numbered if len(numbered) <= (MAX_COLUMNS if width > NARROW else 2) else []
        self.names = short_names(self.numbered)
        longest_name = max(map(text_width, self.names.values()), default=0)
        longest_name = min(longest_name, NAMES_SHARE * width / max(len(self.numbered), 1) - 12)
        # In pixels, of a column of numbers.
        self.column = max(longest_name, *(text_width(item.text) for item in items), 0) + 12
        longest = max(text_width(row.label) for row in rows)
        self.above = longest > width * 0.3  # labels stand above their rows
        self.margins = Edges(
            left=12 if self.above else longest + 16, right=8 + self.column * len(self.numbered), top=FONT * 2 + 8,
            bottom=FONT + 12,
        )  # fmt: skip

    def panel(self, forest: Forest) -> Panel:
        """Everything, from the top row to the axis."""
        marks: list[Mark] = []
        y, group = 0.0, ""
        for row in self.rows:
            if row.group != group:
                group = row.group
                marks.append(Note(text=group, pixel_x=0, y=y + ROW * 0.75, bold=True, color=INK))
                y += ROW
            if self.above:
                marks.append(Note(text=fit(row.label, self.width), pixel_x=0, y=y + ROW * 0.7))
                y += ROW * 0.8
            height = max(ROW, STEP * len(row.items) + 6)
            marks += self.row(row, y + height / 2)
            y += height
        x = self.axis(forest)
        shade: list[Mark] = [Box(x=(1.0, x.high), y=(0, y))] if forest.shade else []
        return Panel(
            x=x, y=axes.row_axis(y), marks=(*shade, *self.head(forest), *marks), width=self.width,
            margins=self.margins, height=y + self.margins.top + self.margins.bottom,
        )  # fmt: skip

    def head(self, forest: Forest) -> list[Mark]:
        """The dashed line, what lies beside it, and the names above the numbers."""
        left, right = forest.sides
        y = FONT * 2 + 2 if self.numbered else FONT
        names = [
            Note(text=fit(name, self.column), arm=arm, anchor="end", pixel_x=self.end_of(arm), pixel_y=FONT)
            for arm, name in self.names.items()
        ]
        return [
            Rule(at=1.0, along="x"),
            Note(text=f"← {left}", x=1.0, dx=-6, pixel_y=y, anchor="end"),
            Note(text=f"{right} →", x=1.0, dx=6, pixel_y=y),
            *names,
        ]

    def row(self, row: ForestRow, middle: float) -> list[Mark]:
        """The label, the markers below each other, and the numbers of one row."""
        marks: list[Mark] = []
        if not self.above:
            marks.append(Note(text=row.label, pixel_x=12, y=middle, dy=FONT / 3))
        if row.note:
            marks.append(Note(text=row.note, pixel_x=self.width * 0.4, y=middle, dy=FONT / 3, italic=True))
        ordered = sorted(row.items, key=lambda item: self.arms.index(item.arm))
        for place, item in enumerate(ordered):
            at = middle + STEP * (place - (len(ordered) - 1) / 2)
            marks.append(Dot(x=item.value, y=at, arm=item.arm, x_ends=item.ends, tip=item.tip))
            if item.arm in self.numbered and item.text:
                marks.append(Note(text=item.text, pixel_x=self.end_of(item.arm), y=middle, dy=FONT / 3, anchor="end",
                                  color=SOFT if item.unsure else INK))  # fmt: skip
        return marks

    def end_of(self, arm: str) -> float:
        """The right end of the column of an arm's numbers."""
        return self.width - self.column * (len(self.numbered) - self.numbered.index(arm) - 1)

    def axis(self, forest: Forest) -> ChartAxis:
        values = [value for row in self.rows for item in row.items for value in (item.value, *(item.ends or ()))]
        values.append(1.0)
        return axes.percent_axis(values, forest.title) if forest.percent else axes.log_axis(values, "x", forest.title)
