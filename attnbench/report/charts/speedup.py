"""The speed-up over the reference arm, a row for each problem."""

from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report import missing, quantities
from attnbench.report.charts import axes, forest, lines, panels
from attnbench.report.charts.figure import Figure
from attnbench.report.charts.forest import Forest, ForestRow, Item
from attnbench.report.pivot import references

MAX_NOTE = 32  # characters in place of markers


def figure(rows: Sequence[Row]) -> Figure | None:
    """Times faster than the reference, paired by round, on a logarithmic axis."""
    compared = [row for row in rows if row.reference is not None or lines.drawable(row.time_s)]
    if not any(_speedup(row) for row in compared):
        return None
    layout = panels.layout(rows)
    reference = references(rows) or "the reference"
    problems = [at for group in layout.panels(rows).values() for at in panels.along(group, layout.axis)]
    table = [
        ForestRow(
            label=label,
            group=group,
            items=tuple(_item(row) for row in at if _speedup(row)),
            note="" if any(map(_speedup, at)) else quantities.clipped(missing.why(at), MAX_NOTE),
        )
        for at, (group, label) in ((at, layout.place(at[0])) for at in problems)
    ]
    caption = "paired within each round; bars: 95 % interval; ~ the interval contains 1×"
    about = Forest(title=f"speed-up over {reference}", sides=("slower", "faster"))
    return forest.figure("speedup", table, about, f"Speed-up over {reference}", caption)


def _speedup(row: Row) -> bool:
    return lines.drawable(row.speedup) and row.reference not in (None, row.arm)


def _item(row: Row) -> Item:
    value, ends = row.speedup or 1.0, lines.ends_of(row, "speedup_low", "speedup_high")
    unsure = ends is None or ends[0] <= 1 <= ends[1]
    text = axes.shown(value, "x") + (" ~" if unsure else "")
    return Item(
        arm=row.arm_name, value=value, ends=ends, text=text, unsure=unsure, tip=lines.tip(row, value, ends, "x")
    )
