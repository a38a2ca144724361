"""What a mask looks like: as shades in a terminal, and as a heat map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from attnbench import units
from attnbench.attention.masks import Mask
from attnbench.attention.terms import Grid
from attnbench.report import drawing
from attnbench.report.drawing import Chart
from attnbench.report.style import BLUE

SHADES = " ░▒▓█"
CELLS = 48  # of a picture in a terminal, to a side
DRAWN = 96  # of a chart
SIDE = 420  # pixels


def text(mask: Mask, grid: Grid, block: int, cells: int = CELLS) -> Iterator[str]:
    """A picture of shades, two columns to a cell, and what there is to know of the mask; rows are queries."""
    shares = mask.shares(grid, cells)
    for row in shares:
        yield "".join(2 * SHADES[shade(share)] for share in row).rstrip()
    yield from facts(mask, grid, block)


def shade(share: float) -> int:
    """The darker the more is visible; what is not empty is never blank, what is not full never solid."""
    last = len(SHADES) - 1
    if share in (0.0, 1.0):
        return int(share) * last
    return 1 + min(last - 2, int(share * (last - 1)))


def facts(mask: Mask, grid: Grid, block: int) -> Iterator[str]:
    """Pairs, blocks of `block` tokens by how full they are, and rows that see nothing."""
    pairs, every = mask.pairs(grid), grid.batch * grid.seq_q * grid.seq_kv
    yield f"{mask.text}, {grid.seq_q} queries over {grid.seq_kv} keys"
    yield f"pairs: {pairs:,} of {every:,}, {100 * pairs / every:.3g} %"
    shares = mask.shares(grid, block=block)
    empty, full = float((shares == 0).mean()), float((shares == 1).mean())
    part = 1 - empty - full
    yield f"blocks of {block}: {100 * empty:.3g} % empty, {100 * part:.3g} % in part, {100 * full:.3g} % full"
    if pairs:
        yield f"a kernel that skips the empty ones does {(1 - empty) * every / pairs:.3g} times the work of the pairs"
    if mask.has_blind_rows(grid):
        yield "some rows see no key: their output is 0"


def chart(mask: Mask, grid: Grid, block: int) -> Chart:
    """The share of visible pairs, cell by cell: queries downwards, keys to the right."""
    import altair as alt

    shares = mask.shares(grid, DRAWN)
    rows, columns = shares.shape
    tall, wide = grid.seq_q / rows, grid.seq_kv / columns
    data = [
        {
            "i": r * tall, "i2": (r + 1) * tall, "j": c * wide, "j2": (c + 1) * wide,
            "share": round(float(shares[r, c]), 4),
        }
        for r, c in zip(*np.nonzero(shares), strict=True)
    ]  # fmt: skip

    def along(length: int, upward: bool) -> Any:
        return alt.Scale(domain=[length, 0] if upward else [0, length], nice=False, zero=False)

    bare = alt.Axis(grid=False)
    blues = alt.Scale(domain=[0, 1], range=["#dbe9f4", BLUE])
    tiles = (
        alt.Chart(alt.InlineData(values=data))
        .mark_rect()
        .encode(
            x=alt.X("j:Q", title="key", scale=along(grid.seq_kv, upward=False), axis=bare),
            y=alt.Y("i:Q", title="query", scale=along(grid.seq_q, upward=True), axis=bare),
            x2="j2:Q",
            y2="i2:Q",
            color=alt.Color("share:Q", title="visible", scale=blues, legend=alt.Legend(format="%")),
            tooltip=["i:Q", "j:Q", "share:Q"],
        )
    )
    height = max(40, min(SIDE, round(SIDE * grid.seq_q / grid.seq_kv)))
    width = max(40, min(SIDE, round(SIDE * grid.seq_kv / grid.seq_q)))
    _, pairs, *rest = facts(mask, grid, block)
    heading = f"{mask.text}: {units.short(grid.seq_q)} queries over {units.short(grid.seq_kv)} keys"
    return drawing.titled(tiles.properties(width=width, height=height), heading, pairs, *rest)
