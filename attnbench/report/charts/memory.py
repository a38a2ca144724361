"""The peak memory of a call over the length."""

from collections.abc import Iterator, Sequence

from attnbench.analysis.rows import Row
from attnbench.report.charts import lines, panels
from attnbench.report.charts.figure import ChartAxis, Figure, Line, Mark, Note


def figure(rows: Sequence[Row]) -> Figure | None:
    """Peak bytes of a call with its outputs, beside lines of slope 1 and 2 over a length."""
    if not rows:
        return None
    layout = panels.layout(rows)
    along_length = layout.axis in ("seq_q", "seq_kv")

    def growth(group: Sequence[Row], y: ChartAxis) -> Iterator[Mark]:
        return _growth(group, layout.axis, y) if along_length else iter(())

    peak = lines.Quantity(column="total_bytes", title="peak memory of a call", unit="B", guides=growth)
    caption = "outputs included, inputs not; both axes logarithmic" + ("; dotted: n and n²" if along_length else "")
    return lines.figure("memory", rows, peak, "Peak memory of a call", caption, layout)


def _growth(rows: Sequence[Row], axis: str, y: ChartAxis) -> Iterator[Mark]:
    """n and n² from the lowest point at the shortest length, as far as the axis reaches."""
    points = [(row.number(axis) or 0.0, row.total_bytes or 0.0) for row in rows]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    start = min(value for x, value in points if x == left)
    for power, label in ((1, "n"), (2, "n²")):
        end = min(right, left * (y.high / start) ** (1 / power))
        if end > left * 1.1:
            value = start * (end / left) ** power
            yield Line(points=((left, start), (end, value)))
            yield Note(text=label, x=end, y=value, dx=-6, dy=-4, anchor="end")
