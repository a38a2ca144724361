"""Where a problem is among those of a report, in words: `no mask, 1k`."""

from __future__ import annotations

from msgspec.structs import replace

from attnbench.analysis.rows import Row, phase
from attnbench.report.charts import panels
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.pages import ranking

MAX_WORDS = 120  # characters of a place in a sentence; tables have all


def at(row: Row, layout: PanelLayout) -> str:
    """The place in a sentence: `at length 1k`, `at batch 4`, `for 64 queries over 200 keys`, `for requests 8q1s1k`."""
    text = ranking.axis_words(layout.axis, row.value(layout.axis))
    if layout.axis not in panels.OF_LENGTHS:
        return f"at {text}"
    if row.requests:
        return f"for {panels.words('requests', row.requests)}"
    if phase(row) == "prefill":
        return f"at length {text}"
    return f"for {panels.words('seq_q', row.seq_q)} over {panels.words('seq_kv', row.seq_kv)}"


def of(row: Row, layout: PanelLayout) -> str:
    """The panel and the value of the axis; of a batch of requests all of them, in place of the longest."""
    text = ranking.axis_words(layout.axis, row.value(layout.axis))
    if row.requests and layout.axis in panels.OF_LENGTHS:
        text = "" if "requests" in layout.columns else panels.words("requests", row.requests)
        if phase(row) == "requests":  # as the text says
            layout = replace(layout, columns=tuple(name for name in layout.columns if name != panels.PHASE))
    return ", ".join(filter(None, (layout.heading(row), text)))
