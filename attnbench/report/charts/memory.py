"""The peak memory of a call over the length."""

from collections.abc import Iterator, Sequence

from attnbench.analysis.rows import Row
from attnbench.report.charts.drawing import Chart, Point, Quantity, axis_of, line_chart


def chart(rows: Sequence[Row], caption: str) -> Chart | None:
    """Peak bytes of a call with its outputs, beside lines of slope 1 and 2 over a length."""
    along_length = bool(rows) and axis_of(rows) in ("seq_q", "seq_kv")
    peak = Quantity(
        column="total_bytes", title="peak memory of a call", unit="B", base=2, refusals=True,
        guides=_growth if along_length else lambda points: (),
    )  # fmt: skip
    return line_chart(rows, peak, "Peak memory of a call, with its outputs", caption)


def _growth(points: Sequence[Point]) -> Iterator[Point]:
    """O(n) and O(n²) from the lowest point at the shortest length."""
    left, right = min(point["x"] for point in points), max(point["x"] for point in points)
    start = min(point["y"] for point in points if point["x"] == left)
    if right > left:
        for power, label in ((1, "O(n)"), (2, "O(n²)")):
            end = start * (right / left) ** power
            yield {"kind": "guide", "x": left, "y": start, "label": label, "last": False}
            yield {"kind": "guide", "x": right, "y": end, "label": label, "last": True}
