"""Strided attention of the Sparse Transformer (https://arxiv.org/abs/1904.10509, section 4.3), both heads in one.

n x n with n = q L + r, n >= L: n L - L (L - 1) / 2 + L q (q - 1) / 2 + r q pairs.
"""

from __future__ import annotations

import numpy as np

from attnbench.attention.terms import Grid, Indices, Pattern, Predicate, Table, multiples, overlap, scaled


class Strided(Pattern, frozen=True):
    """The last `stride` keys up to the diagonal, every `stride`-th before (Sparse Transformer, arXiv 1904.10509)."""

    word = "strided"
    example = "strided:128"
    summary = "strided keys"
    holds_causal = True

    stride: int  # tokens

    def __post_init__(self) -> None:
        self.check_at_least(stride=1)

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        stride, offset = self.stride, grid.offset
        return lambda b, i, j: (j <= i + offset) & ((i + offset - j < stride) | ((i + offset - j) % stride == 0))

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        diagonal = i + grid.offset
        window_low = diagonal - self.stride + 1
        before = multiples(diagonal, self.stride, low, np.minimum(high, window_low))
        return overlap(low, high, window_low, diagonal + 1) + before

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        diagonal = j - grid.offset
        window_high = diagonal + self.stride
        return overlap(low, high, diagonal, window_high) + multiples(
            diagonal, self.stride, np.maximum(low, window_high), np.maximum(high, window_high)
        )

    def shrunk(self, share: float) -> Strided:
        return Strided(scaled(self.stride, share))
