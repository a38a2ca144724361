"""The accuracy page."""

from attnbench.report.charts import accuracy
from attnbench.report.pages.page import Page, ReportData, drawn, metrics_table

COLUMNS = ("max_abs_err", "rms_err", "rel_err", "err_vs_plain", "not_finite")
TEXT = (
    "Errors of the worst output against float64; err_vs_plain is a multiple of the error of the same-dtype reference."
)


def page(data: ReportData) -> Page:
    """Errors against float64."""
    rows = [row for row in data.rows if row.max_abs_err is not None]
    return Page(
        text=(TEXT,),
        charts=drawn(error=accuracy.chart(data.charted, data.caption)),
        tables=(metrics_table("Errors", rows, COLUMNS),),
    )
