"""Terms, the conditions that a mask is composed of, and the shape that a mask applies to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, ClassVar, Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention.grammar import Spec
from attnbench.errors import ProblemError

Indices = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Bound = int | Indices  # one bound for all rows, or one for each
Array: TypeAlias = Any  # of the library that evaluates a predicate: numbers, numpy, torch
Predicate = Callable[[Array, Array, Array], Array]  # of indices of sequences, queries and keys
Table = Callable[[NDArray[np.generic]], Array]
Counter = Callable[[Indices, Indices, Indices], Indices]  # of row, low and high: how many of [low, high) it shows


class Grid(msgspec.Struct, frozen=True):
    """The shape that a mask applies to."""

    batch: int
    seq_q: int  # tokens
    seq_kv: int  # tokens

    @property
    def offset(self) -> int:
        """The index of the key on the diagonal of row 0."""
        return self.seq_kv - self.seq_q


class Term(Spec, frozen=True):
    """One condition on (sequence, query index, key index). The keys it allows in a row form one interval.

    `i + grid.offset` is the index of the key on the diagonal of row `i`.
    """

    noun = "mask"
    summary: ClassVar[str]  # what a backend must support
    holds_causal: ClassVar[bool] = False  # whether it hides what a causal mask hides, but for some keys
    differs_by_sequence: ClassVar[bool] = False
    is_square: ClassVar[bool] = False  # whether it needs seq_q == seq_kv

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        """Whether row `i` of sequence `b` sees key `j`, as a function of (b, i, j) that a compiler can trace.

        `table` turns arrays into those of the caller's library; the function closes over plain values only.
        """
        raise NotImplementedError

    def visible(self, grid: Grid, b: Indices, i: Indices, j: Indices) -> Booleans:
        """Whether row `i` of sequence `b` sees key `j`, by broadcasting."""
        return np.asarray(self.predicate(grid, np.asarray)(b, i, j))

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Bound, Bound]:
        """The interval [low, high) outside which row `i` of sequence `b` sees no key; may exceed the sequence."""
        return 0, grid.seq_kv

    def check(self, grid: Grid) -> None:
        """Raise ProblemError if the term does not apply to this shape."""
        if self.is_square and grid.seq_q != grid.seq_kv:
            raise ProblemError(f"mask {self.text!r} needs seq_q == seq_kv, not {grid.seq_q} and {grid.seq_kv}")

    def shrunk(self, share: float) -> Self:
        """The term for sequences of `share` of their length: parameters in tokens shrink with it."""
        return self

    def combined(self, others: Iterable[Term]) -> Self:
        """The term as it applies together with `others`."""
        return self


class Pattern(Term, frozen=True):
    """A term whose visible keys are not one interval. A mask has at most one.

    `counts` is exact and takes O(seq) or O(blocks), so pairs are counted without an array of seq_q x seq_kv. Random
    patterns come from a fixed hash, not from the generator of a library, and are the same for every head.
    """

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        """The number of visible keys of row `i` in [low, high), an interval within the sequence, by broadcasting."""
        raise NotImplementedError

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        """The number of rows in [low, high) that see key `j`, by broadcasting."""
        raise NotImplementedError


class BlockPattern(Pattern, frozen=True):
    """A pattern that shows or hides whole blocks of queries and keys: a class defines `selected` or `predicate`."""

    @property
    def block(self) -> int:
        """Tokens on each side of a block."""
        raise NotImplementedError

    def selected(self, grid: Grid, rows: int, columns: int) -> Booleans:
        """[rows, columns] in blocks, True where visible. Not cached: use `visible_blocks`."""
        row, column = np.ogrid[:rows, :columns]
        return self.visible(grid, np.array(0), row * self.block, column * self.block)

    def visible_blocks(self, grid: Grid) -> Booleans:
        """[block rows, block columns], True where a block is visible."""
        return _visible_blocks(self, grid.seq_q, grid.seq_kv)

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        visible, block = table(self.visible_blocks(grid)), self.block
        return lambda b, i, j: visible[i // block, j // block]

    def in_block_row(self, grid: Grid) -> Counter:
        """How many blocks of [low, high) are visible in a block row."""
        return counter(self.visible_blocks(grid))

    def in_block_column(self, grid: Grid) -> Counter:
        """How many blocks of [low, high) are visible in a block column."""
        return counter(self.visible_blocks(grid).T)

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        return _in_blocks(self.in_block_row(grid), self.block, i, low, high)

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        return _in_blocks(self.in_block_column(grid), self.block, j, low, high)


def _in_blocks(count: Counter, block: int, i: Indices, low: Indices, high: Indices) -> Indices:
    """How many of [low, high) are in visible blocks of the block row of `i`, with blocks of `block` tokens."""
    row = i // block

    def visible_below(bound: Indices) -> Indices:
        column, rest = bound // block, bound % block
        return count(row, np.zeros_like(column), column) * block + count(row, column, column + (rest > 0)) * rest

    return visible_below(high) - visible_below(low)


def counter(visible: Booleans) -> Counter:
    """How many of [low, high) a row of a table shows."""
    before = np.zeros((len(visible), visible.shape[1] + 1), np.int32)
    np.cumsum(visible, axis=1, out=before[:, 1:])
    return lambda row, low, high: (before[row, high] - before[row, low]).astype(np.int64)


@lru_cache(maxsize=64)
def _visible_blocks(pattern: BlockPattern, seq_q: int, seq_kv: int) -> Booleans:
    return pattern.selected(Grid(1, seq_q, seq_kv), -(-seq_q // pattern.block), -(-seq_kv // pattern.block))


def intersection(terms: Iterable[Term], grid: Grid, b: Indices, i: Indices) -> tuple[Indices, Indices]:
    """The interval [low, high) of keys that all terms allow in each row, within the sequence; high >= low."""
    shape = np.broadcast_shapes(np.shape(b), np.shape(i))
    low, high = np.zeros(shape, np.int64), np.full(shape, grid.seq_kv, np.int64)
    for term in terms:
        term_low, term_high = term.interval(grid, b, i)
        low, high = np.maximum(low, term_low), np.minimum(high, term_high)
    return low, np.maximum(low, high)


def overlap(low: Bound, high: Bound, other_low: Bound, other_high: Bound) -> Indices:
    """The number of keys in both [low, high) and [other_low, other_high)."""
    count: Indices = np.minimum(high, other_high) - np.maximum(low, other_low)
    return np.maximum(count, 0, out=count)


def multiples(start: Indices, step: int, low: Indices, high: Indices) -> Indices:
    """How many of start, start ± step, start ± 2 step ... are in [low, high)."""
    count = (high - 1 - start) // step - (low - 1 - start) // step
    return np.maximum(count, 0, out=count)


def scaled(count: int, share: float) -> int:
    """`share` of a count, rounded half up, and at least 1 unless the count is 0."""
    return max(1, int(count * share + 0.5)) if count else 0


def check_density(term: Term, density: float) -> None:
    """Raise ProblemError unless the density is in (0, 1]."""
    if not 0 < density <= 1:
        raise term.error(f"density={density:g} lies outside (0, 1]")
