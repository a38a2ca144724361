"""The grid of a report's first screen: the best backend of each problem, panels downwards and the axis to the right."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.analysis.rows import Row, Value
from attnbench.report import missing, pivot, quantities
from attnbench.report.answer import AnswerGrid, GridCell
from attnbench.report.charts import panels
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.pages import places, ranking
from attnbench.report.pages.ranking import Contest
from attnbench.report.reasons import literal
from attnbench.units import counted

MAX_COLUMNS = 16  # more make the rows, or every problem gets a row of its own
MAX_SPARSE = 4  # times the problems: with more cells, every problem gets a row of its own
MAX_CELLS = 1000
COMPACT_ROWS = 40
MAX_NAMES = 4  # of tied backends in one cell
MAX_TIP = 8  # backends in the sentence of one cell
ABSENT = GridCell(kind="absent")
Place = tuple[tuple[Value, ...], Value]  # panel and value of the axis


def grid(rows: Sequence[Row], problems: Sequence[Contest], layout: PanelLayout) -> AnswerGrid | None:
    """None without any problem."""
    if not problems:
        return None
    by_place: dict[Place, Contest] = {
        (layout.panel(contest.first), contest.first.value(layout.axis)): contest for contest in problems
    }
    headings = {key: layout.heading(group[0]) for key, group in layout.panels(rows).items()}
    values = sorted({value for _, value in by_place}, key=lambda value: float(value or 0))
    title = panels.axis_title(layout.axis, rows)
    size = len(headings) * len(values)
    crowded = len(by_place) < len(problems) or min(len(headings), len(values)) > MAX_COLUMNS
    of_requests = layout.axis == panels.TOKENS or "requests" in layout.columns
    if crowded or size > MAX_SPARSE * len(problems) or of_requests:
        return _list(problems, layout)
    across = {value: ranking.axis_words(layout.axis, value) for value in values}
    if len(values) <= MAX_COLUMNS:
        lines = [(heading, [by_place.get((panel, value)) for value in values]) for panel, heading in headings.items()]
        return _grid(problems, title, list(across.values()), lines, layout)
    lines = [(text, [by_place.get((panel, value)) for panel in headings]) for value, text in across.items()]
    return _grid(problems, title, list(headings.values()), lines, layout)


def _list(problems: Sequence[Contest], layout: PanelLayout) -> AnswerGrid:
    """Every problem in a row of its own: they have no axis in common."""
    lines = [(places.of(contest.first, layout), [contest]) for contest in problems]
    return _grid(problems, "problem", [""], lines, layout)


def _grid(
    problems: Sequence[Contest], axis: str, columns: Sequence[str],
    lines: Sequence[tuple[str, Sequence[Contest | None]]], layout: PanelLayout,
) -> AnswerGrid:  # fmt: skip
    shown = lines[: max(MAX_CELLS // len(columns), 1)]
    reference = pivot.references([row for contest in problems if contest.contested for row in contest.rows])
    heading = f"Best backend, its speed-up over {reference}, and its time" if reference else "Best backend and its time"
    count = sum(contest is not None for _, cells in shown for contest in cells)
    if len(shown) < len(lines):
        heading += f": {count:,} of {counted(len(problems), 'problem')}"
    return AnswerGrid(
        heading=heading,
        axis=axis,
        columns=tuple(columns),
        rows=tuple((text, tuple(_cell(contest, layout) for contest in cells)) for text, cells in shown),
        compact=len(shown) > COMPACT_ROWS,
    )


def _cell(contest: Contest | None, layout: PanelLayout) -> GridCell:
    if contest is None:
        return ABSENT
    place = places.of(contest.first, layout)
    if not contest.leaders:
        return GridCell(
            kind="missing",
            detail=literal(missing.why(contest.rows)),
            tip=f"{place}: {missing.every(contest.rows, MAX_TIP)}",
        )
    best = contest.leaders[0]
    names = tuple(row.arm_name for row in contest.leaders[:MAX_NAMES])
    more = len(contest.leaders) - len(names)
    time = quantities.seconds(best.time_s) + (" · noisy" if best.noisy else "")
    if more:
        time += f" · and {more} more"
    if not contest.contested:
        time += " · alone"
    tied = len(contest.leaders) > 1
    return GridCell(
        kind="tied" if tied else "best",
        arms=names,
        figure=_tied(best) if tied else _speedup(best) if contest.contested else "",
        detail=time,
        tip=_tip(contest, place),
    )


def _speedup(row: Row) -> str:
    if row.arm == row.reference:
        return "1×"
    return quantities.times(row.speedup) if row.speedup else ""


def _tied(first: Row) -> str:
    """The interval of the speed-up of the backend that is named first; the tip of the cell has those of the others."""
    if first.arm == first.reference:
        return "tied at 1×"
    interval = _interval(first)
    return f"tied{':' if '..' in interval else ' at'} {interval}" if interval else "tied"


def _interval(row: Row) -> str:
    """`0.93..4.0×`; one number where both ends read the same, and nothing without an interval."""
    if not row.speedup_low or not row.speedup_high:
        return ""
    low, high = map(quantities.times, (row.speedup_low, row.speedup_high))
    return low if low == high else quantities.between(row.speedup_low, row.speedup_high)


def _tip(contest: Contest, place: str) -> str:
    """The times of those that were compared, the leaders first, then of the others."""
    behind = [row for row in contest.ranked if row not in contest.leaders]
    compared = [*contest.leaders, *sorted(behind, key=lambda row: row.seconds)]
    apart = [row for row in contest.rows if row.place and row not in compared]
    others = f"; in other rounds {_times(apart)}" if apart else ""
    return f"{place}: {_times(compared)}{_ties(contest.leaders)}{others}"


def _ties(leaders: Sequence[Row]) -> str:
    """`; the first are tied: flex 2.0×, sdpa:math 0.93..4.0×`, with the intervals that make the tie."""
    if len(leaders) < 2:
        return ""
    others = [row for row in leaders[:MAX_TIP] if row.arm != row.reference]
    intervals = ", ".join(f"{row.arm_name} {_interval(row)}" for row in others if _interval(row))
    return "; the first are tied" + (f": {intervals}" if intervals else "")


def _times(rows: Sequence[Row]) -> str:
    shown = [f"{row.arm_name} {quantities.seconds(row.time_s)}" for row in rows[:MAX_TIP]]
    return ", ".join(shown) + (f" and {len(rows) - MAX_TIP} more" if len(rows) > MAX_TIP else "")
