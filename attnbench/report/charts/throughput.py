"""FLOP/s over the length, below the measured peak and that of the data sheet."""

from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.analysis.rows import Row
from attnbench.machine import datasheet
from attnbench.report.charts import lines
from attnbench.report.charts.figure import ChartAxis, Figure, Mark, Rule

MAX_PEAK_RATIO = 3  # a peak more than this times above every value is named in the caption, not drawn


def figure(rows: Sequence[Row], ceilings: CeilingsByDevice = NO_CEILINGS) -> Figure | None:
    """FLOP/s of the exact visible pairs, from 0."""
    top = max((row.flop_per_s or 0.0 for row in rows), default=0.0)
    peaks = dict.fromkeys((label, rate) for row in rows for label, rate in _peaks(row, ceilings))
    near = [rate for _, rate in peaks if rate <= MAX_PEAK_RATIO * top]
    far = [label for label, rate in peaks if rate > MAX_PEAK_RATIO * top]

    def rules(group: Sequence[Row], _axis: ChartAxis) -> Iterator[Mark]:
        for label, rate in dict.fromkeys(peak for row in group for peak in _peaks(row, ceilings)):
            if rate in near:
                yield Rule(at=rate, along="y", text=label)

    rate = lines.Quantity(
        column="flop_per_s", title="FLOP/s of visible pairs", unit="FLOP/s", log=False, interval=interval, guides=rules,
        more=lambda drawn: near,
    )  # fmt: skip
    caption = "FLOPs of the visible pairs, 2 for a multiply and add; from 0"
    if far:
        caption += f"; far above: {', '.join(far)}"
    return lines.figure("throughput", rows, rate, "Rate of a call", caption)


def interval(row: Row) -> lines.Ends | None:
    """The ends of FLOP/s, from those of the time."""
    ends = lines.ends_of(row, "time_low_s", "time_high_s")
    return (row.flops / ends[1], row.flops / ends[0]) if ends and row.flops else None


def _peaks(row: Row, ceilings: CeilingsByDevice) -> Iterator[tuple[str, float]]:
    """The measured peak and that of the data sheet for the row's device and dtype."""
    of_device = ceilings.get(row.device)
    if of_device is None:
        return
    rate, sheet = of_device.matmul.get(row.dtype), datasheet.sheet(of_device.name)
    peaks = {
        "measured peak": rate.burst if rate else None,
        "data sheet": sheet.flop_per_s.get(row.dtype) if sheet else None,
    }
    for name, peak in peaks.items():
        if peak is not None:
            yield f"{name} {units.rate(peak, 'FLOP/s')} ({row.dtype})", peak
