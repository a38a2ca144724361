"""The time of a call over the length."""

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report.charts import lines
from attnbench.report.charts.figure import Figure

TIME = lines.Quantity(
    column="time_s",
    title="time of a call",
    unit="s",
    interval=lambda row: lines.ends_of(row, "time_low_s", "time_high_s"),
)


def figure(rows: Sequence[Row]) -> Figure | None:
    """Seconds over the length, both logarithmic."""
    caption = "both axes logarithmic" + ("; bars: 95 % interval" if any(map(TIME.interval, rows)) else "")
    return lines.figure("latency", rows, TIME, "Time of a call", caption)
