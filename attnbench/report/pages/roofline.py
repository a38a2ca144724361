"""The roofline page."""

from attnbench import units
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.roofline import disturbances
from attnbench.report.charts import roofline
from attnbench.report.pages.page import Page, PageTable, ReportData, drawn


def page(data: ReportData) -> Page:
    """How near each case comes to its roofline bound."""
    bounds = PageTable(
        heading="Share of the roofline bound",
        head=("case", "intensity", "time", "least time", "share", "bound", "note"),
        rows=[
            (
                row.name, METRICS["intensity"].show(row.intensity), units.seconds(row.time_s),
                units.seconds(row.roofline_s), f"{row.roofline_share:.1%}", row.bound or "", row.notes or "",
            )
            for row in data.rows
            if row.roofline_share is not None
        ],
        numbers=(False, True, True, True, True, False, False),
    )  # fmt: skip
    return Page(
        text=(
            "Ceilings as attnbench calibrate measured them; a row above its bound has a note that explains it.",
            *disturbances(data.ceilings),
        ),
        charts=drawn(roofline=roofline.chart(data.charted, data.ceilings, data.caption)),
        tables=(bounds,),
        hint="attnbench calibrate measures the ceilings",
    )
