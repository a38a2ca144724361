"""Masks as data: primitives that are pure predicates of indices, and compose by `and`.

A mask is written `term(+term)*`, as in `causal+window:512`; grammar.py reads a term. A key is visible if every term
allows it. `d` is the diagonal key of a row: `d = i + seq_kv - seq_q`, so causal is bottom-right aligned.
Pairs are counted row by row, from runs of keys (bands.py) and at most one pattern (patterns.py), never from an array
of seq_q x seq_kv.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.attention import bands, grammar
from attnbench.attention.bands import Causal, Document, Padding, Prefix, Ragged, Window
from attnbench.attention.patterns import BigBird, BlockSparse, Dense, Dilated, Graph, Longformer, Pattern, Strided
from attnbench.attention.terms import Grid, Indices, Term
from attnbench.errors import ProblemError

_KINDS: tuple[type[Term], ...] = (
    Dense, Causal, Window, Prefix, Document, Padding, Dilated, Strided, BlockSparse, Longformer, BigBird, Graph,
)  # fmt: skip
PRIMITIVES: dict[str, type[Term]] = {kind.word: kind for kind in _KINDS}


class Mask(msgspec.Struct, frozen=True):
    """Terms that all must allow a pair; no term at all is the mask `none`."""

    terms: tuple[Term, ...] = ()

    @property
    def text(self) -> str:
        """The canonical form: terms sorted, defaults dropped, equal masks equal."""
        one_sided = Causal() in self.terms
        spelled = [
            f"window:{term.left}" if one_sided and isinstance(term, Window) else term.text for term in self.terms
        ]
        return "+".join(sorted(spelled)) or "none"

    @property
    def words(self) -> frozenset[str]:
        """The primitives it is made of."""
        return frozenset(term.word for term in self.terms)

    def find(self, kind: type[Any]) -> Any:
        """The term of that class, or None."""
        return next((term for term in self.terms if isinstance(term, kind)), None)

    def check(self, grid: Grid) -> None:
        """Raise ProblemError where a term makes no sense on this shape."""
        for term in self.terms:
            term.check(grid)

    def shrunk(self, share: float) -> Mask:
        """The mask for sequences of that share of their length."""
        return Mask(tuple(term.shrunk(share) for term in self.terms))

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        """Whether row `i` of sequence `b` sees key `j`, by broadcasting."""
        seen = np.ones(np.broadcast_shapes(np.shape(b), np.shape(i), np.shape(j)), dtype=bool)
        for term in self._all(grid):
            seen &= term.visible(grid, b, i, j)
        return seen

    @property
    def pattern(self) -> Pattern | None:
        """The term that is no single run of keys, if there is one."""
        return next((term for term in self.terms if isinstance(term, Pattern)), None)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Indices, Indices]:
        """Keys [low, high) outside which a row sees none, within the sequence; all in it unless there is a pattern."""
        return bands.interval(self._all(grid), grid, b, i)

    def rows(self, grid: Grid) -> tuple[Indices, Indices]:
        """The interval of every row: two arrays [batch or 1, seq_q], one sequence where all are alike."""
        sequences = grid.batch if self._differs_by_sequence(grid) else 1
        return self.interval(grid, np.arange(sequences)[:, None], np.arange(grid.seq_q)[None, :])

    def pairs(self, grid: Grid) -> int:
        """Visible (query, key) pairs over the whole batch, for one head."""
        return _pairs(self, grid)

    def has_blind_rows(self, grid: Grid) -> bool:
        """Whether some row sees no key at all."""
        return _has_blind_rows(self, grid)

    def counts(self, grid: Grid) -> Indices:
        """The visible keys of every row: [batch or 1, seq_q], one sequence where all are alike."""
        low, high = self.rows(grid)
        return self.pattern.counts(grid, np.arange(grid.seq_q), low, high) if self.pattern else high - low

    def shares(self, grid: Grid, cells: int = 0, *, block: int = 0) -> NDArray[np.float64]:
        """The share of visible pairs in each cell of a raster, over all sequences: [rows, columns].

        Either `cells` to a side, at most one for each token, or cells of `block` tokens. Counted run by run, in
        O(seq x columns).
        """
        down, right = (_edges(length, cells, block) for length in (grid.seq_q, grid.seq_kv))
        low, high = self.rows(grid)
        i = np.arange(grid.seq_q)
        found = np.empty((len(down) - 1, len(right) - 1))
        for column, (first, stop) in enumerate(itertools.pairwise(right)):
            inside_low, inside_high = np.clip(low, first, stop), np.clip(high, first, stop)
            counts = self.pattern.counts(grid, i, inside_low, inside_high) if self.pattern else inside_high - inside_low
            sums = np.add.reduceat(np.broadcast_to(counts, low.shape).mean(axis=0), down[:-1])
            found[:, column] = sums / (np.diff(down) * (stop - first))
        return found

    def dense(self, grid: Grid) -> NDArray[np.bool_]:
        """The whole mask as booleans [batch or 1, seq_q, seq_kv], True where visible. For small shapes."""
        low, high = self.rows(grid)
        j = np.arange(grid.seq_kv)
        seen = (j >= low[..., None]) & (j < high[..., None])
        if self.pattern:
            seen &= self.pattern.visible(grid, 0, np.arange(grid.seq_q)[:, None], j)
        return seen

    def _all(self, grid: Grid) -> tuple[Term, ...]:
        return (*self.terms, Ragged()) if grid.lengths else self.terms

    def _differs_by_sequence(self, grid: Grid) -> bool:
        return bool(grid.lengths) or any(isinstance(term, Padding) for term in self.terms)


def _edges(length: int, cells: int, block: int) -> Indices:
    """Where cells begin, and where the last one ends."""
    if block:
        return np.append(np.arange(0, length, block), length)
    return np.linspace(0, length, min(cells, length) + 1).astype(np.int64)


@lru_cache(maxsize=4096)
def _pairs(mask: Mask, grid: Grid) -> int:
    counts = mask.counts(grid)
    return int(counts.sum()) * (grid.batch // int(counts.shape[0]))


@lru_cache(maxsize=4096)
def _has_blind_rows(mask: Mask, grid: Grid) -> bool:
    return bool((mask.counts(grid) == 0).any())


@lru_cache(maxsize=4096)
def parse(text: str) -> Mask:
    """Read `causal+window:512`. Raises ProblemError or UnknownNameError, naming the term."""
    if text.strip() in ("none", ""):
        return Mask()
    terms: dict[type[Term], Term] = {}
    for part in text.strip().split("+"):
        if part.strip().partition(":")[0] == "none":
            raise ProblemError(f"mask {text!r}: none stands alone")
        term = grammar.read(part.strip(), PRIMITIVES, "mask", text, ("none",))
        if type(term) in terms:
            raise ProblemError(f"mask {text!r}: {term.word} stands twice")
        terms[type(term)] = term
    return _canonical(terms, text)


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The canonical form of a mask's text."""
    return parse(text).text


def _canonical(terms: dict[type[Term], Term], text: str) -> Mask:
    """Equal sets of visible pairs, one form: a one-sided window is causal, and causal makes a window one-sided.

    A window that shows no key behind the diagonal leaves nothing of a prefix.
    """
    window = terms.get(Window)
    patterns = [term for term in terms.values() if isinstance(term, Pattern)]
    if len(patterns) > 1:
        raise ProblemError(f"mask {text!r}: {patterns[0].word} and {patterns[1].word} are two patterns: one at a time")
    for holder in (Prefix, *(type(pattern) for pattern in patterns if pattern.holds_causal)):
        if holder in terms and {Causal, Prefix} & set(terms) - {holder}:
            raise ProblemError(f"mask {text!r}: {holder.word} holds causal already; write {holder.word} alone")
    if isinstance(window, Window) and any(pattern.holds_causal for pattern in patterns):
        terms[Window] = Window(window.left)  # what lies behind the diagonal is hidden anyway
    elif isinstance(window, Window) and (Causal in terms or window.right == 0):
        terms[Causal], terms[Window] = Causal(), Window(window.left, 0)
        terms.pop(Prefix, None)  # which sees all that is causal, and so hides nothing more
    sparse = terms.get(BlockSparse)
    if isinstance(sparse, BlockSparse):
        under = tuple(terms[kind] for kind in (Causal, Window, Prefix) if kind in terms)
        terms[BlockSparse] = msgspec.structs.replace(sparse, under=under)
    if set(terms) == {Dense}:
        raise ProblemError(f"mask {text!r}: dense what? (try dense+causal)")
    return Mask(tuple(terms[kind] for kind in _KINDS if kind in terms))
