"""One metric over one axis: the chart of `attnbench plot`."""

from collections.abc import Sequence

from attnbench.analysis.metrics import METRICS
from attnbench.analysis.rows import Row
from attnbench.report import summary
from attnbench.report.charts import throughput
from attnbench.report.charts.drawing import UNIT_LABELS, Chart, Interval, Quantity, line_chart

INTERVALS: dict[str, Interval] = {
    "time_s": ("time_low_s", "time_high_s"),
    "speedup": ("speedup_low", "speedup_high"),
    "flop_per_s": throughput.interval,
}


def chart(rows: Sequence[Row], x: str, y: str, by: str, panels: Sequence[str] | None, caption: str) -> Chart | None:
    """Metric `y` over column `x`, one line for each value of `by`; None if nothing was measured."""
    metric = METRICS[y]
    unit = metric.unit if metric.unit in UNIT_LABELS else "any"
    quantity = Quantity(
        column=y, title=y, unit=unit, log=metric.unit in ("s", "B", "") and y != "speedup",
        base=2 if unit == "B" else 10, interval=INTERVALS.get(y), refusals=y in ("time_s", "total_bytes", "peak_bytes"),
    )  # fmt: skip
    heading = summary.sentence(rows) if unit in ("s", "FLOP/s") else f"{y}: {metric.summary}"
    return line_chart(rows, quantity, heading, caption, x=x, by=by, panels=panels)
