"""Where a problem is among those of a report, in words: `no mask, 1k`."""

from __future__ import annotations

from attnbench.analysis.rows import Row
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.pages import ranking

MAX_WORDS = 120  # characters of a place in a sentence; tables have all


def of(row: Row, layout: PanelLayout) -> str:
    """The panel and the value of the axis."""
    return ", ".join(filter(None, (layout.heading(row), ranking.axis_words(layout.axis, row.value(layout.axis)))))
