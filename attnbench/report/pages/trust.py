"""The trust section: noise, drift and clocks, from which a reader sees how sure the times are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from attnbench import units
from attnbench.analysis.rows import Row
from attnbench.report import quantities
from attnbench.report.charts import block_spread, panels
from attnbench.report.pages import cautions, places
from attnbench.report.pages.page import (
    MAX_DETAILS,
    MAX_DRIFT,
    Detail,
    Page,
    PageTable,
    ReportData,
    blocks,
    half,
    without_empty_columns,
)
from attnbench.units import counted

MAX_HALF_WIDTH = 0.1  # of an interval, as a share of the time; wider ones are counted
HEAD = ("case", "rounds", "restarts", "± %", "IQR %", "drift", "order", "noisy", "clocks", "tags")
NOTE = (
    "±: half of the 95 % interval; IQR: of block medians; drift: Spearman's rho over rounds; order: last against first "
    "place in a round; tags: of blocks."
)


def page(data: ReportData) -> Page:
    """The blocks of the first cases, and the noise of each as numbers."""
    timed = [detail for detail in data.details if detail.rounds]
    if not timed:
        return Page()
    return Page(
        finding=finding(data.rows),
        text=tuple(_text(data, timed)),
        blocks=blocks(half(block_spread.figure(_named(data, timed)))),
    )


def table(data: ReportData) -> PageTable:
    """The noise of each case as numbers, for the last section."""
    noise_table = PageTable(
        heading="Noise of each case",
        head=HEAD,
        rows=[_cells(detail) for detail in data.details if detail.rounds],
        numbers=(False, True, True, True, True, True, True, False, False, False),
        note=NOTE,
        search=True,
        folded=True,
    )
    return without_empty_columns(noise_table)


def _named(data: ReportData, timed: Sequence[Detail]) -> list[Detail]:
    """Those with blocks, named as briefly as the layout allows."""
    rows = {(row.case_id, row.arm, row.run): row for row in data.rows}
    drawn = [(detail, rows.get(detail.key)) for detail in timed if detail.blocks]
    return [
        msgspec.structs.replace(detail, label=f"{places.of(row, data.layout)}, {detail.arm}") if row else detail
        for detail, row in drawn
    ]


def finding(rows: Sequence[Row]) -> str:
    """`9 of 21 times are noisy; 5 intervals are wider than ±10 %`."""
    timed = [row for row in rows if row.time_s is not None]
    noisy = sum(bool(row.noisy) for row in timed)
    wide = sum(map(_wide, timed))
    are = "is" if wide == 1 else "are"
    limit = quantities.percent(MAX_HALF_WIDTH)
    intervals = f"; {counted(wide, 'interval')} {are} wider than ±{limit}" if wide else ""
    if not noisy:
        quiet = f"None of {counted(len(timed), 'time')} is noisy" if len(timed) > 1 else "The time is not noisy"
        return quiet + intervals
    return f"{noisy:,} of {counted(len(timed), 'time')} {'is' if noisy == 1 else 'are'} noisy{intervals}"


def _wide(row: Row) -> bool:
    if row.time_low_s is None or row.time_high_s is None:
        return False
    return row.time_high_s - row.time_low_s > 2 * MAX_HALF_WIDTH * row.seconds


def _text(data: ReportData, timed: Sequence[Detail]) -> Iterator[str]:
    ratios = [block for detail in timed for block in detail.blocks]
    if ratios:
        yield (
            "A dot is one block of repeated calls, over the median of its case. Quiet is a column of dots at 1×; the "
            f"worst block took {quantities.times(max(ratios))}."
        )
    for run, name in zip(data.runs, data.names, strict=True):
        if load := cautions.busy(run):
            when = f"when {panels.words('run', name)} began" if len(data.runs) > 1 else "when the run began"
            yield f"Other processes were running {when}: {load}."
    if len(timed) > MAX_DRIFT and any(detail.blocks for detail in timed):
        yield f"Blocks are drawn of the first {MAX_DRIFT} cases."
    if len(data.rows) > MAX_DETAILS:
        yield f"Blocks were read of the first {MAX_DETAILS:,} results; data.csv has `noisy` of all."


def _cells(detail: Detail) -> tuple[str, ...]:
    noise = detail.noise
    return (
        detail.label, str(detail.rounds), str(detail.restarts), _percent(detail.half_width),
        _percent(noise.relative_iqr), "" if noise.trend is None else f"{noise.trend:+.2f}",
        "" if noise.position_effect is None else units.change(noise.position_effect), "noisy" if detail.noisy else "",
        detail.clocks, ", ".join(f"{tag} {units.percent(share)}" for tag, share in noise.tagged.items()),
    )  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else quantities.number(100 * share)
