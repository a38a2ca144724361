"""The last section: every case once, outcomes with their reasons, and combinations that are no problem."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.records.result import Status
from attnbench.report import memory_method, pivot, quantities, summary
from attnbench.report.pages import accuracy, ranking, tables, trust
from attnbench.report.pages.page import MAX_LISTED, Page, PageCell, PageTable, ReportData, blocks, without_empty_columns
from attnbench.report.reasons import without_numbers
from attnbench.units import counted

MAX_REASON = 300  # characters in the table of outcomes; the table of all cases has the whole reason
MAX_PROBLEMS = 10_000  # lines where each stands for a problem
FACTS = ("arm_name", "device", "dtype", "mode")


def page(data: ReportData) -> Page:
    """Outcomes if any case is not ok, then all cases; of very many a line a problem."""
    if not data.rows:
        return Page(finding="All cases", text=("The run has no results yet.",))
    every = _every(data) if len(data.rows) <= MAX_LISTED else _problems(data)
    tables_of_all = (every, accuracy.table(data), trust.table(data))
    return Page(finding=finding(data.rows), blocks=blocks(_outcomes(data.rows), *tables_of_all, _impossible(data)))


def finding(rows: Sequence[Row]) -> str:
    """`All 24 cases: 21 ok, 3 skipped`."""
    counts = summary.counts(rows)
    if set(counts) == {Status.OK.value}:
        return f"All {len(rows):,} cases were measured" if len(rows) > 1 else "The only case was measured"
    parts = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    return f"{'All ' + counted(len(rows), 'case') if len(rows) > 1 else 'The only case'}: {parts}"


def _every(data: ReportData) -> PageTable:
    layout = data.layout
    rows = [row for contest in ranking.contests(data.rows, layout) for row in contest.rows]
    time = quantities.unit((row.time_s for row in rows), quantities.SECONDS)
    memory = quantities.unit((row.total_bytes for row in rows), quantities.BYTES)
    devices = len({row.device for row in rows}) > 1 and "device" not in layout.columns
    method = memory_method.words(rows)
    peak = f" Peak memory is of a call with its outputs, by {method}." if method else ""
    table = PageTable(
        heading=counted(len(rows), "case"),
        head=(
            *tables.head(rows, layout), "backend", *(("device",) if devices else ()), "outcome", time.name,
            f"peak {memory.name}", "max error", "rounds", "id",
        ),
        rows=[
            (
                *tables.problem(row, layout), PageCell(text=row.arm_name, arm=row.arm_name),
                *((row.device,) if devices else ()), outcome(row), time.show(row.time_s), memory.show(row.total_bytes),
                accuracy.error(row.max_abs_err), f"{row.rounds:.0f}" if row.rounds else quantities.DASH, row.case_id,
            )
            for row in rows
        ],
        numbers=(
            *tables.numeric(rows, layout), False, *((False,) if devices else ()), False, True, True, True, True, False,
        ),
        note="`attnbench explain ID` explains a case." + peak,
        search=True,
        folded=True,
    )  # fmt: skip
    return without_empty_columns(table)


def outcome(row: Row) -> str:
    """`ok, noisy`, or the status with the whole reason."""
    if row.time_s is None:
        return pivot.why(row)
    return ", ".join(
        filter(None, ("ok", "noisy" if row.noisy else "", f"impossible: {row.impossible}" if row.impossible else ""))
    )


def _problems(data: ReportData) -> PageTable:
    """A line for each problem: the best backend with its time, and how the others ended."""
    problems = ranking.contests(data.rows, data.layout)
    time = quantities.unit((row.time_s for row in data.rows), quantities.SECONDS)
    lines = []
    for contest in problems[:MAX_PROBLEMS]:
        best = contest.leaders[0] if contest.leaders else None
        counts = summary.counts(contest.rows)
        lines.append((
            *tables.problem(contest.first, data.layout),
            quantities.listed([row.arm_name for row in contest.leaders], "or") if best else quantities.DASH,
            time.show(best.time_s) if best else quantities.DASH,
            ", ".join(f"{count} {status}" for status, count in counts.items()),
        ))  # fmt: skip
    left_out = f"The first {MAX_PROBLEMS:,} of {len(problems):,}. " if len(problems) > MAX_PROBLEMS else ""
    return PageTable(
        heading=f"{counted(len(data.rows), 'case')} in {counted(len(problems), 'problem')}",
        head=(*tables.head(data.rows, data.layout), "fastest", time.name, "outcomes"),
        rows=lines,
        numbers=(*tables.numeric(data.rows, data.layout), False, True, False),
        note=f"{left_out}data.csv has every case.",
        search=True,
        folded=True,
    )


def _outcomes(rows: Sequence[Row]) -> PageTable:
    """How the cases of each backend ended, with the reasons; reasons that differ in numbers alone are one."""
    facts = [name for name in FACTS if name == "arm_name" or len({str(row.value(name)) for row in rows}) > 1]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kind = "" if row.status is Status.OK else without_numbers(row.reason)
        key = (*(str(row.value(name)) for name in facts), row.status.value, kind)
        groups.setdefault(key, []).append(row)
    lines = []
    for key, group in groups.items():
        first = group[0]
        reason = "" if first.status is Status.OK else quantities.clipped(first.reason, MAX_REASON)
        name = PageCell(text=first.arm_name, arm=first.arm_name)
        lines.append((name, *key[1 : len(facts)], first.status.value, str(len(group)), reason))
    return PageTable(
        heading="Outcomes",
        head=("backend", *facts[1:], "outcome", "cases", "reason"),
        rows=lines if any(row.status is not Status.OK for row in rows) else (),
        numbers=(*([False] * len(facts)), False, True, False),
    )


def _impossible(data: ReportData) -> PageTable:
    lines = dict.fromkeys(each for run in data.runs for each in run.manifest.impossible)
    return PageTable(
        heading="Combinations that are no problem", head=("combination", "reason"), rows=list(lines), folded=True
    )
