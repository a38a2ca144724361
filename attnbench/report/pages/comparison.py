"""The comparison page: the first run against each later one, and the history of the project."""

import math
from pathlib import Path

from attnbench import units
from attnbench.analysis import comparison
from attnbench.analysis.stats import Estimate
from attnbench.errors import NotComparableError
from attnbench.gate import history
from attnbench.report.charts import commit_trend, run_ratios, run_trend
from attnbench.report.charts.drawing import Chart
from attnbench.report.pages.page import Page, PageTable, ReportData, drawn, without_empty_columns
from attnbench.report.pivot import interval


def page(data: ReportData) -> Page:
    """Ratios of times, also across machines, where the text says so; trends over several runs or commits."""
    comparisons, text = _compare(data)
    charts = [run_ratios.chart(pairs.pairs, _name(pairs.old), _name(pairs.new)) for pairs in comparisons]
    shown = [chart for chart in charts if chart is not None]
    ratios = [(f"ratios-{number}" if len(shown) > 1 else "ratios", chart) for number, chart in enumerate(shown, 1)]
    trend = drawn(trend=_trend(comparisons), commits=commit_trend.chart(data.trend))
    tables = list(map(_table, comparisons))
    if data.trend:
        tables.append(_changes(data.trend))
    return Page(
        text=tuple(text),
        charts=(*trend, *ratios),
        tables=tuple(map(without_empty_columns, tables)),
        hint="attnbench report OLD NEW compares runs; attnbench history --add RUN begins a trend",
    )


def _compare(data: ReportData) -> tuple[list[comparison.Comparison], list[str]]:
    """The comparisons of the first run with the others, and what a reader must know of them."""
    comparisons, text = [], []
    first, *later = data.runs
    sides = [comparison.arms_of(rows) for rows in data.by_run]
    for run, side in zip(later, sides[1:], strict=True):
        try:
            pairs = comparison.compare(first, run, cross_machine=True, arms=(sides[0], side))
        except NotComparableError as error:
            text.append(str(error))
            continue
        comparisons.append(pairs)
        if pairs.cross_machine:
            text.append(f"{run.path.name}: measured on another machine, so no difference is a regression")
    return comparisons, text


def _name(path: str) -> str:
    return Path(path).name


def _trend(comparisons: list[comparison.Comparison]) -> Chart | None:
    """The geometric means of at least two later runs of the first run's machine."""
    means = [(_name(pairs.new), pairs.geomeans) for pairs in comparisons if not pairs.cross_machine]
    if len(means) < 2:
        return None
    level = {arm: Estimate(value=1.0) for _, geomeans in means for arm in geomeans}
    return run_trend.chart([(_name(comparisons[0].old), level), *means])


def _table(pairs: comparison.Comparison) -> PageTable:
    return PageTable(
        heading=f"{_name(pairs.new)} against {_name(pairs.old)}",
        head=("case", "old", "new", "new / old", "95 %", "change", "reason"),
        rows=[
            (
                pair.name, units.seconds(pair.old_s), units.seconds(pair.new_s),
                f"{pair.ratio.value:.3f}" if pair.ratio else "-", interval(pair.ratio, 3, " .. "), pair.change.value,
                pair.reason,
            )
            for pair in pairs.pairs
        ],
        numbers=(False, True, True, True, True, False, False),
    )  # fmt: skip


def _changes(series: commit_trend.Series) -> PageTable:
    changes = [change for case, values in series.items() for change in history.changes(case, values)]
    commits = len({commit.name for values in series.values() for commit, _ in values})
    unchanged = "" if changes else " No level changed."
    return PageTable(
        heading="Changes of level over the history",
        head=("case", "first of the new level", "measured", "before", "after", "change"),
        rows=[
            (
                change.case, change.at.name, change.at.measured_at, units.seconds(change.before_s),
                units.seconds(change.after_s), units.change(change.ratio - 1),
            )
            for change in sorted(changes, key=lambda change: -abs(math.log(change.ratio)))
        ],
        numbers=(False, False, False, True, True, True),
        note=f"{commits} commits of this machine, {len(series)} cases.{unchanged}",
    )  # fmt: skip
