"""The latency page."""

from attnbench.report.charts import latency
from attnbench.report.pages.page import Page, ReportData, drawn, metrics_table

COLUMNS = ("time_s", "time_low_s", "time_high_s", "p95_s", "rounds", "first_call_s", "compile_s")


def page(data: ReportData) -> Page:
    """Times over the length."""
    return Page(
        text=("A band is the 95 % interval; a cross at the top edge is a case that was refused or failed.",),
        charts=drawn(latency=latency.chart(data.charted, data.caption)),
        tables=(metrics_table("Times", data.rows, COLUMNS),),
    )
