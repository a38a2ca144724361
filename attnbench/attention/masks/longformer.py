"""Longformer: a sliding window and global tokens (https://arxiv.org/abs/2004.05150, section 3.1).

`width` is the whole width without the diagonal, as `attention_window` in published configurations, and even.
n x n with one global token and h = width / 2: n (2h + 1) - h (h + 1) + 2 (n - h - 1) pairs.
"""

from __future__ import annotations

import numpy as np

from attnbench.attention.terms import Grid, Indices, Pattern, Predicate, Table, overlap, scaled


class Longformer(Pattern, frozen=True):
    """A window of `width` keys around the diagonal, and `global` first tokens that see and are seen by all."""

    word = "longformer"
    example = "longformer:512"
    summary = "window with global tokens (Longformer)"
    is_square = True

    width: int  # tokens
    global_: int = 1  # tokens

    def __post_init__(self) -> None:
        self.check_at_least(width=0, global_=0)
        if self.width % 2:
            raise self.error(f"width={self.width} is the whole width, half on each side: use an even number")

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        half, first = self.width // 2, self.global_
        return lambda b, i, j: (abs(i - j) <= half) | (i < first) | (j < first)

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        half = self.width // 2
        window_low, window_high = np.maximum(low, i - half), np.minimum(high, i + half + 1)
        count = np.maximum(window_high - window_low, 0)
        count += overlap(low, high, 0, self.global_)
        count -= overlap(window_low, window_high, 0, self.global_)
        return np.where(i < self.global_, high - low, count)

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        return self.counts(grid, j, low, high)  # symmetric

    def check(self, grid: Grid) -> None:
        super().check(grid)
        if self.global_ > grid.seq_q:
            raise self.error(f"{self.global_} global tokens are more than the {grid.seq_q} of the sequence")

    def shrunk(self, share: float) -> Longformer:
        return Longformer(2 * scaled(self.width // 2, share), self.global_)
