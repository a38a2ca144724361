"""A table of the page as HTML: its head, its rows, and the rules that align its columns.

Rows are joined here rather than by the template, and their end tags are left out, since a report has up to 20,000.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec
from markupsafe import Markup, escape

from attnbench.report.pages.page import MAX_ROWS, PageCell, PageTable

MAX_BYTES = 3_600_000  # of the rows of one table
MAX_OPEN = 1000  # rows of a table that is open at first
MAX_SHORT = 40  # rows that print keeps together
CHARACTER, PADDING = 7.4, 20  # pixels of a character, and of the space around a cell
MAX_COLUMNS = 12  # that print has room for with their details
MIN_SEARCHED = 8  # rows above which a table has a field to search in it
MAX_PRINTED = 60  # rows of a table that is printed at all
MIN_WIDTH, AIR = 320, 1.5  # the least width of a table in pixels, and the most in units of what its texts need
CLIP = 160  # characters of a cell before the rest is folded
MAX_TEXT, MAX_TEXTS = 2000, 300_000  # characters of one long cell, and of all of one table
COMMAND = re.compile(r"attnbench [a-z]")  # begins what is shown as code, and never folded
WRAPS = 24  # characters without a space from which a cell may break anywhere


class HeadCell(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the head."""

    text: str
    columns: int = 1
    rows: int = 1
    arm: str = ""
    classes: str = ""
    name: str = ""  # of the column, with its group, for copies; empty for a group
    place: int = 0


class TableView(msgspec.Struct, frozen=True, kw_only=True):
    """What the template needs of a table."""

    id: str
    heading: str
    heads: tuple[tuple[HeadCell, ...], ...]
    rows: Markup
    css: Markup
    note: str
    cut: str
    span: int
    search: str  # what its rows are; empty without a search field
    folded: bool
    short: bool  # print keeps it on one sheet
    printed: bool
    many: bool  # columns, so that print leaves out details
    width: int  # pixels that it does not exceed; 0 if its texts need all there are


def view(table: PageTable, number: int, color: Callable[[str], str]) -> TableView:
    """The table with the given number on the page; `color` names the colour of an arm."""
    name = f"t{number}"
    rows, shown = _rows(table, color)
    cut = f"{shown} of {len(table.rows)} rows; data.csv has all." if shown < len(table.rows) else ""
    folded = table.folded or shown > MAX_OPEN
    return TableView(
        id=name, heading=table.heading, heads=tuple(_heads(table)), rows=rows, css=_css(table, name), note=table.note,
        cut=cut, span=table.span, search="rows" if table.search and shown > MIN_SEARCHED else "", folded=folded,
        short=shown <= MAX_SHORT, many=len(table.head) > MAX_COLUMNS, width=0 if folded else _width(table),
        printed=not folded and shown <= (MAX_SHORT if table.search else MAX_PRINTED),
    )  # fmt: skip


def natural_width(table: PageTable) -> float:
    """Pixels that the table takes without breaking a line."""
    rows = [table.head, *table.rows[:MAX_ROWS]]
    longest = (max(len(str(_at(row, place))) for row in rows) for place in range(len(table.head)))
    return sum(length * CHARACTER + PADDING for length in longest)


def _width(table: PageTable) -> int:
    if any(len(str(cell)) > WRAPS for row in table.rows for cell in row[: len(table.head)]):
        return 0
    return max(MIN_WIDTH, round(natural_width(table) * AIR))


def _heads(table: PageTable) -> Iterator[tuple[HeadCell, ...]]:
    """One line, or two if there are groups; a column without a group takes both."""
    if not any(table.head):
        return
    titles = [group.title for group in table.groups for _ in range(group.columns)]
    starts = set()
    top: list[HeadCell] = []
    place = 0
    for group in table.groups:
        if group.title:
            starts.add(place)
            top.append(HeadCell(
                text=group.title, columns=group.columns, arm=group.arm, classes=_classes(group.title, edge=True)
            ))  # fmt: skip
        else:
            top += [_leaf(table, each, rows=2) for each in range(place, place + group.columns)]
        place += group.columns
    if not top:
        yield tuple(_leaf(table, each) for each in range(len(table.head)))
        return
    yield tuple(top)
    yield tuple(_leaf(table, each, edge=each in starts) for each, title in enumerate(titles) if title)


def _leaf(table: PageTable, place: int, rows: int = 1, edge: bool = False) -> HeadCell:
    text = table.head[place]
    classes = _classes(text, number=_is_number(table, place), edge=edge)
    return HeadCell(text=text, rows=rows, place=place, name=table.columns[place], classes=classes)


def _classes(text: str, number: bool = False, edge: bool = False) -> str:
    classes = {"number": number, "edge": edge, "long": len(text) > WRAPS}
    return " ".join(name for name, applies in classes.items() if applies)


def _is_number(table: PageTable, place: int) -> bool:
    return bool(table.numbers) and table.numbers[place]


def _css(table: PageTable, name: str) -> Markup:
    """Alignment, borders and widths of the columns, which cells would otherwise repeat."""
    rules = []
    place = 0
    edges = set()
    for group in table.groups:
        if group.title:
            edges.add(place)
        place += group.columns
    for place in range(len(table.head)):
        each = f"#{name} tbody > tr > :nth-child({place + 1})"
        details = [len(cell.detail) for row in table.rows if isinstance(cell := _at(row, place), PageCell)]
        if _is_number(table, place):
            rules.append(f"{each} {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}")
        if place in edges:
            rules.append(f"{each} {{ border-left: 1px solid var(--line); }}")
        if any(details) and _is_number(table, place):
            rules.append(f"{each} small {{ min-width: {max(details)}ch; }}")
    return Markup("\n".join(rules))


def _at(row: Sequence[str | PageCell], place: int) -> str | PageCell:
    return row[place] if place < len(row) else ""


def _rows(table: PageTable, color: Callable[[str], str]) -> tuple[Markup, int]:
    """The rows that fit, and their number. The last cell of a short row spans the rest."""
    shown = table.rows if table.search else table.rows[:MAX_ROWS]
    longest = max(1, sum(len(str(cell)) > CLIP for row in shown for cell in row))
    limit = max(CLIP, min(MAX_TEXT, MAX_TEXTS // longest))
    lines: list[str] = []
    size = 0
    for row in shown:
        line = "<tr>" + "".join(_cell(table, row, place, limit, color) for place in range(len(row))) + "\n"
        size += len(line.encode())
        if size > MAX_BYTES:
            break
        lines.append(line)
    return Markup("".join(lines)), len(lines)


def _cell(table: PageTable, row: Sequence[str | PageCell], place: int, limit: int, color: Callable[[str], str]) -> str:
    cell = row[place]
    classes = []
    opening = ""
    if place == len(row) - 1 < len(table.head) - 1:
        opening = f" colspan={len(table.head) - place}"
        classes.append("rest")
    if isinstance(cell, PageCell):
        content, text = _figure(cell, _is_number(table, place), color), cell.text
    else:
        text = cell
        content = f"<code>{escape(cell)}</code>" if COMMAND.match(cell) else str(escape(cell))
    if len(text) > WRAPS and not _is_number(table, place):
        classes.append("w")
        content = _folded(text, limit) if len(text) > CLIP and not COMMAND.match(text) else content
    if "rest" in classes:
        content = f"<div>{content}</div>"
    opening += f' class="{" ".join(classes)}"' if classes else ""
    return f"<td{opening}>{content}"


def _figure(cell: PageCell, number: bool, color: Callable[[str], str]) -> str:
    """Text with its square, its weight, and its detail; in a column of numbers the detail's place is kept."""
    text = str(escape(cell.text))
    text = f"<b>{text}</b>" if cell.bold else text
    if cell.arm:
        text = f'<i class="square c-{color(cell.arm)}"></i><bdi>{text}</bdi>'
    return text + (f"<small>{escape(cell.detail)}</small>" if cell.detail or number else "")


def _folded(text: str, limit: int) -> str:
    whole = text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters; data.csv has all)"
    return f"<details><summary>{escape(text[:CLIP])} ...</summary><p>{escape(whole)}</p></details>"
