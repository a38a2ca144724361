"""A dot for each block over the median of its case, the cases with the largest spread first."""

import math
from collections.abc import Sequence
from typing import Protocol

from attnbench.report.charts import axes
from attnbench.report.charts.figure import NARROW, WIDE, Dot, Edges, Figure, Note, Panel, Rule
from attnbench.report.charts.style import in_order
from attnbench.report.charts.svg import FONT, text_width

ROW = 17.0
MAX_CASES = 30


class Spread(Protocol):
    """What the chart needs of a case: its label, its arm, and its blocks over their median."""

    @property
    def label(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def noisy(self) -> bool: ...
    @property
    def blocks(self) -> tuple[float, ...]: ...


def figure(cases: Sequence[Spread]) -> Figure | None:
    """One row for each case: a quiet one is a column of dots at 1."""
    timed = sorted((case for case in cases if len(case.blocks) > 1), key=_spread, reverse=True)
    if not timed:
        return None
    shown = timed[:MAX_CASES]
    left_out = f"the {len(shown)} with the largest spread of {len(timed)}" if len(shown) < len(timed) else ""
    wide, narrow = (_panel(shown, width) for width in (WIDE, NARROW))
    return Figure(
        name="noise", heading="Blocks over the median of their case", panels=(wide,), narrow=(narrow,),
        caption="a dot is one block of repeated calls; a quiet case is a column of dots at 1×; ! noisy",
        arms=tuple(in_order(case.arm for case in shown)), left_out=left_out,
    )  # fmt: skip


def _spread(case: Spread) -> float:
    return max(case.blocks) / min(case.blocks)


def _panel(cases: Sequence[Spread], width: float) -> Panel:
    labels = [case.label + (" !" if case.noisy else "") for case in cases]
    room = width * 0.5
    left = min(max(map(text_width, labels)) + 14, room)
    characters = int((left - 10) / text_width("m"))
    names = [Note(text=label if len(label) <= characters else "…" + label[1 - characters :], pixel_x=left - 10,
                  y=place + 0.5, dy=FONT / 3, anchor="end") for place, label in enumerate(labels)]  # fmt: skip
    values = [block for case in cases for block in case.blocks]
    width_of_values = max(math.log2(max(values)), -math.log2(min(values)), 0.1)
    x = axes.log_axis([2**-width_of_values, 2**width_of_values], "x", "block over the median of its case")
    dots = [
        Dot(x=block, y=place + 0.5, arm=case.arm, small=True, tip=f"{case.label}: {block:.2f}× its median")
        for place, case in enumerate(cases)
        for block in case.blocks
    ]
    return Panel(
        x=x, y=axes.row_axis(len(cases)), marks=(Rule(at=1.0, along="x"), *dots, *names), width=width,
        height=ROW * len(cases) + 40, margins=Edges(left=left, right=14, top=8, bottom=32),
    )  # fmt: skip
