"""A mask as a heat map, on one sequence or on the packed tokens of a batch of requests."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from attnbench import units
from attnbench.attention import masks, requests
from attnbench.attention.masks import Mask
from attnbench.attention.requests import RequestSize
from attnbench.attention.terms import Grid
from attnbench.report.charts import heat_map
from attnbench.report.charts.figure import Figure

CELLS = 96  # along a side
SIDE = 420  # pixels


def figure(mask: Mask, grids: Sequence[Grid], block: int) -> Figure:
    """The share of visible pairs in each cell: queries downwards, keys to the right; a grid for each request."""
    queries, keys = _tokens(grids)
    panels = heat_map.panels({"": shares(mask, grids, CELLS)}, (queries, keys), SIDE, 1.0, units.whole_percent)
    _, *below = facts(mask, grids, block)
    heading = f"{mask.text}: {_batch(grids)}{units.short(queries)} queries over {units.short(keys)} keys"
    return Figure(
        name="mask",
        heading=heading,
        caption="; ".join((*below, heat_map.scale(1.0, units.whole_percent))),
        panels=panels,
    )


def shares(mask: Mask, grids: Sequence[Grid], cells: int) -> NDArray[np.float64]:
    """The share of visible pairs in each cell: [rows, columns]. Requests see only their own keys."""
    if len(grids) == 1:
        return mask.shares(grids[0], cells)
    down, right = (masks.edges(tokens, cells, 0) for tokens in _tokens(grids))
    visible = np.zeros((len(down) - 1, len(right) - 1))
    spans = requests.spans(tuple(RequestSize(grid.seq_q, grid.seq_kv) for grid in grids))
    for grid, (queries, keys) in zip(grids, spans, strict=True):
        low, high = mask.rows(grid)
        rows = np.searchsorted(down, np.arange(queries.start, queries.stop), side="right") - 1
        first, last = np.searchsorted(right, (keys.start, keys.stop - 1), side="right") - 1
        for column in range(first, last + 1):
            ends = np.clip(right[column : column + 2] - keys.start, 0, grid.seq_kv)
            counts = mask.counts_within(grid, np.clip(low, *ends), np.clip(high, *ends))
            np.add.at(visible[:, column], rows, counts[0])
    cell_pairs: NDArray[np.float64] = np.outer(np.diff(down), np.diff(right)).astype(np.float64)
    return visible / cell_pairs


def facts(mask: Mask, grids: Sequence[Grid], block: int) -> Iterator[str]:
    """The name, the visible pairs, how full blocks of `block` tokens are, and whether rows see no key."""
    queries, keys = _tokens(grids)
    counts = Counter(grids)
    pairs = sum(count * mask.pairs(grid) for grid, count in counts.items())
    every = sum(count * grid.batch * grid.seq_q * grid.seq_kv for grid, count in counts.items())
    yield f"{mask.text}, {_batch(grids)}{queries} queries over {keys} keys"
    yield f"pairs: {pairs:,} of {every:,}, {100 * pairs / every:.3g} %"
    of_blocks = [(count, mask.shares(grid, block=block)) for grid, count in counts.items()]
    total = sum(count * share.size for count, share in of_blocks)
    empty, full = (sum(count * int((share == end).sum()) for count, share in of_blocks) / total for end in (0, 1))
    partial = 1 - empty - full
    yield f"blocks of {block}: {100 * empty:.3g} % empty, {100 * partial:.3g} % in part, {100 * full:.3g} % full"
    if pairs:
        work = sum(count * _pairs_touched(mask, grid, block) for grid, count in counts.items()) / pairs
        yield f"a kernel that skips the empty ones does {work:.3g} times the work of the pairs"
    if any(mask.has_blind_rows(grid) for grid in counts):
        yield "some rows see no key: their output is 0"


def _pairs_touched(mask: Mask, grid: Grid, block: int) -> int:
    """Pairs in blocks that are not empty."""
    heights, widths = (np.diff(masks.edges(tokens, 0, block)) for tokens in (grid.seq_q, grid.seq_kv))
    return grid.batch * int(((mask.shares(grid, block=block) > 0) * np.outer(heights, widths)).sum())


def _tokens(grids: Sequence[Grid]) -> tuple[int, int]:
    """Queries and keys of one sequence, or of all requests."""
    return sum(grid.seq_q for grid in grids), sum(grid.seq_kv for grid in grids)


def _batch(grids: Sequence[Grid]) -> str:
    return f"{len(grids)} requests, " if len(grids) > 1 else ""
