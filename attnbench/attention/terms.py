"""What a mask is made of: conditions on (sequence, query index, key index), each a pure predicate with exact counts."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

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


class Term(msgspec.Struct, frozen=True):
    """One condition on (batch, query index, key index). Subclasses are the primitives."""

    word: ClassVar[str]
    unspelled: ClassVar[frozenset[str]] = frozenset()  # fields that are no part of the grammar

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

    @property
    def text(self) -> str:
        """The term as a user types it: defaults left out, and a key named where a value before it is left out."""
        parts, skipped = [self.word], False
        for field in msgspec.structs.fields(self):
            if field.name in self.unspelled:
                continue
            if not field.required and getattr(self, field.name) == field.default:
                skipped = True
                continue
            value = spell(getattr(self, field.name))
            parts.append(f"{field.name.rstrip('_')}={value}" if skipped else value)
        return ":".join(parts)


def part(count: int, share: float) -> int:
    """That share of a count, half up, at least 1 of any."""
    return max(1, int(count * share + 0.5)) if count else 0


def spell(value: Any) -> str:
    """A value as the grammar has it: lengths joined by -, a share without needless digits."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
