"""One metric over one axis: the chart of `attnbench plot`."""

from collections.abc import Callable, Sequence

from attnbench.analysis.metrics import METRICS
from attnbench.analysis.rows import Row
from attnbench.report.charts import lines, panels, throughput
from attnbench.report.charts.figure import Figure
from attnbench.report.charts.latency import TIME
from attnbench.report.charts.sizes import SCREEN, Size

INTERVALS: dict[str, Callable[[Row], lines.Ends | None]] = {
    "time_s": TIME.interval,
    "speedup": lambda row: lines.ends_of(row, "speedup_low", "speedup_high"),
    "flop_per_s": throughput.interval,
}
UNITS = {"speedup": "x", "err_vs_plain": "x"}
LOG = ("s", "B", "x", "")


def figure(
    rows: Sequence[Row], x: str, y: str, by: str, facets: Sequence[str] | None, size: Size = SCREEN
) -> Figure | None:
    """Metric `y` over column `x`, one line for each value of `by`; None if nothing was measured.

    Raises UsageError if `facets` would put two problems at one place.
    """
    metric = METRICS[y]
    title = metric.summary.partition(":")[0]
    unit = UNITS.get(y, metric.unit)
    quantity = lines.Quantity(
        column=y, title=title, unit=unit, log=unit in LOG,
        interval=INTERVALS.get(y, lambda row: None),
    )  # fmt: skip
    shown = [row for row in rows if row.value(y) is not None] if y in UNITS else rows
    caption = "both axes logarithmic" if quantity.log else "logarithmic to the right, from 0 upwards"
    if any(map(quantity.interval, shown)):
        caption += "; bars: 95 % interval"
    layout = panels.layout(shown, x, facets, by) if shown else None
    return lines.figure("plot", shown, quantity, title[:1].upper() + title[1:], caption, layout, by, size)
