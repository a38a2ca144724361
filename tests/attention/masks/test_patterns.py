"""Masks whose visible keys are not one interval: exact counts against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention import masks
from attnbench.attention.terms import BlockPattern, Grid
from attnbench.errors import ProblemError, UnknownNameError
from tests import oracle

SQUARE = ("longformer", "bigbird", "graph", "document")


@st.composite
def fitted(draw):
    """A pattern that determines the lengths, with its seq_q and seq_kv."""
    word = draw(st.sampled_from(list(oracle.KEYS)))
    if word == "tree":
        parents = [draw(st.integers(0, token)) for token in range(draw(st.integers(1, 9)))]
        return "tree:" + "-".join(map(str, parents)), len(parents), len(parents) + draw(st.integers(0, 20))
    if word == "blockdiffusion":
        block = draw(st.integers(1, 5))
        seq = 2 * block * draw(st.integers(1, 4))
        return f"blockdiffusion:{block}", seq, seq
    axes = draw(st.integers(1, 3))
    if word == "natten":
        dilation = [draw(st.integers(1, 3)) for _ in range(axes)]
        shape = [draw(st.integers(step, (30, 8, 4)[axes - 1])) for step in dilation]
        kernel = [draw(st.integers(1, length // step)) for length, step in zip(shape, dilation, strict=True)]
        stride = [draw(st.integers(1, most)) for most in kernel]
        numbers = [kernel, stride, dilation]
    else:
        tile = [draw(st.integers(1, 3)) for _ in range(axes)]
        tiles = [draw(st.integers(1, (9, 4, 2)[axes - 1])) for _ in range(axes)]
        shape = [count * size for count, size in zip(tiles, tile, strict=True)]
        numbers = [[draw(st.integers(1, count)) for count in tiles], tile]
    numbers += [shape] if axes > 1 else []
    return ":".join([word, *("x".join(map(str, each)) for each in numbers)]), math.prod(shape), math.prod(shape)


@given(fitted())
def test_mask_equals_its_definition(drawn):
    text, seq_q, seq_kv = drawn
    mask = masks.parse(text)
    grid = Grid(1, seq_q, seq_kv)
    mask.check(grid)
    expected = oracle.table(*text.split(":", 1), seq_q, seq_kv).numpy()
    assert np.array_equal(mask.dense(grid)[0], expected)
    assert mask.text == masks.parse(mask.text).text
    if isinstance(mask.pattern, BlockPattern):
        size = mask.pattern.block
        assert np.array_equal(mask.pattern.visible_blocks(grid), expected[::size, ::size])


@st.composite
def patterned_grids(draw):
    """A pattern, perhaps under runs of keys, and a shape on which it makes sense."""
    seq_q, seq_kv, batch = draw(st.integers(1, 30)), draw(st.integers(1, 30)), draw(st.integers(1, 3))
    block, draw_ = draw(st.integers(1, 9)), draw(st.integers(0, 3))
    pattern = draw(
        st.sampled_from([
            f"dilated:{draw(st.integers(1, 9))}",
            f"strided:{draw(st.integers(1, 9))}",
            f"blocksparse:{draw(st.integers(1, 100)) / 100}:{block}:draw={draw_}",
            f"longformer:{2 * draw(st.integers(0, 6))}:{draw(st.integers(0, 1))}",
            f"bigbird:{block}:random={draw(st.integers(0, 4))}:global={draw(st.integers(0, 3))}:draw={draw_}",
            f"graph:{draw(st.integers(1, 100)) / 100}:draw={draw_}",
            "fitted",
        ])
    )  # fmt: skip
    if pattern == "fitted":
        pattern, seq_q, seq_kv = draw(fitted())
    terms = [pattern]
    if draw(st.booleans()) and not pattern.startswith(("strided", "tree")):
        terms.append("causal" if draw(st.booleans()) else f"prefix:{draw(st.integers(0, 30))}")
    if draw(st.booleans()):
        terms.append(f"window:{draw(st.integers(0, 30))}")
    if draw(st.booleans()):
        terms.append(f"padding:{draw(st.integers(0, 50)) / 100}")
    if draw(st.booleans()) and (seq_q == seq_kv or not pattern.startswith("tree")):
        terms.append(f"document:{draw(st.integers(1, seq_q))}")
    if draw(st.booleans()):
        terms.append("dense")
    if any(term.startswith(SQUARE) for term in terms):
        seq_kv = seq_q
    return "+".join(draw(st.permutations(terms))), Grid(batch, seq_q, seq_kv)


@given(patterned_grids())
def test_counts_pairs_and_dense_equal_the_predicate(drawn):
    text, grid = drawn
    mask = masks.parse(text)
    mask.check(grid)
    b, i, j = np.ogrid[: grid.batch, : grid.seq_q, : grid.seq_kv]
    seen = np.broadcast_to(mask.visible(grid, b, i, j), (grid.batch, grid.seq_q, grid.seq_kv))
    assert np.array_equal(np.broadcast_to(mask.counts(grid), seen.shape[:2]), seen.sum(-1))
    assert mask.pairs(grid) == int(seen.sum())
    assert np.array_equal(np.broadcast_to(mask.dense(grid), seen.shape), seen)
    assert mask.has_blind_rows(grid) == bool((~seen.any(-1)).any())
    assert mask.seen_keys(grid) == int(seen.any(axis=1).sum())
    for sequence, low, high in zip(seen, *mask.rows(grid), strict=False):
        assert np.array_equal(mask.seers(grid, low, high), sequence.sum(axis=0))


@given(patterned_grids(), st.integers(1, 12), st.booleans())
def test_shares_of_cells_equal_means_of_the_whole(drawn, size, by_block):
    text, grid = drawn
    mask = masks.parse(text)
    shares = mask.shares(grid, block=size) if by_block else mask.shares(grid, size)
    whole = mask.dense(grid).mean(axis=0)
    if by_block:
        edges = [[*range(0, length, size), length] for length in whole.shape]
    else:
        edges = [np.linspace(0, length, min(size, length) + 1).astype(int) for length in whole.shape]
    for r, (top, bottom) in enumerate(itertools.pairwise(edges[0])):
        for c, (left, right) in enumerate(itertools.pairwise(edges[1])):
            assert shares[r, c] == pytest.approx(whole[top:bottom, left:right].mean())


@given(patterned_grids())
def test_text_round_trips(drawn):
    mask = masks.parse(drawn[0])
    assert masks.parse(mask.text) == mask
    assert masks.parse(mask.text).text == mask.text


# The table of the mechanisms page, for one head and n = 4096.
AT_4096 = {
    "dilated:4": 4_194_304, "causal+dilated:4": 2_099_200, "strided:128": 579_648, "longformer:512": 2_043_134,
    "bigbird": 2_547_712, "blocksparse:0.25": 4_194_304,
}  # fmt: skip


@pytest.mark.parametrize(("text", "pairs"), AT_4096.items())
def test_pairs_at_4096(text, pairs):
    assert masks.parse(text).pairs(Grid(1, 4096, 4096)) == pairs


@given(st.integers(1, 60), st.integers(1, 12))
def test_closed_forms(n, step):
    grid = Grid(1, n, n)
    q, r = divmod(n, step)
    assert masks.parse(f"dilated:{step}").pairs(grid) == r * (q + 1) ** 2 + (step - r) * q**2
    if n >= step:
        strided = n * step - step * (step - 1) // 2 + step * q * (q - 1) // 2 + r * q
        assert masks.parse(f"strided:{step}").pairs(grid) == strided
    half = step // 2
    if 1 <= half < n:
        longformer = n * (2 * half + 1) - half * (half + 1) + 2 * (n - half - 1)
        assert masks.parse(f"longformer:{2 * half}").pairs(grid) == longformer


@pytest.mark.parametrize(
    ("text", "expected"),
    [("blocksparse:0.25", 0.25), ("causal+blocksparse:0.25", 0.125), ("blocksparse:0.1:64", 0.1), ("bigbird", 0.0049)],
)
def test_counting_is_linear_in_the_blocks(text, expected):
    """128k x 128k: an array of pairs would take 16 GiB."""
    grid = Grid(1, 131072, 131072)
    share = masks.parse(text).pairs(grid) / 131072**2
    assert share == pytest.approx(expected, rel=0.01)


WRONG = {
    "blocksparse:0": (ProblemError, "density=0 lies outside (0, 1]"),
    "blocksparse:1.5": (ProblemError, "density=1.5 lies outside (0, 1]"),
    "blocksparse": (ProblemError, "blocksparse needs density, as in blocksparse:0.25"),
    "longformer:511": (ProblemError, "use an even number"),
    "dilated:0": (ProblemError, "step=0: must be at least 1"),
    "bigbird:window=2": (ProblemError, "use an odd number"),
    "bigbird:glbal=2": (UnknownNameError, "did you mean 'global'?"),
    "dilated:2+strided:4": (ProblemError, "dilated and strided are two patterns: use one of them"),
    "causal+strided:4": (ProblemError, "strided is causal already; use strided alone"),
    "graph": (ProblemError, "a density or a file of edges"),
    "graph:0.1:edges=x": (ProblemError, "a density or a file of edges"),
    "dense": (ProblemError, "dense needs another term, as in dense+causal"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.items())
def test_error_names_the_value(text, expected):
    with pytest.raises(expected[0]) as caught:
        masks.parse(text)
    assert expected[1] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "grid", "message"),
    [
        ("longformer:4:global=9", Grid(1, 8, 8), "9 global tokens are more than the 8 of the sequence"),
        ("bigbird", Grid(1, 8, 9), "needs seq_q == seq_kv, not 8 and 9"),
        ("graph:0.1", Grid(1, 20000, 20000), "a graph has at most 16384"),
        ("graph:edges=none.txt", Grid(1, 8, 8), "cannot be read"),
    ],
)
def test_error_names_the_shape(text, grid, message):
    with pytest.raises(ProblemError, match=message):
        masks.parse(text).check(grid)
