"""The roofline: FLOP/s over intensity, below the measured ceilings."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench import units
from attnbench.analysis.roofline import CeilingsByDevice
from attnbench.analysis.rows import Row
from attnbench.records.ceilings import Ceilings
from attnbench.report.charts import axes, lines, panels
from attnbench.report.charts.figure import Dot, Edges, Figure, Line, Mark, Panel
from attnbench.report.charts.style import in_order

MAX_PANELS = 12


def figure(rows: Sequence[Row], ceilings: CeilingsByDevice) -> Figure | None:
    """A panel for each device and dtype, and a trail for each backend from the shortest length to the longest.

    Backends at one problem share an intensity, so that a trail is drawn along the length.
    """
    measured = [row for row in rows if row.roofline_share is not None and row.device in ceilings and row.flop_per_s]
    by_panel: dict[str, list[Row]] = {}
    for row in measured:
        by_panel.setdefault(f"{row.device} {row.dtype}", []).append(row)
    shown = list(by_panel.items())[:MAX_PANELS]
    if not shown:
        return None
    arms = in_order(row.arm_name for _, group in shown for row in group)
    left_out = f"{len(shown)} of {len(by_panel)} panels" if len(shown) < len(by_panel) else ""
    caption = (
        "FLOP/s over FLOP a byte (exact work over compulsory traffic); the line is what was measured to be possible"
    )
    return Figure(
        name="roofline", heading="Distance to the roofline bound", caption=caption, arms=tuple(arms), legend=True,
        left_out=left_out, panels=tuple(_panel(heading, group, ceilings) for heading, group in shown),
    )  # fmt: skip


def _panel(heading: str, rows: Sequence[Row], ceilings: CeilingsByDevice) -> Panel:
    intensities = [row.intensity for row in rows]
    bound = _bound(ceilings[rows[0].device], rows[0].dtype, min(intensities), max(intensities))
    x = axes.log_axis([*intensities, *(at for at, _ in bound)], "", "FLOP a byte", pad=0)
    y = axes.log_axis([*(row.flop_per_s or 0.0 for row in rows), *(rate for _, rate in bound)], "FLOP/s", "FLOP/s")
    marks: list[Mark] = [Line(points=tuple(bound))] if bound else []
    return Panel(heading=heading, x=x, y=y, marks=(*marks, *_trails(rows)), margins=Edges(left=86, right=16))


def _trails(rows: Sequence[Row]) -> list[Mark]:
    """Each arm along the axis of the run, in each combination of all else."""
    layout = panels.layout(rows)
    trails: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        trails.setdefault((row.arm_name, layout.panel(row)), []).append(row)
    marks: list[Mark] = []
    for trail in trails.values():
        ordered = sorted(trail, key=lambda row: row.number(layout.axis) or 0.0)
        points = tuple((row.intensity, row.flop_per_s or 0.0) for row in ordered)
        if len(points) > 1:
            marks.append(Line(points=points, arm=trail[0].arm_name, thin=True))
        marks += [Dot(x=x, y=y, arm=row.arm_name, tip=_tip(row)) for row, (x, y) in zip(ordered, points, strict=True)]
    return marks


def _tip(row: Row) -> str:
    share = f"{units.whole_percent(row.roofline_share or 0.0)} of its bound ({row.bound})"
    text = f"{lines.tip(row, row.flop_per_s or 0.0, None, 'FLOP/s')}, {share}"
    return f"{text}; {row.notes}" if row.notes else text


def _bound(ceilings: Ceilings, dtype: str, low: float, high: float) -> list[tuple[float, float]]:
    """Memory bandwidth up to the ridge, then the burst rate of matrix products."""
    rate, memory = ceilings.matmul.get(dtype), ceilings.memory
    if rate is None or memory is None:
        return []
    ridge = rate.burst / memory
    ends = sorted({min(low, ridge) / 2, ridge, max(high, ridge) * 2})
    return [(x, min(rate.burst, memory * x)) for x in ends]
