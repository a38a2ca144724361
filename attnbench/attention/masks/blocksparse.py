"""Block-sparse attention (https://arxiv.org/abs/1904.10509), here with random blocks of a given density.

A block row has C candidates, the blocks in which causal, window and prefix leave a visible pair. Visible are
max(1, round(density C)) of them: the one on the diagonal, and those with the lowest hash of (draw, block row, block
column). Pairs are counted from the visible blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from attnbench.attention.fixed_random import splitmix64
from attnbench.attention.masks.causal import Causal
from attnbench.attention.masks.prefix import Prefix
from attnbench.attention.masks.window import Window
from attnbench.attention.terms import BlockPattern, Booleans, Grid, Term, check_density, intersection


class BlockSparse(BlockPattern, frozen=True):
    """A share `density` of all blocks: in each block row the diagonal one, and those with the lowest hash."""

    word = "blocksparse"
    example = "blocksparse:0.25"
    summary = "block-sparse mask"
    not_in_text = frozenset({"under"})

    density: float  # visible share of the candidate blocks
    block: int = 128  # tokens on each side of a block
    draw: int = 0  # another number selects other blocks
    under: tuple[Term, ...] = ()  # causal, window and prefix terms of the mask

    def __post_init__(self) -> None:
        self.check_at_least(block=1)
        check_density(self, self.density)

    def combined(self, others: Iterable[Term]) -> BlockSparse:
        under = tuple(term for term in others if isinstance(term, Causal | Window | Prefix))
        return msgspec.structs.replace(self, under=under)

    def selected(self, grid: Grid, rows: int, columns: int) -> Booleans:
        i = np.arange(grid.seq_q)
        low, high = intersection(self.under, grid, np.zeros(1, np.int64), i)
        starts = np.arange(0, grid.seq_q, self.block)
        sees_keys = high > low
        first = np.minimum.reduceat(np.where(sees_keys, low, grid.seq_kv), starts) // self.block
        stop = -(-np.maximum.reduceat(np.where(sees_keys, high, 0), starts) // self.block)
        column = np.arange(columns)
        candidates = (column >= first[:, None]) & (column < stop[:, None])
        rank = splitmix64(self.draw, np.arange(rows)[:, None], column[None, :])
        last = np.minimum(starts + self.block, grid.seq_q) - 1
        diagonal = np.clip((last + grid.offset) // self.block, first, np.maximum(stop - 1, first))
        inside = diagonal < columns
        rank[np.arange(rows)[inside], diagonal[inside]] = 0
        rank[~candidates] = np.iinfo(np.uint64).max
        count = np.maximum(np.floor(self.density * candidates.sum(1) + 0.5).astype(np.int64), 1)
        highest = np.take_along_axis(np.sort(rank, axis=1), count[:, None] - 1, axis=1)
        return (rank <= highest) & candidates
