"""The throughput page."""

from attnbench.analysis.roofline import disturbances
from attnbench.report.charts import throughput
from attnbench.report.pages.page import Page, ReportData, drawn, metrics_table

COLUMNS = ("flop_per_s", "flop_per_s_half_causal", "bytes_per_s", "tokens_per_s", "sheet_share")


def page(data: ReportData) -> Page:
    """Rates, below the peaks of the device."""
    return Page(
        text=(
            "FLOPs count the visible pairs of the mask exactly; the column beside it halves causal masks.",
            "Peaks are what attnbench calibrate measured, and the dense peak of the data sheet if there is one.",
            *disturbances(data.ceilings),
        ),
        charts=drawn(throughput=throughput.chart(data.charted, data.caption, data.ceilings)),
        tables=(metrics_table("Rates", data.rows, COLUMNS),),
    )
