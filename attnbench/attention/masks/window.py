"""Sliding-window attention: a token sees its neighbours (https://arxiv.org/abs/2004.05150, section 3.1).

`left` and `right` count tokens without the diagonal, as `window_size` of flash-attn
(https://github.com/Dao-AILab/flash-attention). n x n: n (L + R + 1) - L (L + 1) / 2 - R (R + 1) / 2 pairs for windows
up to n.
"""

from __future__ import annotations

import msgspec

from attnbench.attention.terms import Bound, Grid, Indices, Predicate, Table, Term, scaled


class Window(Term, frozen=True):
    """Keys from `left` before the diagonal to `right` after it."""

    word = "window"
    example = "window:512"
    summary = "sliding window"

    left: int  # tokens
    right: int = -1  # tokens; -1: as `left`

    def __post_init__(self) -> None:
        if self.right == -1:
            msgspec.structs.force_setattr(self, "right", self.left)

    @property
    def text(self) -> str:
        return f"window:{self.left}" + (f":{self.right}" if self.right != self.left else "")

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        left, right, offset = self.left, self.right, grid.offset
        return lambda b, i, j: (j >= i + offset - left) & (j <= i + offset + right)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Bound, Bound]:
        diagonal = i + grid.offset
        return diagonal - self.left, diagonal + self.right + 1

    def shrunk(self, share: float) -> Window:
        return Window(scaled(self.left, share), scaled(self.right, share))
