"""The pivot as text: at most 80 columns, no number ever shortened, footnotes for what was refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from attnbench import units
from attnbench.frame import Row
from attnbench.report.pivot import Block, Column, Notes, Pivot, factor, mark, pivot, references, why

if TYPE_CHECKING:
    from rich.text import Text

WIDTH = 80
LEAST_WIDTH = 40  # below it not even one backend fits beside its row labels
HEAD_MOST = 24  # a longer heading or label goes on in the next line
GAP = 2

Line = list[tuple[str, bool]]  # pieces of text, and whether they are bold

MARKS = {
    "*": "fastest",
    "~": "tied with the fastest: closer than their intervals tell apart",
    "!": "noisy: the median block took over 1.25 times the least",
    "?": "impossible, not ranked",
}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in a cell: a time with its speed-up and marks, or a dash with the letter of its footnote."""

    time: str = ""
    beside: str = ""
    marks: str = ""
    bold: bool = False


class Strip(msgspec.Struct, frozen=True, kw_only=True):
    """One column ready to be printed."""

    arm: str
    heading: list[str]
    cells: dict[int, Cell]  # by identity of the row
    time: int  # widths of the parts of a cell
    beside: int
    marks: int

    @property
    def body(self) -> int:
        """Width of a cell."""
        return self.time + (1 + self.beside if self.beside else 0) + self.marks

    @property
    def width(self) -> int:
        """Width of the column, with the gap before it."""
        return GAP + max([self.body, *map(width_of, self.heading)])


def text(rows: Sequence[Row], width: int | None = None) -> str:
    """The table without any style."""
    return "".join("".join(piece for piece, _ in line).rstrip() + "\n" for line in lines(rows, width or columns()))


def styled(rows: Sequence[Row], width: int | None = None) -> Text:
    """The table for a rich console, to be printed with `soft_wrap=True`; the console decides on colour."""
    from rich.text import Text

    table = Text()
    for line in lines(rows, width or columns()):
        for piece, bold in line:
            table.append(piece, style="bold" if bold else "")
        table.append("\n")
    return table


def columns() -> int:
    """COLUMNS if set, else the terminal's width, at most 80."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return max(int(given), LEAST_WIDTH)
    return max(min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns), LEAST_WIDTH)


def lines(rows: Sequence[Row], width: int) -> Iterator[Line]:
    """What all rows share, then block after block, then the legend and the footnotes."""
    if not rows:
        yield _plain("no results")
        return
    laid, notes = pivot(rows), Notes()
    cells = _cells(laid, notes)
    labels = [laid.axis, *(label for block in laid.blocks for label, _ in block.lines)]
    label_width = max(width_of(piece) for label in labels for piece in wrap(label, HEAD_MOST))
    strips = [_strip(column, laid.blocks, cells) for column in laid.columns]
    yield from map(_plain, wrap(laid.constant, width))
    for block in laid.blocks:
        for number, part in enumerate(_parts(strips, width - label_width)):
            yield _plain("")
            heading = block.heading + (" (continued)" if number else "")
            yield from map(_plain, wrap(heading.strip(), width))
            yield from _grid(laid.axis, block, part, label_width)
    yield _plain("")
    marks = {one for strip in strips for cell in strip.cells.values() for one in cell.marks}
    yield from map(_plain, _legend(rows, marks, width))
    for letter, reason in notes.lines:
        yield from map(_plain, wrap(f"{letter}  {reason}", width, indent=3))
    for names, reasons in laid.absent:
        yield from map(_plain, wrap(f"-  {names}: {reasons}", width, indent=3))


def _plain(line: str) -> Line:
    return [(line, False)]


def _cells(laid: Pivot, notes: Notes) -> dict[int, Cell]:
    """Every cell by the identity of its row, made in the order of reading, which is that of the letters."""
    arms = [column.arm for column in laid.columns]
    found = [line[arm] for block in laid.blocks for _, line in block.lines for arm in arms if arm in line]
    return {id(row): _cell(row, notes) for row in found}


def _strip(column: Column, blocks: Sequence[Block], cells: dict[int, Cell]) -> Strip:
    own = {id(line[column.arm]) for block in blocks for _, line in block.lines if column.arm in line}
    made = {key: cell for key, cell in cells.items() if key in own}
    return Strip(
        arm=column.arm,
        heading=[piece for part in column.heading for piece in wrap(part, HEAD_MOST)],
        cells=made,
        time=max(width_of(cell.time) for cell in made.values()),
        beside=max(width_of(cell.beside) for cell in made.values()),
        marks=max(width_of(cell.marks) for cell in made.values()),
    )


def _cell(row: Row, notes: Notes) -> Cell:
    if row["time_s"] is None:
        return Cell(time="-", beside=notes.letter(why(row)))
    marks = mark(row)
    return Cell(time=units.seconds(row["time_s"]), beside=factor(row["speedup"]), marks=marks, bold="*" in marks)


def _parts(strips: Sequence[Strip], width: int) -> list[list[Strip]]:
    """As many columns side by side as fit; the rest below."""
    parts: list[list[Strip]] = []
    for strip in strips:
        if parts and sum(one.width for one in parts[-1]) + strip.width <= width:
            parts[-1].append(strip)
        else:
            parts.append([strip])
    return parts


def _grid(axis: str, block: Block, strips: Sequence[Strip], label_width: int) -> Iterator[Line]:
    depth = max(len(strip.heading) for strip in strips)
    for level in range(depth):
        label = axis if level == depth - 1 else ""
        line = _pad(label, label_width)
        for strip in strips:
            index = level - depth + len(strip.heading)
            line += _pad(strip.heading[index] if index >= 0 else "", strip.width)
        yield _plain(line)
    for name, cells in block.lines:
        first, *more = wrap(name, HEAD_MOST)
        spans = _plain(_pad(first, label_width))
        for strip in strips:
            row = cells.get(strip.arm)
            spans += _spans(strip, strip.cells[id(row)] if row else Cell())
        yield spans
        yield from (_plain(_pad(piece, label_width)) for piece in more)


def _spans(strip: Strip, cell: Cell) -> Line:
    beside = f" {_pad(cell.beside, strip.beside)}" if strip.beside else ""
    if cell.time == "-":  # the letter stands close to its dash
        beside = f" {cell.beside}".ljust(len(beside))
    body = _pad(cell.time, strip.time) + beside
    return [(" " * (strip.width - strip.body), False), (body, cell.bold), (cell.marks.ljust(strip.marks), cell.bold)]


def _pad(piece: str, width: int) -> str:
    return " " * (width - width_of(piece)) + piece


def _legend(rows: Sequence[Row], marks: set[str], width: int) -> list[str]:
    against = references(rows)
    over = dict.fromkeys(row["interval"] for row in rows if row["interval"])
    said = ["time of a call", *([f"and speed-up over {against}"] if against else [])]
    sentences = [" ".join(said) + (f"; 95 % intervals are {', '.join(over)}" if over else "")]
    found = wrap(sentences[0], width)
    for one, meaning in MARKS.items():
        reasons = dict.fromkeys(row["impossible"] for row in rows if one == "?" and row["impossible"])
        if one in marks:
            found += wrap(f"{one}  {meaning}" + (f": {'; '.join(reasons)}" if reasons else ""), width, indent=3)
    return found


def width_of(piece: str) -> int:
    """Terminal cells, of which an emoji takes two."""
    from rich.cells import cell_len

    return cell_len(piece)


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Lines of at most that many terminal cells; broken at spaces, and within words that are too long."""
    from rich.cells import chop_cells

    found = [""]
    for word in text.split(" "):
        room = width if len(found) == 1 else width - indent
        if width_of(found[-1]) + 1 + width_of(word) <= room and found[-1]:
            found[-1] += f" {word}"
            continue
        pieces = chop_cells(word, width - indent) or [""]
        found += pieces
    first, *rest = [line for line in found if line] or [""]
    return [first, *(" " * indent + line for line in rest)]
