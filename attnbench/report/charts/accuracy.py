"""The error of each case over that of the same-dtype reference, a row for each arm."""

import math
from collections.abc import Sequence

from attnbench.analysis.rows import Row
from attnbench.report.charts import axes
from attnbench.report.charts.figure import BAD, NARROW, WIDE, ChartAxis, Dot, Edges, Figure, Note, Panel, Rule
from attnbench.report.charts.style import in_order
from attnbench.report.charts.svg import FONT, fit, text_width
from attnbench.units import exponential

LIMIT = 2.0  # of the ratio; see worker.correctness
ROW = 26.0
MAX_ARMS = 40
MAX_DOTS, MAX_LARGEST = 120, 20  # of one arm: of more, the largest, and an even selection of the others


def figure(rows: Sequence[Row]) -> Figure | None:
    """Dots in units of the rounding error of the plain formula in the same dtype, with the limit."""
    judged = [row for row in rows if row.err_vs_plain is not None and row.err_vs_plain >= 0]
    if not judged:
        return None
    arms = in_order(row.arm_name for row in judged)
    shown = arms[:MAX_ARMS]
    dots = [row for arm in shown for row in _thinned([row for row in judged if row.arm_name == arm])]
    cuts = [f"the first {len(shown)} of {len(arms)} backends"] if len(shown) < len(arms) else []
    cuts += [f"{len(dots)} of {len(judged)} cases, the largest errors among them"] if len(dots) < len(judged) else []
    wide, narrow = (_panel(dots, shown, width) for width in (WIDE, NARROW))
    return Figure(
        name="error", heading="Error over that of the same-dtype reference", arms=tuple(shown),
        left_out="; ".join(cuts),
        caption="largest error of each case against float64, over that of the plain formula in the same dtype",
        panels=(wide,), narrow=(narrow,),
    )  # fmt: skip


def _thinned(rows: Sequence[Row]) -> list[Row]:
    """At most MAX_DOTS rows: those with the largest errors, and every n-th of the others by their error."""
    if len(rows) <= MAX_DOTS:
        return list(rows)
    ordered = sorted(rows, key=lambda row: -(row.err_vs_plain or 0.0))
    others = ordered[MAX_LARGEST:]
    return ordered[:MAX_LARGEST] + others[:: math.ceil(len(others) / (MAX_DOTS - MAX_LARGEST))]


def _panel(rows: Sequence[Row], arms: Sequence[str], width: float) -> Panel:
    left = min(max(map(text_width, arms)) + 14, width * 0.4)
    values = [row.err_vs_plain or 0.0 for row in rows]
    dots = [
        Dot(x=row.err_vs_plain or 0.0, y=arms.index(row.arm_name) + 0.5, arm=row.arm_name, tip=_tip(row))
        for row in rows
    ]
    names = [Note(text=fit(arm, left - 12), arm=arm, pixel_x=left - 10, y=place + 0.5, dy=FONT / 3, anchor="end")
             for place, arm in enumerate(arms)]  # fmt: skip
    return Panel(
        x=_axis(values), y=axes.row_axis(len(arms)), width=width, height=ROW * len(arms) + 50,
        margins=Edges(left=left, right=44, top=18, bottom=32),
        marks=(Rule(at=LIMIT, along="x", text="limit", color=BAD, dashed=False), *dots, *names),
    )  # fmt: skip


def _axis(values: Sequence[float]) -> ChartAxis:
    """From 0 to a little above the limit; logarithmic where errors reach far beyond it."""
    if max(values) <= 3 * LIMIT:
        return axes.linear_axis([*values, LIMIT * 1.05], "x", "error over the reference's")
    return axes.log_axis([*(value for value in values if value > 0), 1.0, LIMIT], "x", "error over the reference's")


def _tip(row: Row) -> str:
    text = f"{row.arm_name}, {row.problem}: {row.err_vs_plain or 0:.2g}× the error of the same-dtype reference"
    return f"{text}, {exponential(row.max_abs_err)} at most" if row.max_abs_err is not None else text
