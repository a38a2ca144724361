"""Terms that allow one run of keys to every row: causal, window, prefix, document, padding, and ragged lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from attnbench.attention.terms import Grid, Indices, Term, part
from attnbench.errors import ProblemError


class Causal(Term, frozen=True):
    """Keys up to the diagonal."""

    word = "causal"
    example = "causal"

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return j <= i + grid.offset

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, i + grid.offset + 1


class Window(Term, frozen=True):
    """Keys from `left` before the diagonal one to `right` after it, as flash-attn's `window_size`."""

    word = "window"
    example = "window:512"
    left: int
    right: int = -1  # as `left`

    def __post_init__(self) -> None:
        if self.right == -1:
            msgspec.structs.force_setattr(self, "right", self.left)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        d = i + grid.offset
        return (j >= d - self.left) & (j <= d + self.right)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        d = i + grid.offset
        return d - self.left, d + self.right + 1

    def shrunk(self, share: float) -> Window:
        return Window(part(self.left, share), part(self.right, share))

    @property
    def text(self) -> str:
        return f"window:{self.left}" + (f":{self.right}" if self.right != self.left else "")


class Prefix(Term, frozen=True):
    """The first `count` keys for every row, causal behind them (a prefix language model)."""

    word = "prefix"
    example = "prefix:64"
    count: int

    def shrunk(self, share: float) -> Prefix:
        return Prefix(part(self.count, share))

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return (j < self.count) | (j <= i + grid.offset)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, np.maximum(self.count, i + grid.offset + 1)


class Document(Term, frozen=True):
    """Query and key in one document of a packed sequence: `count` near-equal ones, or the given `lengths`."""

    word = "document"
    example = "document:8"
    lengths: tuple[int, ...]  # one number is a count of near-equal documents

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ProblemError(
                f"mask {self.text!r}: a count or lengths of at least 1, as document:8 or document:300-200"
            )

    def shrunk(self, share: float) -> Document:
        if len(self.lengths) == 1:  # a count of documents, of whatever length
            return self
        ends = [0, *(part(int(end), share) for end in np.cumsum(self.lengths))]  # so that they add up to the sequence
        return Document(tuple(stop - start for start, stop in itertools.pairwise(ends)))

    def spans(self, grid: Grid) -> Indices:
        """The first index of every document, and the end of the last."""
        lengths = np.array(self.lengths)
        if len(lengths) == 1 and lengths[0] != grid.seq_q:
            count = int(lengths[0])
            lengths = np.full(count, grid.seq_q // count) + (np.arange(count) < grid.seq_q % count)
        return np.concatenate([[0], np.cumsum(lengths)])

    def owner(self, grid: Grid) -> Indices:
        """The document of every index."""
        spans = self.spans(grid)
        return np.repeat(np.arange(len(spans) - 1), np.diff(spans))

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        owner = self.owner(grid)
        return owner[i] == owner[j]

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        spans, owner = self.spans(grid), self.owner(grid)
        return spans[owner[i]], spans[owner[i] + 1]

    def check(self, grid: Grid) -> None:
        if grid.seq_q != grid.seq_kv:
            raise ProblemError(f"mask {self.text!r} needs seq_q == seq_kv, not {grid.seq_q} and {grid.seq_kv}")
        if len(self.lengths) == 1:
            if self.lengths[0] > grid.seq_q:
                raise ProblemError(f"mask {self.text!r}: more documents than the {grid.seq_q} tokens of the sequence")
        elif sum(self.lengths) != grid.seq_q:
            raise ProblemError(
                f"mask {self.text!r}: lengths add up to {sum(self.lengths)}, the sequence is {grid.seq_q}"
            )


class Padding(Term, frozen=True):
    """Keys below the length of their sequence; lengths fall linearly, `share` of all keys are padding."""

    word = "padding"
    example = "padding:0.3"
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.5:
            raise ProblemError(f"mask {self.text!r}: the share of padding lies in 0..0.5")

    def key_lengths(self, grid: Grid) -> Indices:
        """The number of real keys of every sequence: round(m (1 - 2F (b + 1/2) / batch)), half up, at least 1."""
        b = np.arange(grid.batch)
        real = grid.seq_kv * (1 - 2 * self.share * (b + 0.5) / grid.batch)
        return np.maximum(np.floor(real + 0.5).astype(np.int64), 1)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return j < self.key_lengths(grid)[b]

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, self.key_lengths(grid)[b]


class Ragged(Term, frozen=True):
    """Query and key below the length of their sequence. No word of the grammar: it stands for `lengths`."""

    word = "ragged"

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        lengths = np.array(grid.lengths)
        return (i < lengths[b]) & (j < lengths[b])

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        length = np.array(grid.lengths)[b]
        return 0, np.where(i < length, length, 0)


def interval(terms: Iterable[Term], grid: Grid, b: Indices, i: Indices) -> tuple[Indices, Indices]:
    """The keys [low, high) that all terms leave to every row, within the sequence; high >= low."""
    shape = np.broadcast_shapes(np.shape(b), np.shape(i))
    low, high = np.zeros(shape, np.int64), np.full(shape, grid.seq_kv, np.int64)
    for term in terms:
        term_low, term_high = term.interval(grid, b, i)
        low, high = np.maximum(low, term_low), np.minimum(high, term_high)
    return low, np.maximum(low, high)
