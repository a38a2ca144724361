"""Masks as data: terms, each a pure predicate of indices, that all must allow a pair of query and key.

A mask is written `term(+term)*`, as in `causal+window:512`; grammar.py parses a term. The diagonal key of row i is
i + seq_kv - seq_q, so causal is aligned to the bottom right. Pairs are counted row by row, from the interval of keys
that the terms leave to a row and the visible keys of at most one pattern in it, never from an array of seq_q x seq_kv.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention import grammar
from attnbench.attention.masks.bigbird import BigBird
from attnbench.attention.masks.blockdiffusion import BlockDiffusion
from attnbench.attention.masks.blocksparse import BlockSparse
from attnbench.attention.masks.causal import Causal
from attnbench.attention.masks.dense import Dense
from attnbench.attention.masks.dilated import Dilated
from attnbench.attention.masks.document import Document
from attnbench.attention.masks.graph import GraphMask
from attnbench.attention.masks.longformer import Longformer
from attnbench.attention.masks.natten import Natten
from attnbench.attention.masks.padding import Padding
from attnbench.attention.masks.prefix import Prefix
from attnbench.attention.masks.sta import Sta
from attnbench.attention.masks.strided import Strided
from attnbench.attention.masks.tree import Tree
from attnbench.attention.masks.window import Window
from attnbench.attention.terms import Booleans, Grid, Indices, Pattern, Term, intersection
from attnbench.errors import ProblemError

# Every term of the grammar. A new mask is one file in this folder and its class here.
KINDS: tuple[type[Term], ...] = (
    Dense, Causal, Window, Prefix, Document, Padding, Dilated, Strided, BlockSparse, Longformer, BigBird, GraphMask,
    Tree, BlockDiffusion, Natten, Sta,
)  # fmt: skip
PRIMITIVES: dict[str, type[Term]] = {kind.word: kind for kind in KINDS}
PATTERNS = frozenset(kind.word for kind in KINDS if issubclass(kind, Pattern))

Kind = TypeVar("Kind", bound=Term)


class Mask(msgspec.Struct, frozen=True, cache_hash=True):
    """Terms that all must allow a pair; without terms it is the mask `none`."""

    terms: tuple[Term, ...] = ()

    @property
    def text(self) -> str:
        """The canonical text: terms sorted, defaults left out, equal masks equal."""
        one_sided = Causal() in self.terms
        texts = [f"window:{term.left}" if one_sided and isinstance(term, Window) else term.text for term in self.terms]
        return "+".join(sorted(texts)) or "none"

    @property
    def words(self) -> frozenset[str]:
        return frozenset(term.word for term in self.terms)

    @property
    def holds_causal(self) -> bool:
        """Whether it hides what a causal mask hides, but for the keys of a prefix."""
        return any(term.holds_causal for term in self.terms)

    @property
    def pattern(self) -> Pattern | None:
        """The term whose visible keys are not one interval, if there is one."""
        return self.find(Pattern)

    def find(self, kind: type[Kind]) -> Kind | None:
        return next((term for term in self.terms if isinstance(term, kind)), None)

    def term(self, kind: type[Kind]) -> Kind:
        """The term of that class, which the mask must have."""
        return next(term for term in self.terms if isinstance(term, kind))

    def check(self, grid: Grid) -> None:
        for term in self.terms:
            term.check(grid)

    def shrunk(self, share: float) -> Mask:
        """The mask for sequences of `share` of their length."""
        return Mask(tuple(term.shrunk(share) for term in self.terms))

    def visible(self, grid: Grid, b: Indices, i: Indices, j: Indices) -> Booleans:
        visible = np.ones(np.broadcast_shapes(np.shape(b), np.shape(i), np.shape(j)), dtype=bool)
        for term in self.terms:
            visible &= term.visible(grid, b, i, j)
        return visible

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Indices, Indices]:
        return intersection(self.terms, grid, b, i)

    def rows(self, grid: Grid) -> tuple[Indices, Indices]:
        """The interval of every row: two arrays [batch, seq_q], or [1, seq_q] if all sequences are alike."""
        sequences = grid.batch if any(term.differs_by_sequence for term in self.terms) else 1
        return intersection(self.terms, grid, np.arange(sequences)[:, None], np.arange(grid.seq_q)[None, :])

    def pairs(self, grid: Grid) -> int:
        """Visible (query, key) pairs over the whole batch, for one head."""
        return _totals(self, self._one_of_equals(grid))[0] * self._equals(grid)

    def seen_keys(self, grid: Grid) -> int:
        """Keys that some query sees, over the whole batch: those that a call has to read."""
        return _seen_keys(self, self._one_of_equals(grid)) * self._equals(grid)

    def seen(self, grid: Grid) -> Booleans:
        """Whether some query sees each key: [batch, seq_kv], or a batch of 1 if all sequences are alike."""
        return np.stack([self.seers(grid, *ends) > 0 for ends in zip(*self.rows(grid), strict=True)])

    def has_blind_rows(self, grid: Grid) -> bool:
        """Whether some row sees no key at all."""
        return _totals(self, self._one_of_equals(grid))[1]

    def counts(self, grid: Grid) -> Indices:
        """The number of visible keys of every row: [batch, seq_q], or [1, seq_q] if all sequences are alike."""
        return self.counts_within(grid, *self.rows(grid))

    def shares(self, grid: Grid, cells: int = 0, *, block: int = 0) -> NDArray[np.float64]:
        """The share of visible pairs in each cell of a raster, over all sequences: [rows, columns].

        Either `cells` on each side, at most one for each token, or cells of `block` tokens. Counted in
        O(seq x columns).
        """
        down, right = (edges(length, cells, block) for length in (grid.seq_q, grid.seq_kv))
        low, high = self.rows(grid)
        shares = np.empty((len(down) - 1, len(right) - 1))
        for column, (first, stop) in enumerate(itertools.pairwise(right)):
            counts = self.counts_within(grid, np.clip(low, first, stop), np.clip(high, first, stop))
            sums = np.add.reduceat(np.broadcast_to(counts, low.shape).mean(axis=0), down[:-1])
            shares[:, column] = sums / (np.diff(down) * (stop - first))
        return shares

    def dense(self, grid: Grid) -> Booleans:
        """The mask as booleans, True where visible: [batch, seq_q, seq_kv], or a batch of 1 if all are alike."""
        low, high = self.rows(grid)
        j = np.arange(grid.seq_kv)
        visible = (j >= low[..., None]) & (j < high[..., None])
        if self.pattern:
            visible &= self.pattern.visible(grid, np.array(0), np.arange(grid.seq_q)[:, None], j)
        return visible

    def counts_within(self, grid: Grid, low: Indices, high: Indices) -> Indices:
        """The number of visible keys of every row in [low, high), a part of its interval in `rows`."""
        pattern = self.pattern
        return pattern.counts(grid, np.arange(grid.seq_q), low, high) if pattern else high - low

    def seers(self, grid: Grid, low: Indices, high: Indices) -> Indices:
        """[seq_kv]: how many rows see each key of one sequence, whose rows see [low, high).

        The ends of an interval never decrease from row to row, but for rows without keys, so the rows that the terms
        leave to a key are an interval too.
        """
        (rows,) = np.nonzero(high > low)
        if not len(rows):
            return np.zeros(grid.seq_kv, np.int64)
        assert rows[-1] - rows[0] + 1 == len(rows), self.text
        j = np.arange(grid.seq_kv)
        first = rows[0] + np.searchsorted(high[rows], j, side="right")
        stop = np.maximum(first, rows[0] + np.searchsorted(low[rows], j, side="right"))
        return self.pattern.row_counts(grid, j, first, stop) if self.pattern else stop - first

    def _equals(self, grid: Grid) -> int:
        """The number of sequences if all are alike, else 1."""
        return 1 if any(term.differs_by_sequence for term in self.terms) else grid.batch

    def _one_of_equals(self, grid: Grid) -> Grid:
        """One sequence where all are alike: runs over batches count it once."""
        return grid if self._equals(grid) == 1 else Grid(1, grid.seq_q, grid.seq_kv)


def edges(length: int, cells: int, block: int) -> Indices:
    """The first index of every cell, and the end of the last."""
    if block:
        return np.append(np.arange(0, length, block), length)
    return np.linspace(0, length, min(cells, length) + 1).astype(np.int64)


@lru_cache(maxsize=4096)
def _totals(mask: Mask, grid: Grid) -> tuple[int, bool]:
    """The visible pairs of sequences that differ, or of one, and whether some row sees no key."""
    if not mask.terms:
        return grid.seq_q * grid.seq_kv, False
    counts = mask.counts(grid)
    return int(counts.sum()), not counts.all()


@lru_cache(maxsize=4096)
def _seen_keys(mask: Mask, grid: Grid) -> int:
    return int(np.count_nonzero(mask.seen(grid)))


@lru_cache(maxsize=4096)
def parse(text: str) -> Mask:
    """Parse `causal+window:512`. Raises ProblemError or UnknownNameError, which name the term."""
    if text.strip() in ("none", ""):
        return Mask()
    terms: dict[type[Term], Term] = {}
    for part in text.strip().split("+"):
        if part.strip().partition(":")[0] == "none":
            raise ProblemError(f"mask {text!r}: none cannot be combined with other terms")
        term = grammar.parse(part.strip(), PRIMITIVES, "mask", text, ("none",))
        if type(term) in terms:
            raise ProblemError(f"mask {text!r}: {term.word} is given twice")
        terms[type(term)] = term
    _check_together(tuple(terms.values()), text)
    return _canonical(terms)


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The text that equal masks have in common. Raises as `parse` does."""
    return parse(text).text


def _check_together(terms: tuple[Term, ...], text: str) -> None:
    patterns = [term.word for term in terms if isinstance(term, Pattern)]
    if len(patterns) > 1:
        raise ProblemError(f"mask {text!r}: {patterns[0]} and {patterns[1]} are two patterns: use one of them")
    causal = [term.word for term in terms if term.holds_causal]
    if len(causal) > 1:
        holder = next(word for word in causal if word != Causal.word)
        raise ProblemError(f"mask {text!r}: {holder} is causal already; use {holder} alone")
    if terms and all(isinstance(term, Dense) for term in terms):
        raise ProblemError(f"mask {text!r}: dense needs another term, as in dense+causal")


def _canonical(terms: dict[type[Term], Term]) -> Mask:
    """One form for equal sets of visible pairs."""
    window = terms.get(Window)
    if isinstance(window, Window) and any(isinstance(term, Pattern) and term.holds_causal for term in terms.values()):
        terms[Window] = Window(window.left)  # the pattern hides the keys after the diagonal
    elif isinstance(window, Window) and (Causal in terms or window.right == 0):
        terms[Causal], terms[Window] = Causal(), Window(window.left, 0)
        terms.pop(Prefix, None)  # a prefix shows more than causal only after the diagonal
    ordered = [terms[kind] for kind in KINDS if kind in terms]
    return Mask(tuple(term.combined(ordered) for term in ordered))
