"""Markdown: the same sections as the page, failures first, then the answer and the tables."""

import re
from collections.abc import Iterable, Iterator, Sequence

from attnbench import units
from attnbench.analysis.rows import Place, Row
from attnbench.report import pivot
from attnbench.report.answer import Advice, Answer, AnswerGrid, FixedChoice, GridCell
from attnbench.report.pages.page import MAX_LISTED, MAX_ROWS, Page, PageTable
from attnbench.report.quantities import listed, times

COMMAND = "attnbench "  # begins what is shown as code
_BACKTICK = re.compile(r"(?<!\\)`")  # that marks code
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def page(answer: Answer | None, sections: Sequence[Page], title: str = "") -> str:
    """The whole report; a section without data is named at the end, with the command that fills it."""
    parts = [f"# {escape(title or 'attnbench')}", *(_answer(answer) if answer else ())]
    for section in sections:
        if section.tables or (section.text and not section.hint):
            parts += _section(section)
    hints = [f"- {escape(each.finding)}: {_sentence(each.hint)}" for each in sections if each.empty and each.hint]
    parts += ["## What else can be measured", "\n".join(hints)] if hints else []
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A table of text, with columns of numbers aligned to the right."""
    align = f"|{'|'.join('---:' if number else '---' for number in numbers)}|"
    return "\n".join([_line(map(escape, head)), align, *(_line(map(escape, row)) for row in rows)]) + "\n"


def tables(rows: Sequence[Row]) -> str:
    """The pivot tables alone, with what their cells and marks mean."""
    items = [*(f"{symbol} {meaning}" for symbol, meaning in pivot.legend(rows)), *pivot.wide_ties(rows)]
    legend = "\n".join(f"- {escape(item)}" for item in items)
    parts = [*_pivot_tables(rows), escape(pivot.caption(rows)), legend]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text without line breaks and without characters that are special in Markdown or HTML."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _answer(answer: Answer) -> Iterator[str]:
    if answer.failures:
        yield "**Wrong or failed**"
        yield _list(answer.failures)
    yield f"**{escape(answer.headline)}** {_sentence(answer.lead)}".strip()
    yield _sentence(answer.context)
    if answer.cautions:
        yield "**Read with care**"
        yield _list(answer.cautions)
    yield from _grid(answer.grid) if answer.grid else ()
    yield from _fixed(answer.fixed) if answer.fixed else ()
    yield _sentence(answer.checked)


def _list(items: Iterable[Advice]) -> str:
    lines = [(_sentence(item.text or "Details:"), _code(item.command) if item.command else "") for item in items]
    return "\n".join(f"- {' '.join(filter(None, line))}" for line in lines)


def _grid(grid: AnswerGrid) -> Iterator[str]:
    yield f"### {escape(grid.heading)}"
    head = (escape(grid.axis), *map(escape, grid.columns))
    lines = [_line((escape(text), *map(_grid_cell, cells))) for text, cells in grid.rows]
    yield "\n".join([_line(head), _line(["---"] * len(head)), *lines])


def _grid_cell(cell: GridCell) -> str:
    if cell.kind == "absent":
        return ""
    if cell.kind == "missing":
        return _sentence(cell.detail)
    names = escape(listed(cell.arms, "or", len(cell.arms)))
    return " ".join(filter(None, (f"**{names}**" if cell.kind == "best" else names, cell.figure, escape(cell.detail))))


def _fixed(choices: Sequence[FixedChoice]) -> Iterator[str]:
    yield "### If one backend must serve all: its time over the best"
    rows = [
        (
            " ".join(filter(None, (choice.arm, choice.where))), times(choice.mean), times(choice.worst),
            choice.worst_at, f"{choice.runs} of {choice.of}",
        )
        for choice in choices
    ]  # fmt: skip
    yield table(("backend", "mean", "worst", "at", "problems"), rows, (False, True, True, False, True)).rstrip()


def _section(section: Page) -> Iterator[str]:
    yield f"## {_sentence(section.finding or section.title)}"
    yield from map(_sentence, section.text)
    for each in section.tables:
        yield from _table(each)


def _table(page_table: PageTable) -> Iterator[str]:
    """A table of a section with the heading of each column's group in its own."""
    limit = MAX_LISTED if page_table.search else MAX_ROWS
    head, numbers = page_table.columns, page_table.numbers or (False,) * len(page_table.head)
    yield f"### {escape(page_table.heading)}"
    if any(page_table.head):
        rows = [[*map(_cell_text, row), *[""] * (len(head) - len(row))] for row in page_table.rows[:limit]]
        align = f"|{'|'.join('---:' if number else '---' for number in numbers)}|"
        yield "\n".join([_line(map(escape, head)), align, *map(_line, rows)])
    else:
        yield "\n".join(
            f"- {escape(str(row[0]))}: {', '.join(map(_cell_text, row[1:]))}" for row in page_table.rows[:limit]
        )
    yield f"{limit:,} of {len(page_table.rows):,} rows; data.csv has all." if len(page_table.rows) > limit else ""
    yield _sentence(page_table.note)


def _cell_text(cell: object) -> str:
    text = str(cell)
    if text.startswith(COMMAND):
        return _code(text)
    return f"**{escape(text)}**" if getattr(cell, "bold", False) else escape(text)


def _code(text: str) -> str:
    """Code within a line. Its text can neither end it nor the cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def _sentence(text: str) -> str:
    """Escaped text, where what stands in backticks is code, but for those of `reasons.literal`."""
    parts = [part.replace("\\`", "`") for part in _BACKTICK.split(" ".join(text.split()))]
    if len(parts) % 2 == 0:
        return _escaped("`".join(parts))
    return "".join(_code(part) if place % 2 else _escaped(part) for place, part in enumerate(parts))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _pivot_tables(rows: Sequence[Row]) -> Iterator[str]:
    layout, notes = pivot.pivot(rows).of_times, pivot.Footnotes()
    if layout.constant:
        yield f"Common to all: {escape(layout.constant)}."
    head = [escape(layout.axis), *(escape(" ".join(column.heading)) for column in layout.columns)]
    for section in layout.sections:
        lines = [_line(head), _line(["---:"] * len(head))]
        for label, cells in section.lines:
            lines.append(_line([escape(label), *(_cell(cells.get(column.arm), notes) for column in layout.columns)]))
        heading = f"### {escape(section.heading)}\n\n" if section.heading else ""
        yield heading + "\n".join(lines)
    yield "\n".join(f"- {letter}: {escape(reason)}" for letter, reason in notes.lines)
    yield "\n".join(f"- {escape(arm)}: {escape(reason)}" for arm, reason in layout.absent)


def _cell(row: Row | None, notes: pivot.Footnotes) -> str:
    if row is None:
        return ""
    if row.time_s is None:
        return f"- ({notes.letter(pivot.why(row))})"
    time = units.seconds(row.time_s)
    parts = (f"**{time}**" if row.place is Place.FASTEST else time, pivot.factor(row.speedup), escape(pivot.mark(row)))
    return " ".join(filter(None, parts))
