"""Key padding of sequences of different lengths in a batch.

`key_padding_mask` of torch.nn.MultiheadAttention
(https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html): seq_q times the sum of the lengths.
"""

import numpy as np

from attnbench.attention.terms import Bound, Grid, Indices, Predicate, Table, Term


class Padding(Term, frozen=True):
    """Keys below the length of their sequence; lengths fall linearly, and `share` of all keys are padding."""

    word = "padding"
    example = "padding:0.3"
    summary = "key padding"
    differs_by_sequence = True

    share: float  # of all keys

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.5:
            raise self.error("the share of padding lies in 0..0.5")

    def key_lengths(self, grid: Grid) -> Indices:
        """[batch]: unpadded keys of each sequence, round(seq_kv (1 - 2 share (b + 1/2) / batch)), at least 1."""
        b = np.arange(grid.batch)
        unpadded = grid.seq_kv * (1 - 2 * self.share * (b + 0.5) / grid.batch)
        return np.maximum(np.floor(unpadded + 0.5).astype(np.int64), 1)

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        lengths = table(self.key_lengths(grid))
        return lambda b, i, j: j < lengths[b]

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Bound, Bound]:
        return 0, self.key_lengths(grid)[b]
