"""What a mask is made of: conditions on (sequence, query index, key index), each a pure predicate with exact counts."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention.grammar import Word

Indices = NDArray[np.int64]


class Grid(msgspec.Struct, frozen=True):
    """The shape on which a mask is laid. With `lengths` every sequence is a self-attention of its own length."""

    batch: int
    seq_q: int
    seq_kv: int
    lengths: tuple[int, ...] = ()

    @property
    def offset(self) -> int:
        """The diagonal key of row 0."""
        return self.seq_kv - self.seq_q


class Term(Word, frozen=True):
    """One condition on (batch, query index, key index). Subclasses are the primitives."""

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        """Whether row `i` of sequence `b` sees key `j`: index arrays in, booleans out, by broadcasting."""
        raise NotImplementedError

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        """Keys [low, high) outside which row `i` of sequence `b` sees none; may reach beyond the sequence."""
        raise NotImplementedError

    def check(self, grid: Grid) -> None:
        """Raise ProblemError where the term makes no sense on this shape."""

    def shrunk(self, share: float) -> Term:
        """The term for sequences of that share of their length: what it counts in tokens shrinks with them."""
        return self


def part(count: int, share: float) -> int:
    """That share of a count, half up, at least 1 of any."""
    return max(1, int(count * share + 0.5)) if count else 0
