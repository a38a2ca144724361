"""A mask as a heat map."""

from collections.abc import Iterator

from attnbench import units
from attnbench.attention.masks import Mask
from attnbench.attention.terms import Grid
from attnbench.report.charts import heat_map
from attnbench.report.charts.figure import Figure

CELLS = 96  # along a side
SIDE = 420  # pixels


def figure(mask: Mask, grid: Grid, block: int) -> Figure:
    """The share of visible pairs in each cell: queries downwards, keys to the right."""
    panels = heat_map.panels({"": mask.shares(grid, CELLS)}, (grid.seq_q, grid.seq_kv), SIDE, 1.0, ".0%")
    _, *below = facts(mask, grid, block)
    heading = f"{mask.text}: {units.short(grid.seq_q)} queries over {units.short(grid.seq_kv)} keys"
    return Figure(name="mask", heading=heading, caption="; ".join((*below, heat_map.scale(1.0, ".0%"))), panels=panels)


def facts(mask: Mask, grid: Grid, block: int) -> Iterator[str]:
    """The name, the visible pairs, how full blocks of `block` tokens are, and whether rows see no key."""
    pairs, every = mask.pairs(grid), grid.batch * grid.seq_q * grid.seq_kv
    yield f"{mask.text}, {grid.seq_q} queries over {grid.seq_kv} keys"
    yield f"pairs: {pairs:,} of {every:,}, {100 * pairs / every:.3g} %"
    shares = mask.shares(grid, block=block)
    empty, full = float((shares == 0).mean()), float((shares == 1).mean())
    partial = 1 - empty - full
    yield f"blocks of {block}: {100 * empty:.3g} % empty, {100 * partial:.3g} % in part, {100 * full:.3g} % full"
    if pairs:
        yield f"a kernel that skips the empty ones does {(1 - empty) * every / pairs:.3g} times the work of the pairs"
    if mask.has_blind_rows(grid):
        yield "some rows see no key: their output is 0"
