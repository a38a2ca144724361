"""What a mask looks like: as shades in a terminal, and as a heat map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
COLUMNS = 4  # of panels


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
    shares = mask.shares(grid, DRAWN)
    blues = {"domain": [0, 1], "range": ["#dbe9f4", BLUE]}
    drawn = tiles({"": shares}, (grid.seq_q, grid.seq_kv), SIDE, "visible", "%", blues)
    _, pairs, *rest = facts(mask, grid, block)
    heading = f"{mask.text}: {units.short(grid.seq_q)} queries over {units.short(grid.seq_kv)} keys"
    return drawing.titled(drawn, heading, pairs, *rest)


def tiles(
    rasters: Mapping[str, NDArray[np.float64]], lengths: tuple[int, int], side: int, title: str, form: str,
    colors: Mapping[str, Any],
) -> Chart:  # fmt: skip
    """Rasters of one shape as heat maps, `side` pixels along the longer of queries and keys; a name heads each.

    `colors` is a scale of Vega's.
    """
    import altair as alt

    seq_q, seq_kv = lengths
    data = [
        {
            "panel": name, "i": r * seq_q / shares.shape[0], "i2": (r + 1) * seq_q / shares.shape[0],
            "j": c * seq_kv / shares.shape[1], "j2": (c + 1) * seq_kv / shares.shape[1],
            "share": float(f"{shares[r, c]:.4g}"),
        }
        for name, shares in rasters.items()
        for r, c in zip(*np.nonzero(shares), strict=True)
    ]  # fmt: skip

    def along(length: int, upward: bool) -> Any:
        return alt.Scale(domain=[length, 0] if upward else [0, length], nice=False, zero=False)

    bare = alt.Axis(grid=False)
    drawn = (
        alt.Chart(alt.InlineData(values=data))
        .mark_rect()
        .encode(
            x=alt.X("j:Q", title="key", scale=along(seq_kv, upward=False), axis=bare),
            y=alt.Y("i:Q", title="query", scale=along(seq_q, upward=True), axis=bare),
            x2="j2:Q",
            y2="i2:Q",
            color=alt.Color("share:Q", title=title, scale=alt.Scale(**colors), legend=alt.Legend(format=form)),
            tooltip=["i:Q", "j:Q", "share:Q"],
        )
    )
    height = max(40, min(side, round(side * seq_q / seq_kv)))
    width = max(40, min(side, round(side * seq_kv / seq_q)))
    drawn = drawn.properties(width=width, height=height)
    if len(rasters) == 1:
        return drawn
    named = alt.Facet("panel:N", title=None, sort=list(rasters), header=alt.Header(labelFontWeight="bold"))
    return drawn.facet(facet=named, columns=COLUMNS)
