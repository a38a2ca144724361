"""The error against float64 over the length."""

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report.charts.drawing import Chart, Quantity, line_chart

ERROR = Quantity(column="rms_err", title="rms error against float64")


def chart(rows: Sequence[Row], caption: str) -> Chart | None:
    """The root mean square error of the worst output."""
    return line_chart(rows, ERROR, "Error against float64, of the worst output", caption)
