"""Prefix language model: all tokens see a prefix, causal after it (https://arxiv.org/abs/1910.10683, figure 3).

n x n: n (n + 1) / 2 + P (P - 1) / 2 pairs for a prefix of P <= n tokens.
"""

from __future__ import annotations

import numpy as np

from attnbench.attention.terms import Bound, Grid, Indices, Predicate, Table, Term, scaled


class Prefix(Term, frozen=True):
    """The first `count` keys for every row, causal after them (a prefix language model)."""

    word = "prefix"
    example = "prefix:64"
    summary = "prefix mask"
    holds_causal = True

    count: int  # tokens

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        count, offset = self.count, grid.offset
        return lambda b, i, j: (j < count) | (j <= i + offset)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Bound, Bound]:
        return 0, np.maximum(self.count, i + grid.offset + 1)

    def shrunk(self, share: float) -> Prefix:
        return Prefix(scaled(self.count, share))
