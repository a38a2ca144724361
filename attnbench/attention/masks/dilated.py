"""Dilated attention: every `step`-th key.

LongNet (https://arxiv.org/abs/2307.02486), and the dilated windows of Longformer (https://arxiv.org/abs/2004.05150).
n x n with n = q D + r: r (q + 1)^2 + (D - r) q^2 pairs.
"""

from attnbench.attention.terms import Grid, Indices, Pattern, Predicate, Table, multiples


class Dilated(Pattern, frozen=True):
    """Every `step`-th key, counted from the diagonal in both directions (LongNet, dilated windows)."""

    word = "dilated"
    example = "dilated:4"
    summary = "dilated keys"

    step: int  # tokens

    def __post_init__(self) -> None:
        self.check_at_least(step=1)

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        step, offset = self.step, grid.offset
        return lambda b, i, j: (i + offset - j) % step == 0

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        return multiples(i + grid.offset, self.step, low, high)

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        return multiples(j - grid.offset, self.step, low, high)
