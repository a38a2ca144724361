"""Random blocks: the diagonal, the density, and the draw."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention import masks
from attnbench.attention.masks.blocksparse import BlockSparse
from attnbench.attention.terms import Grid


@given(st.floats(0.01, 1.0), st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_each_block_row_has_its_diagonal_and_its_share(density, rows, columns, draw):
    grid = Grid(1, 4 * rows, 4 * columns)
    term = masks.parse(f"blocksparse:{density:g}:4:{draw}").find(BlockSparse)
    visible = term.visible_blocks(grid)
    assert set(visible.sum(1)) == {max(1, int(np.floor(term.density * columns + 0.5)))}
    for row in range(rows):
        diagonal = columns - rows + row
        assert diagonal < 0 or visible[row, diagonal]


def test_under_causal_the_density_is_a_share_of_the_visible_blocks():
    visible = masks.parse("causal+blocksparse:0.5:4").find(BlockSparse).visible_blocks(Grid(1, 64, 64))
    assert not np.triu(visible, 1).any()
    assert visible.sum(1).tolist() == [max(1, int(np.floor(0.5 * (row + 1) + 0.5))) for row in range(16)]


def test_the_draw_selects_the_blocks():
    first, again, other = (
        masks.parse(f"blocksparse:0.3:4:{draw}").find(BlockSparse).visible_blocks(Grid(1, 128, 128))
        for draw in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert 0.2 < (first != other).mean() < 0.6
