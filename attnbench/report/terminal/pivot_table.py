"""Results as tables of text: times with footnotes for refused cases, and other metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from attnbench import units
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.rows import Row, unranked
from attnbench.records.result import Status
from attnbench.report import memory_method
from attnbench.report.pivot import (
    Column,
    Footnotes,
    Pivot,
    Section,
    caption,
    factor,
    legend,
    mark,
    pivot,
    planning,
    why_briefly,
    wide_ties,
)
from attnbench.report.reasons import MAX_FOOTNOTE, shortened
from attnbench.report.terminal.text_layout import cell_width, labelled, terminal_width, wrap

if TYPE_CHECKING:
    from rich.text import Text

MAX_HEADING = 24  # a longer heading or label continues on the next line
MAX_METRIC_LABEL = 28
MEMORY = {"peak_bytes", "total_bytes", "saved_bytes", "workspace_bytes"}  # by one of two methods
GAP = 2

T = TypeVar("T")
Line = list[tuple[str, bool]]  # pieces of text, and whether they are bold


class TableCell(NamedTuple):
    """A time with its speed-up and marks, or a dash with the letter of its footnote."""

    time: str = ""
    beside: str = ""
    marks: str = ""


class TableColumn(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of one arm, all padded to the width of the column."""

    arm: str
    heading: list[str]
    width: int  # with the gap before it
    cells: dict[int, Line]  # by the identity of the row


def text(rows: Sequence[Row], width: int | None = None) -> str:
    """The table without styles."""
    plain = ("".join(piece for piece, _ in line).rstrip() for line in lines(rows, width or terminal_width()))
    return "".join(f"{line}\n" for line in plain)


def styled(rows: Sequence[Row], width: int | None = None) -> Text:
    """The table for a rich console, to be printed with `soft_wrap=True`."""
    from rich.text import Text

    table = Text()
    for line in lines(rows, width or terminal_width()):
        for piece, bold in line:
            table.append(piece, style="bold" if bold else "")
        table.append("\n")
    return table


def lines(rows: Sequence[Row], width: int) -> Iterator[Line]:
    """What all rows share, the sections, the legend and the footnotes."""
    if not rows:
        yield _plain("no results")
        return
    layout, notes = pivot(rows).of_times, Footnotes()
    cells = _cells(layout, notes)
    labels = [layout.axis, *(label for section in layout.sections for label, _ in section.lines)]
    label_width = max(cell_width(piece) for label in labels for piece in wrap(label, MAX_HEADING))
    columns = [_column(column, layout.sections, cells) for column in layout.columns]
    yield from map(_plain, wrap(layout.constant, width))
    for section in layout.sections:
        arms = {arm for _, line in section.lines for arm in line}
        shown = [column for column in columns if column.arm in arms]
        for number, part in enumerate(_parts(shown, [column.width for column in shown], width - label_width)):
            yield _plain("")
            heading = section.heading + (" (continued)" if number else "")
            yield from map(_plain, wrap(heading.strip(), width) if heading.strip() else ())
            yield from _headings(layout.axis, part, label_width)
            yield from _body(section, part, label_width)
    yield _plain("")
    yield from map(_plain, _legend(rows, width))
    for letter, reason in notes.lines:
        yield from map(_plain, wrap(f"{letter}  {reason}", width, indent=3))
    for names, reasons in layout.absent:
        yield from map(_plain, wrap(f"-  {names}: {reasons}", width, indent=3))


def metric_lines(rows: Sequence[Row], names: Sequence[str], width: int) -> Iterator[str]:
    """These metrics as columns, one line for each (case, arm), at most `width` wide; then the notes of single rows."""
    layout = pivot(rows)
    measured = [name for name in names if any(row.value(name) is not None for row in rows)]
    noted = [row for row in rows if row.status is Status.OK or any(row.value(name) is not None for name in names)]
    notes = list(dict.fromkeys(row.notes for row in noted if row.notes))
    yield from wrap(layout.constant, width)
    labels = list(_metric_labels(layout))
    label_width = min(MAX_METRIC_LABEL, max((cell_width(label) for label, _ in labels), default=0))
    cells = {name: {id(row): _metric(row, name, notes) for _, row in labels if row} for name in measured}
    widths = {name: GAP + max(map(cell_width, (name, *column.values()))) for name, column in cells.items()}
    for part in _parts(measured, list(widths.values()), width - label_width):
        yield ""
        yield " " * label_width + "".join(name.rjust(widths[name]) for name in part)
        for label, row in labels:
            line = "".join(cells[name][id(row)].rjust(widths[name]) for name in part) if row else ""
            yield from labelled(label, label_width, line) if row else [label]
    for number, note in enumerate(notes, start=1):
        yield from wrap(f"[{number}] {note}", width, indent=4)
    if any(name in MEMORY for name in measured):
        yield from wrap(f"memory: {memory_method.words(rows)}", width, indent=2)
    if absent := [name for name in names if name not in measured]:
        yield from wrap(f"not measured here: {', '.join(absent)}", width, indent=2)


def _metric_labels(layout: Pivot) -> Iterator[tuple[str, Row | None]]:
    for section in layout.sections:
        if section.heading:
            yield section.heading, None
        for label, cells in section.lines:
            for column in layout.columns:
                if column.arm in cells:
                    yield f"{label} {' '.join(column.heading)}", cells[column.arm]


def _metric(row: Row, name: str, notes: Sequence[str]) -> str:
    if name == "roofline_share" and row.roofline_share is not None:
        note = f" [{notes.index(row.notes) + 1}]" if row.notes else ""
        return f"{units.percent(row.roofline_share)} {row.bound}{note}"
    return METRICS[name].show(row.number(name))


def _plain(line: str) -> Line:
    return [(line, False)]


def _cells(layout: Pivot, notes: Footnotes) -> dict[int, TableCell]:
    """Every cell by the identity of its row, in reading order, which is the order of the footnotes' letters."""
    arms = [column.arm for column in layout.columns]
    shown = [cells[arm] for section in layout.sections for _, cells in section.lines for arm in arms if arm in cells]
    return {
        id(row): TableCell("-", notes.letter(shortened(why_briefly(row), MAX_FOOTNOTE)))
        if row.time_s is None
        else TableCell(units.seconds(row.time_s), factor(row.speedup), mark(row))
        for row in shown
    }


def _column(column: Column, sections: Sequence[Section], cells: dict[int, TableCell]) -> TableColumn:
    rows = [id(line[column.arm]) for section in sections for _, line in section.lines if column.arm in line]
    heading = [piece for part in column.heading for piece in wrap(part, MAX_HEADING)]
    time, beside, marks = (max(map(cell_width, parts)) for parts in zip(*(cells[row] for row in rows), strict=True))
    beside += 1 if beside else 0
    width = GAP + max([time + beside + marks, *map(cell_width, heading)])

    def pieces(cell: TableCell) -> Line:
        text = _pad(cell.time, time)
        # The letter of a footnote follows its dash.
        text += f" {cell.beside}".ljust(beside) if cell.time == "-" else _pad(cell.beside, beside)
        bold = "*" in cell.marks
        return [(" " * (width - time - beside - marks), False), (text, bold), (cell.marks.ljust(marks), bold)]

    return TableColumn(arm=column.arm, heading=heading, width=width, cells={row: pieces(cells[row]) for row in rows})


def _parts(columns: Sequence[T], widths: Sequence[int], room: int) -> list[list[T]]:
    """As many columns side by side as fit; the others go below."""
    parts: list[list[T]] = []
    used = 0
    for column, width in zip(columns, widths, strict=True):
        if parts and used + width <= room:
            parts[-1].append(column)
        else:
            parts.append([column])
            used = 0
        used += width
    return parts


def _headings(axis: str, columns: Sequence[TableColumn], label_width: int) -> Iterator[Line]:
    """The headings, aligned to their last line."""
    depth = max(len(column.heading) for column in columns)
    for level in range(depth):
        line = _pad(axis if level == depth - 1 else "", label_width)
        for column in columns:
            index = level - depth + len(column.heading)
            line += _pad(column.heading[index] if index >= 0 else "", column.width)
        yield _plain(line)


def _body(section: Section, columns: Sequence[TableColumn], label_width: int) -> Iterator[Line]:
    """The lines that have a cell in one of these columns."""
    for label, cells in section.lines:
        if not any(column.arm in cells for column in columns):
            continue
        first, *more = wrap(label, MAX_HEADING)
        line = _plain(_pad(first, label_width))
        for column in columns:
            line += column.cells.get(id(cells.get(column.arm)), _plain(" " * column.width))
        yield line
        yield from (_plain(_pad(piece, label_width)) for piece in more)


def _pad(piece: str, width: int) -> str:
    return " " * (width - cell_width(piece)) + piece


def _legend(rows: Sequence[Row], width: int) -> list[str]:
    lines = wrap(caption(rows), width)
    for symbol, meaning in legend(rows):
        lines += wrap(f"{symbol}  {meaning}", width, indent=3)
        for tie in wide_ties(rows) if symbol == "~" else ():
            lines += [f"   {line}" for line in wrap(tie, width - 3, indent=2)]
    if plans := planning(rows):
        lines += wrap(f"planned once for a batch, for all its layers, and not in its time: {plans}", width, indent=3)
    if names := unranked(rows):
        verb = "shares" if len(names) == 1 else "share"
        lines += wrap(f"not ranked: {', '.join(names)} {verb} no rounds with the others", width, indent=3)
    return lines
