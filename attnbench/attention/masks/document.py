"""Documents packed into one sequence, each attending to itself (https://arxiv.org/abs/2107.02027).

Pairs: the sum of the squared lengths.
"""

from __future__ import annotations

import itertools

import numpy as np

from attnbench.attention.terms import Bound, Grid, Indices, Predicate, Table, Term, scaled


class Document(Term, frozen=True):
    """Query and key in one document of a packed sequence: `count` near-equal ones, or the given `lengths`."""

    word = "document"
    example = "document:8"
    summary = "document mask of packed sequences"
    is_square = True

    lengths: tuple[int, ...]  # tokens of each document; a single number is a count of near-equal documents

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise self.error("a count or lengths of at least 1, as document:8 or document:300-200")

    def spans(self, grid: Grid) -> Indices:
        """[documents + 1]: the first index of every document, and the end of the last."""
        lengths = np.array(self.lengths)
        if len(lengths) == 1 and lengths[0] != grid.seq_q:
            count = int(lengths[0])
            lengths = np.full(count, grid.seq_q // count) + (np.arange(count) < grid.seq_q % count)
        return np.concatenate([[0], np.cumsum(lengths)])

    def owner(self, grid: Grid) -> Indices:
        """[seq_q]: the number of the document of every token."""
        spans = self.spans(grid)
        return np.repeat(np.arange(len(spans) - 1), np.diff(spans))

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        owner = table(self.owner(grid))
        return lambda b, i, j: owner[i] == owner[j]

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Bound, Bound]:
        spans, owner = self.spans(grid), self.owner(grid)
        return spans[owner[i]], spans[owner[i] + 1]

    def check(self, grid: Grid) -> None:
        super().check(grid)
        if len(self.lengths) == 1:
            if self.lengths[0] > grid.seq_q:
                raise self.error(f"more documents than the {grid.seq_q} tokens of the sequence")
        elif sum(self.lengths) != grid.seq_q:
            raise self.error(f"lengths add up to {sum(self.lengths)}, the sequence is {grid.seq_q}")

    def shrunk(self, share: float) -> Document:
        if len(self.lengths) == 1:
            return self
        # Ends are scaled, not lengths, so that the lengths add up to the shrunk sequence.
        ends = [0, *(scaled(int(end), share) for end in np.cumsum(self.lengths))]
        return Document(tuple(stop - start for start, stop in itertools.pairwise(ends)))
