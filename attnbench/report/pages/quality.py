"""The page on the quality of the data: noise, drift and clocks."""

from attnbench import units
from attnbench.report.charts import block_drift
from attnbench.report.pages.page import (
    MAX_DETAILS,
    MAX_DRIFT,
    Detail,
    Page,
    PageTable,
    ReportData,
    drawn,
    without_empty_columns,
)

HEAD = ("case", "rounds", "restarts", "half-width", "IQR", "drift", "order", "noisy", "clocks", "tags")
NOTE = (
    "half-width of the 95 % interval; IQR of block medians; drift: Spearman's rho over rounds; order: last against "
    "first place in a round; tags: of blocks"
)


def page(data: ReportData) -> Page:
    """The noise of each case as numbers, and the blocks of the first cases as a chart."""
    timed = [detail for detail in data.details if detail.rounds]
    charted = [detail for detail in timed if detail.blocks]
    left_out = f"the first {len(charted)} cases" if len(timed) > len(charted) == MAX_DRIFT else ""
    blocks = [block for detail in charted for block in detail.blocks]
    numbers = (False, True, True, True, True, True, True, False, False, False)
    table = PageTable(heading="Noise", head=HEAD, rows=list(map(_cells, timed)), numbers=numbers, note=NOTE)
    cut = f"Of the first {MAX_DETAILS} results; data.csv has `noisy` of all."
    return Page(
        charts=drawn(noise=block_drift.chart(blocks, data.caption, left_out)),
        text=(cut,) if len(data.rows) > MAX_DETAILS else (),
        tables=(without_empty_columns(table),),
    )


def _cells(detail: Detail) -> tuple[str, ...]:
    noise = detail.noise
    return (
        detail.label, str(detail.rounds), str(detail.restarts), units.percent(detail.half_width),
        units.percent(noise.relative_iqr), "-" if noise.trend is None else f"{noise.trend:+.2f}",
        "-" if noise.position_effect is None else f"{noise.position_effect:+.1%}", "noisy" if detail.noisy else "",
        detail.clocks, ", ".join(f"{tag} {units.percent(share)}" for tag, share in noise.tagged.items()),
    )  # fmt: skip
