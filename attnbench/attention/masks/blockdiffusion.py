"""Training of block diffusion (https://arxiv.org/abs/2503.09573, section 3.1).

The sequence is n noised tokens, then the same n tokens clean. A noised token sees its own noised block and the clean
blocks before it, a clean token the clean blocks up to its own. 2n x 2n with blocks of N tokens: n (n + N) pairs.
"""

from __future__ import annotations

import numpy as np

from attnbench.attention.terms import Array, BlockPattern, Counter, Grid, Indices, Predicate, Table, overlap, scaled


class BlockDiffusion(BlockPattern, frozen=True):
    """Noised tokens, then clean ones: their own noised block and clean blocks before it, or clean blocks up to it."""

    word = "blockdiffusion"
    example = "blockdiffusion:16"
    summary = "noised, then clean blocks (block diffusion)"
    is_square = True

    block: int  # tokens

    def __post_init__(self) -> None:
        self.check_at_least(block=1)

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        half, block = grid.seq_q // 2, self.block

        def visible(_b: Array, i: Array, j: Array) -> Array:
            row, column = i % half // block, j % half // block
            in_block = (column == row) & ((i < half) == (j < half))
            return in_block | ((column < row) & (j >= half))

        return visible

    def in_block_row(self, grid: Grid) -> Counter:
        blocks = grid.seq_q // 2 // self.block

        def count(row: Indices, low: Indices, high: Indices) -> Indices:
            in_block = overlap(low, high, row, row + 1)
            return in_block + overlap(low, high, blocks, np.where(row < blocks, blocks + row, row))

        return count

    def in_block_column(self, grid: Grid) -> Counter:
        blocks = grid.seq_q // 2 // self.block

        def count(column: Indices, low: Indices, high: Indices) -> Indices:
            in_block = overlap(low, high, column, column + 1)
            later = overlap(low, high, column - blocks + 1, blocks) + overlap(low, high, column + 1, 2 * blocks)
            return in_block + np.where(column < blocks, 0, later)

        return count

    def check(self, grid: Grid) -> None:
        super().check(grid)
        if grid.seq_q % (2 * self.block):
            halves = f"{grid.seq_q} tokens are not two halves of whole blocks of {self.block}"
            raise self.error(f"{halves}; use a multiple of {2 * self.block}")

    def shrunk(self, share: float) -> BlockDiffusion:
        return BlockDiffusion(scaled(self.block, share))
