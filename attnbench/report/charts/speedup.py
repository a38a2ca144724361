"""The speed-up over the reference arm, over the length."""

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report import summary
from attnbench.report.charts.drawing import MAX_PANELS, Chart, Quantity, line_chart

SPEEDUP = Quantity(
    column="speedup", title="speed-up over the reference", unit="x", base=2, interval=("speedup_low", "speedup_high"),
    guides=lambda points: [{"kind": "rule", "y": 1.0}],
)  # fmt: skip


def chart(rows: Sequence[Row], caption: str, max_panels: int = MAX_PANELS) -> Chart | None:
    """Times faster than the reference on a log2 axis, with a rule at 1."""
    measured = [row for row in rows if row.speedup is not None]
    return line_chart(measured, SPEEDUP, summary.sentence(rows), caption, max_panels=max_panels)
