"""The accuracy section: errors against float64, and which outputs are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench.analysis.rows import Row
from attnbench.records.arm import labels
from attnbench.records.result import Status
from attnbench.report import probe_outcomes, quantities
from attnbench.report.charts import accuracy
from attnbench.report.pages import places, ranking, tables
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, blocks, half
from attnbench.report.quantities import listed
from attnbench.report.reasons import literal
from attnbench.units import counted, exponential


def page(data: ReportData) -> Page:
    """Errors of the worst output of each case."""
    checked = [row for row in data.rows if row.status in (Status.OK, Status.INCORRECT)]
    if not checked:
        return Page()
    return Page(finding=finding(checked), text=tuple(_text(data)), blocks=blocks(half(accuracy.figure(data.rows))))


def finding(checked: Sequence[Row]) -> str:
    """`Every output is right`, or which are wrong."""
    wrong = Counter(row.arm_name for row in checked if row.status is Status.INCORRECT)
    if not wrong:
        return "Every output is right" if len(checked) > 1 else "The output is right"
    arms = [arm if len(wrong) == 1 else f"{arm} {count}" for arm, count in wrong.most_common()]
    count = sum(wrong.values())
    if count == len(checked):
        return f"{'Every' if count > 1 else 'The'} output is wrong: {listed(arms)}"
    return f"{count} of {counted(len(checked), 'output')} {'is' if count == 1 else 'are'} wrong: {listed(arms)}"


def _text(data: ReportData) -> Iterator[str]:
    """The worst error of the right outputs, as a multiple of the plain formula's; what probes of inputs gave."""
    for run in data.runs:
        yield from map(literal, probe_outcomes.sentences(run.results, labels(result.arm for result in run.results)))
    rows = [row for row in data.rows if row.status is Status.OK and row.err_vs_plain is not None]
    if not rows:
        yield "The largest error of each output against float64 stands with the cases below."
        return
    worst = max(rows, key=lambda row: row.err_vs_plain or 0.0)
    place = places.of(worst, data.layout)
    yield (
        "Largest error of each case in units of the error of the plain formula in the same dtype. The worst of the "
        f"right outputs has {quantities.times(worst.err_vs_plain)} ({worst.arm_name}, {place}). The limit is 2× for "
        "most outputs; single elements may exceed it by what rounding explains."
    )


def table(data: ReportData) -> PageTable | None:
    """Errors of each case as numbers, for the last section."""
    figures = [
        tables.ArmColumn("÷ formula", lambda row, _: _ratio(row), lambda row: row.err_vs_plain is not None),
        tables.ArmColumn("max error", lambda row, _: error(row.max_abs_err), lambda row: row.max_abs_err is not None),
        tables.ArmColumn("RMS", lambda row, _: error(row.rms_err), lambda row: row.rms_err is not None),
        tables.ArmColumn("not finite", lambda row, _: f"{row.not_finite:.0f}", lambda row: bool(row.not_finite)),
    ]
    return tables.by_backend(
        "Errors against float64", ranking.contests(data.rows, data.layout), data.layout, figures,
        note="÷ formula: the largest error over that of the plain formula in the same dtype. ✗: wrong.",
        folded=True,
    )  # fmt: skip


def _ratio(row: Row) -> PageCell:
    return PageCell(text=quantities.times(row.err_vs_plain), detail="✗" if row.status is Status.INCORRECT else "")


def error(value: float | None) -> str:
    """`2.0e-6`; a dash where nothing was checked."""
    return quantities.DASH if value is None else exponential(value)
