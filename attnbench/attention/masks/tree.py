"""Draft tokens of speculative decoding, arranged as a tree (SpecInfer, https://arxiv.org/abs/2305.09781, section 4).

The queries are n draft tokens; the keys are a prefix of P tokens, the KV cache, and the draft tokens.
Pairs: n P + the sum of the depths, where a root has depth 1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from attnbench.attention.terms import Booleans, Grid, Indices, Pattern, Predicate, Table, counter, overlap, scaled
from attnbench.errors import ProblemError

MAX_TOKENS = 4096  # the ancestors are held as a table of token x token


class Tree(Pattern, frozen=True):
    """All keys before the draft tokens, then the ancestors of a draft token and itself (speculative decoding)."""

    word = "tree"
    example = "tree:0-0-1-1"
    summary = "tree of draft tokens"
    holds_causal = True

    parents: tuple[int, ...]  # of each draft token, counted from 0; a root is its own parent

    def __post_init__(self) -> None:
        count = len(self.parents)
        if count > MAX_TOKENS:
            raise ProblemError(f"mask 'tree': {count} draft tokens; a tree has at most {MAX_TOKENS}")
        for token, parent in enumerate(self.parents):
            if parent >= count:
                raise self.error(f"token {token} has parent {parent}, but the tokens are 0 to {count - 1}")
        for token, parent in enumerate(self.parents):
            if parent > token:
                cycle = ", and the parents form a cycle" if self._descends(parent, token) else ""
                wrong = f"token {token} has the later token {parent} as parent{cycle}"
                raise self.error(f"{wrong}; list parents before their children, and a root as its own parent")

    def _descends(self, token: int, ancestor: int) -> bool:
        for _ in self.parents:
            token = self.parents[token]
            if token == ancestor:
                return True
        return False

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        ancestors, offset, count = table(_ancestors(self.parents)), grid.offset, len(self.parents)
        return lambda b, i, j: (j < offset) | ancestors[i, (j - offset) % count]

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        drafts = (np.maximum(bound - grid.offset, 0) for bound in (low, high))
        return overlap(low, high, 0, grid.offset) + counter(_ancestors(self.parents))(i, *drafts)

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        token = j - grid.offset
        descendants = counter(_ancestors(self.parents).T)(np.maximum(token, 0), low, high)
        return np.where(token < 0, high - low, descendants)

    def check(self, grid: Grid) -> None:
        super().check(grid)
        if grid.seq_q != len(self.parents):
            count = len(self.parents)
            raise self.error(f"{count} draft tokens, but seq_q is {grid.seq_q}; use seq_q={count}")
        if grid.offset < 0:
            raise self.error(f"seq_kv={grid.seq_kv} has no key for each draft token; use at least {grid.seq_q}")

    def shrunk(self, share: float) -> Tree:
        return Tree(self.parents[: scaled(len(self.parents), share)])


@lru_cache(maxsize=16)
def _ancestors(parents: tuple[int, ...]) -> Booleans:
    """[token, token], True where the second is the first or one of its ancestors."""
    ancestors = np.eye(len(parents), dtype=bool)
    for token, parent in enumerate(parents):
        ancestors[token] |= ancestors[parent]
    return ancestors
