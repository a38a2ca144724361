"""Tables of a page: rows are problems, column groups are backends; and the words that distinguish problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from attnbench.analysis.rows import Row, Value
from attnbench.records.case import spell
from attnbench.report import missing, quantities
from attnbench.report.charts import panels
from attnbench.report.charts.lines import missing_word
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.charts.style import in_order
from attnbench.report.pages.page import ColumnGroup, PageCell, PageTable
from attnbench.report.pages.ranking import Contest

MAX_GROUPS = 6  # backends side by side; of more each gets rows of its own
HEADS = {"phase": "phase", "head_dim": "head dim", "kv_heads": "key heads", "seq_q": "queries", "seq_kv": "keys"}


class ArmColumn(msgspec.Struct, frozen=True):
    """One column of each backend: its heading with the unit, and its cell of a row beside the others."""

    head: str
    cell: Callable[[Row, Contest], str | PageCell]
    shown: Callable[[Row], bool]  # whether a row has the figure


def by_backend(
    heading: str, problems: Sequence[Contest], layout: PanelLayout, figures: Sequence[ArmColumn], note: str = "",
    missing: bool = False, folded: bool = False,
) -> PageTable | None:  # fmt: skip
    """A line for each problem with the figures of each backend; None without any figure.

    A backend or a figure that no problem has gets no column. With `missing`, a problem without any has its reason.
    """
    rows = [row for contest in problems for row in contest.rows]
    figures = [figure for figure in figures if any(map(figure.shown, rows))]
    arms = in_order(row.arm_name for row in rows if any(figure.shown(row) for figure in figures))
    if not figures or not arms:
        return None
    heads = [*_head(problems, layout)]
    if len(arms) > MAX_GROUPS:
        return _long(heading, problems, layout, figures, heads, note)
    shown = [each for each in problems if missing or any(figure.shown(row) for row in each.rows for figure in figures)]
    groups = [ColumnGroup("", len(heads)), *(ColumnGroup(arm, len(figures), arm) for arm in arms)]
    return PageTable(
        heading=heading,
        head=(*heads, *(figure.head for _ in arms for figure in figures)),
        rows=[_line(contest, layout, figures, arms) for contest in shown],
        numbers=(*_numbers(problems, layout), *([True] * len(arms) * len(figures))),
        note=note,
        groups=tuple(groups),
        folded=folded,
    )


def _line(
    contest: Contest, layout: PanelLayout, figures: Sequence[ArmColumn], arms: Sequence[str]
) -> tuple[str | PageCell, ...]:
    rows = {row.arm_name: row for row in contest.rows}
    words = problem(contest.first, layout)
    if not any(figure.shown(row) for row in contest.rows for figure in figures):
        return (*words, missing.why(contest.rows))
    first = figures[0]
    return (*words, *(_cell(rows.get(arm), contest, figure, figure is first) for arm in arms for figure in figures))


def _long(
    heading: str, problems: Sequence[Contest], layout: PanelLayout, figures: Sequence[ArmColumn], heads: Sequence[str],
    note: str,
) -> PageTable:  # fmt: skip
    """A line for each backend of each problem, the fastest first."""
    lines: list[tuple[str | PageCell, ...]] = []
    for contest in problems:
        measured = [row for row in contest.rows if any(figure.shown(row) for figure in figures)]
        for row in sorted(measured, key=lambda row: row.time_s or 0.0):
            name = PageCell(text=row.arm_name, arm=row.arm_name)
            lines.append((*problem(row, layout), name, *(_cell(row, contest, figure) for figure in figures)))
    return PageTable(
        heading=heading,
        head=(*heads, "backend", *(figure.head for figure in figures)),
        rows=lines,
        numbers=(*_numbers(problems, layout), False, *([True] * len(figures))),
        note=note,
        search=True,
        folded=True,
    )


def _cell(row: Row | None, contest: Contest, figure: ArmColumn, first: bool = False) -> str | PageCell:
    """The figure; in the first column of a backend without it a word on why."""
    if row is None:
        return ""
    if figure.shown(row):
        return figure.cell(row, contest)
    return PageCell(text=quantities.DASH, detail=missing_word(row)) if first and row.time_s is None else quantities.DASH


def head(rows: Sequence[Row], layout: PanelLayout) -> list[str]:
    """The headings of the columns that distinguish problems."""
    names = [HEADS.get(name, name.replace("_", " ")) for name in layout.columns]
    title = panels.axis_title(layout.axis, rows).removeprefix("sequence ").removeprefix("number of ")
    return [*names, "requests" if layout.axis == panels.TOKENS else title]


def _head(problems: Sequence[Contest], layout: PanelLayout) -> list[str]:
    return head([contest.first for contest in problems], layout)


def problem(row: Row, layout: PanelLayout) -> tuple[str, ...]:
    """The values that distinguish the problem of a row."""
    place = layout.place(row)[1] if layout.axis == panels.TOKENS else text(row.value(layout.axis))
    return (*(text(panels.column_value(row, name)) for name in layout.columns), place)


def numeric(rows: Iterable[Row], layout: PanelLayout) -> list[bool]:
    """Which of these columns hold numbers."""
    rows = list(rows)
    columns = [[panels.column_value(row, name) for row in rows] for name in layout.columns]
    columns.append([row.requests if layout.axis == panels.TOKENS else row.value(layout.axis) for row in rows])
    return [
        all(isinstance(value, int | float) and not isinstance(value, bool) for value in column) for column in columns
    ]


def _numbers(problems: Sequence[Contest], layout: PanelLayout) -> list[bool]:
    return numeric((contest.first for contest in problems), layout)


def text(value: Value) -> str:
    """A value in a cell."""
    if value is None or value == "":
        return quantities.DASH
    return spell(value)


def half_width(low: float | None, high: float | None, value: float | None) -> str:
    """`±26 %`: half of the interval as a share of the value; empty without one."""
    if low is None or high is None or not value:
        return ""
    return f"±{quantities.percent((high - low) / 2 / value)}"


def signs(row: Row) -> str:
    """`!` for a noisy time, `?` for an impossible one."""
    return " ".join(filter(None, ("!" if row.noisy else "", "?" if row.impossible else "")))
