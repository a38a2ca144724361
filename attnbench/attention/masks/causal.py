"""Causal attention: a token sees itself and the tokens before it.

"Attention is all you need", section 3.2.3 (https://arxiv.org/abs/1706.03762). Aligned to the bottom right, as in
flash-attn since 2.1: the last query sees every key. n x n: n (n + 1) / 2 pairs.
"""

from attnbench.attention.terms import Bound, Grid, Indices, Predicate, Table, Term


class Causal(Term, frozen=True):
    """Keys up to the diagonal."""

    word = "causal"
    example = "causal"
    summary = "bottom-right causal mask"
    holds_causal = True

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        offset = grid.offset
        return lambda b, i, j: j <= i + offset

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Bound, Bound]:
        return 0, i + grid.offset + 1
