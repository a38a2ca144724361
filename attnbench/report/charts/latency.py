"""The time of a call over the length."""

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report import summary
from attnbench.report.charts.drawing import MAX_PANELS, Chart, Quantity, line_chart

INTERVAL = ("time_low_s", "time_high_s")
TIME = Quantity(column="time_s", title="time of a call", unit="s", interval=INTERVAL, refusals=True)


def chart(rows: Sequence[Row], caption: str, max_panels: int = MAX_PANELS) -> Chart | None:
    """Seconds over the length, both logarithmic."""
    return line_chart(rows, TIME, summary.sentence(rows), caption, max_panels=max_panels)
