"""The section of suites that hold a model's shapes, and of decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attnbench.analysis.rows import Row, phase
from attnbench.report import missing, quantities
from attnbench.report.pages import ranking, tables
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, blocks
from attnbench.report.quantities import listed, whole
from attnbench.units import counted

NO_MODEL = (
    "",
    "quick",
    "custom",
    "replay",
    "ci",
    "scaling",
    "claims",
    "verify",
    "kernels",
)  # suites about no application
MAX_BEST = 4  # of tied backends in one cell


def page(data: ReportData) -> Page:
    """The fastest backends of each model's shapes, and decoding in tokens and bytes a second."""
    models = [
        (run.manifest.suite, rows, run.left)
        for run, rows in zip(data.runs, data.by_run, strict=True)
        if run.manifest.suite not in NO_MODEL and any(contest.contested for contest in ranking.contests(rows))
    ]
    if not models:  # each run compares the backends of a problem once
        of_runs = [[row for row in rows if phase(row) == "decode" and row.place] for rows in data.by_run]
        names = [f"decoding in {name}" if len(data.runs) > 1 else "decoding" for name in data.names]
        models = [(name, rows, run.left) for name, rows, run in zip(names, of_runs, data.runs, strict=True) if rows]
    if not models:
        return Page(finding="the shapes of a model", hint="`attnbench run llama3-8b`")
    return Page(
        finding="; ".join(dict.fromkeys(_finding(*model) for model in models)),
        text=("Attention alone: tokens a second are of one layer's attention, not of a model.",),
        blocks=blocks(*(_table(name, rows, data) for name, rows, _ in models)),
    )


def _finding(name: str, rows: Sequence[Row], left: str) -> str:
    """`llama3-8b: naive is fastest in 4 of 4 shapes`."""
    problems = ranking.contests(rows)
    contested = [contest for contest in problems if contest.contested]
    part = ranking.part(problems, left, "shape")
    wins = Counter(contest.winner.arm_name for contest in contested if contest.winner)
    if not contested:
        return f"{name}: {listed(list(dict.fromkeys(row.arm_name for row in rows if row.place)))}"
    if not wins:
        return f"{name}: no backend is fastest in any of {part or counted(len(contested), 'shape')}"
    counts = [f"{arm} {count}" for arm, count in wins.most_common()[1:]]
    (arm, count), *_ = wins.most_common(1)
    rest = f", {listed(counts)}" if counts else ""
    if count == len(contested):
        return f"{name}: {arm} is fastest in {part or whole(count, 'shape')}"
    return f"{name}: {arm} is fastest in {count} of {part or counted(len(contested), 'shape')}{rest}"


def _table(name: str, rows: Sequence[Row], data: ReportData) -> PageTable:
    """Of each shape the best backends, their time, and what that is in tokens and bytes a second."""
    measured = [row for row in rows if row.place]
    time = quantities.unit((row.time_s for row in measured), quantities.SECONDS)
    tokens = quantities.unit((row.tokens_per_s for row in measured), quantities.RATES, "token/s")
    traffic = quantities.unit((row.bytes_per_s for row in measured), quantities.RATES, "B/s")
    lines: list[tuple[str | PageCell, ...]] = []
    for contest in ranking.contests(rows, data.layout):
        words = tables.problem(contest.first, data.layout)
        if not contest.leaders:
            lines.append((*words, missing.why(contest.rows)))
            continue
        best = contest.leaders[0]
        names = listed([row.arm_name for row in contest.leaders], "or", MAX_BEST)
        lines.append((
            *words, PageCell(text=names, arm=best.arm_name), time.show(best.time_s), tokens.show(best.tokens_per_s),
            traffic.show(best.bytes_per_s),
        ))  # fmt: skip
    return PageTable(
        heading=f"{name}: the fastest of each shape",
        head=(*tables.head(data.rows, data.layout), "fastest", time.name, tokens.name, traffic.name),
        rows=lines,
        numbers=(*tables.numeric(data.rows, data.layout), False, True, True, True),
    )
