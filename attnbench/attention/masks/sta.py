"""Sliding tile attention (https://arxiv.org/abs/2502.04507): neighborhood attention of whole tiles.

The tokens of a tile are consecutive, as the paper arranges them, and tiles are in row-major order.
n x n: n times the tokens of a window pairs.
"""

from __future__ import annotations

import math
from functools import partial

from attnbench.attention.masks.natten import Natten, Numbers, along, check_axes, check_shape, shrunk_first
from attnbench.attention.terms import BlockPattern, Counter, Grid, Predicate, Table


class Sta(BlockPattern, frozen=True):
    """The `window` nearest tiles along each axis of a sequence, image or video, with the tokens of a tile in a row."""

    word = "sta"
    example = "sta:3:8:shape=64x64"
    summary = "sliding tile attention (STA)"
    is_square = True
    joint = "x"

    window: Numbers  # tiles
    tile: Numbers  # tokens
    shape: Numbers = ()  # tokens along each axis, as height x width; empty: one axis

    def __post_init__(self) -> None:
        check_axes(self, self.shape, "window", "tile")

    @property
    def block(self) -> int:
        return math.prod(along(self.tile, len(self.shape) or 1))

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        block, visible = self.block, self._over_tiles(grid).predicate(self._tiles(grid), table)
        return lambda b, i, j: visible(b, i // block, j // block)

    def in_block_row(self, grid: Grid) -> Counter:
        return partial(self._over_tiles(grid).counts, self._tiles(grid))

    def in_block_column(self, grid: Grid) -> Counter:
        return partial(self._over_tiles(grid).row_counts, self._tiles(grid))

    def check(self, grid: Grid) -> None:
        super().check(grid)
        check_shape(self, self.shape, grid)
        shape = self.shape or (grid.seq_q,)
        axes = (along(self.window, len(shape)), along(self.tile, len(shape)), shape)
        for window, tile, length in zip(*axes, strict=True):
            if length % tile:
                raise self.error(f"tiles of {tile} do not divide an axis of {length} tokens; use a divisor")
            if window > length // tile:
                tiles = f"{length // tile} tiles of {tile}"
                raise self.error(f"a window of {window} tiles, but an axis of {length} tokens has {tiles}; use fewer")

    def shrunk(self, share: float) -> Sta:
        tile = along(self.tile, len(self.shape) or 1)
        return Sta(self.window, shrunk_first(tile, share), shrunk_first(self.shape, share))

    def _over_tiles(self, grid: Grid) -> Natten:
        """The same windows with tiles in the place of tokens."""
        shape = [length // tile for length, tile in zip(self.shape, along(self.tile, len(self.shape)), strict=True)]
        return Natten(self.window, shape=tuple(shape))

    def _tiles(self, grid: Grid) -> Grid:
        count = grid.seq_q // self.block
        return Grid(grid.batch, count, count)
