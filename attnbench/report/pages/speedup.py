"""The speed-up page."""

from attnbench.analysis import stats
from attnbench.report import pivot
from attnbench.report.charts import speedup
from attnbench.report.pages.page import Page, PageTable, ReportData, drawn


def page(data: ReportData) -> Page:
    """Speed-ups over the reference arm, and their geometric means."""
    by_arm: dict[tuple[str, str], list[float]] = {}
    for row in data.rows:
        if row.speedup is not None:
            by_arm.setdefault((row.arm_name, row.device), []).append(row.speedup)
    lines = []
    for arm, speedups in by_arm.items():
        if mean := stats.geometric_mean(speedups):
            lines.append((*arm, f"{mean.value:.2f}x", pivot.interval(mean, 2, " .. "), str(mean.count)))
    means = PageTable(
        heading=f"Over {pivot.references(data.rows) or 'the reference'}",
        head=("backend", "device", "geometric mean", "95 %", "problems"),
        rows=lines,
        numbers=(False, False, True, True, True),
    )
    charts = drawn(speedup=speedup.chart(data.charted, data.caption))
    return Page(charts=charts, tables=(means,))
