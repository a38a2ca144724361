"""The memory page."""

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report import pivot
from attnbench.report.charts import memory
from attnbench.report.pages.page import Page, PageTable, ReportData, drawn, metrics_table

KINDS = ("input", "output", "saved", "workspace", "peak", "predicted", "total")


def page(data: ReportData) -> Page:
    """Bytes of a call, by kind, and the longest sequence that was measured."""
    measured = [row for row in data.rows if row.peak_bytes is not None]
    return Page(
        text=("The peak is over inputs and outputs; the chart adds the outputs, and shows O(n) and O(n²) for scale.",),
        charts=drawn(memory=memory.chart(data.charted, data.caption)),
        tables=(metrics_table("Bytes of a call", measured, [f"{kind}_bytes" for kind in KINDS]), _longest(data.rows)),
    )


def _longest(rows: Sequence[Row]) -> PageTable:
    """The longest key length that was measured for each arm, dtype and mode, and what stopped the next one."""
    families: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row.arm_name, row.device, row.dtype, row.mode), []).append(row)
    lines = []
    for family, cases in families.items():
        longest = max((row.seq_kv for row in cases if row.time_s is not None), default=0)
        beyond = [row for row in cases if row.time_s is None and row.seq_kv > longest]
        if longest and beyond:
            stop = min(beyond, key=lambda row: row.seq_kv)
            lines.append((*family, str(longest), f"{stop.seq_kv}: {pivot.why(stop)}"))
    return PageTable(
        heading="Longest that was measured",
        head=("backend", "device", "dtype", "mode", "longest", "the next one"),
        rows=lines,
        numbers=(False, False, False, False, True, False),
        note="attnbench scaling --find-max-seq searches for the longest that fits",
    )
