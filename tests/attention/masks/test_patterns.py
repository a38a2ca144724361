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
from tests.attention.masks import definitions

SQUARE = ("longformer", "bigbird", "graph", "document")


@st.composite
def fitted(draw):
    """A pattern that determines the lengths, with its seq_q and seq_kv."""
    word = draw(st.sampled_from(list(definitions.KEYS)))
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
    assert_counted(mask, grid)
    expected = definitions.table(*text.split(":", 1), seq_q, seq_kv)
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
    assert_counted(mask, grid)


def assert_counted(mask, grid):
    """Every count equals that of the predicate."""
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


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("natten:7x7:1x1:shape=8x8", "natten:7:shape=8x8"),
        ("natten:7x9:2:1:8x16", "natten:7x9:2:shape=8x16"),
        ("sta:2x2:tile=4x2:shape=8x8", "sta:2:4x2:8x8"),
    ],
)
def test_equal_numbers_of_axes_are_written_once(text, canonical):
    assert masks.parse(text).text == canonical


# The table of the mechanisms page, for one head and n = 4096.
AT_4096 = {
    "dilated:4": 4_194_304, "causal+dilated:4": 2_099_200, "strided:128": 579_648, "longformer:512": 2_043_134,
    "bigbird": 2_547_712, "blocksparse:0.25": 4_194_304, "blockdiffusion:16": 4_227_072,
    "natten:7:dilation=8": 28_672, "natten:7x9:2:shape=64x64": 258_048, "sta:3:8:shape=64x64": 2_359_296,
}  # fmt: skip


@pytest.mark.parametrize(("text", "pairs"), AT_4096.items())
def test_pairs_at_4096(text, pairs):
    mask, grid = masks.parse(text), Grid(1, 4096, 4096)
    assert mask.pairs(grid) == pairs
    assert mask.seen_keys(grid) == 4096


def test_pairs_of_a_tree_are_its_prefix_and_its_depths():
    assert masks.parse("tree:0-0-1-1").pairs(Grid(2, 4, 104)) == 2 * (4 * 100 + 1 + 2 + 3 + 3)
    forest = masks.parse("tree:0-1-0-1")  # two roots, as where the token before them is in the cache already
    assert forest.pairs(Grid(1, 4, 4)) == 1 + 1 + 2 + 2


def test_even_windows_and_strides_are_those_of_natten():
    """By hand: one token more before the middle, and the third query of each three is the last of a full window."""
    dense = masks.parse("natten:4:3").dense(Grid(1, 7, 7))[0]
    starts = dense.argmax(axis=1)
    assert starts.tolist() == [0, 0, 0, 2, 2, 2, 3]
    assert (dense.sum(axis=1) == 4).all()


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
    [
        ("blocksparse:0.25", 0.25),
        ("causal+blocksparse:0.25", 0.125),
        ("blocksparse:0.1:64", 0.1),
        ("bigbird", 0.0049),
        ("blockdiffusion:4", 0.25),
        ("natten:63:shape=256x512", 63**2 / 131072),
        ("sta:3:4", 12 / 131072),
    ],
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
    "tree": (ProblemError, "tree needs parents, as in tree:0-0-1-1"),
    "tree:0-2-1": (ProblemError, "token 1 has the later token 2 as parent, and the parents form a cycle; list parents"),
    "tree:0-2-0": (ProblemError, "token 1 has the later token 2 as parent; list parents before their children, and a"),
    "tree:0-9": (ProblemError, "token 1 has parent 9, but the tokens are 0 to 1"),
    "tree:0x0": (ProblemError, "'0x0': not whole numbers joined by '-', as in tree:0-0-1-1"),
    "tree:" + "0-" * 4096 + "0": (ProblemError, "4097 draft tokens; a tree has at most 4096"),
    "causal+tree:0-0": (ProblemError, "tree is causal already; use tree alone"),
    "blockdiffusion:0": (ProblemError, "block=0: must be at least 1"),
    "natten:3x0:shape=8x8": (ProblemError, "kernel=3x0: must be at least 1"),
    "natten:3-3:shape=8x8": (ProblemError, "'3-3': not whole numbers joined by 'x', as in natten:7:shape=32x32"),
    "natten:7x7": (ProblemError, "kernel=7x7 has 2 numbers, but the sequence is one axis: add a shape, as in shape"),
    "natten:7:1x2:shape=8x8x8": (ProblemError, "stride=1x2 has 2 numbers, but shape=8x8x8 has 3 axes"),
    "natten:7:8": (ProblemError, "stride=8 is above kernel=7: use a stride up to it"),
    "natten:7:shape=64": (ProblemError, "shape=64 is one axis, the sequence itself: leave it out"),
    "sta:3": (ProblemError, "sta needs tile, as in sta:3:8:shape=64x64"),
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
        ("tree:0-0", Grid(1, 3, 8), "2 draft tokens, but seq_q is 3; use seq_q=2"),
        ("tree:0-0", Grid(1, 2, 1), "seq_kv=1 has no key for each draft token; use at least 2"),
        ("blockdiffusion:4", Grid(1, 12, 12), "12 tokens are not two halves of whole blocks of 4; use a multiple of 8"),
        (
            "natten:3:shape=4x4",
            Grid(1, 15, 15),
            "shape=4x4 is 16 tokens, but the sequence has 15; use seq=16 or another",
        ),
        ("natten:3:1:3", Grid(1, 8, 8), "3 keys with dilation 3 span 9 tokens, an axis has 8; use a smaller kernel"),
        ("sta:1:3", Grid(1, 8, 8), "tiles of 3 do not divide an axis of 8 tokens; use a divisor"),
        ("sta:3:4", Grid(1, 8, 8), "a window of 3 tiles, but an axis of 8 tokens has 2 tiles of 4; use fewer"),
        ("sta:1:2", Grid(1, 8, 9), "needs seq_q == seq_kv, not 8 and 9"),
    ],
)
def test_error_names_the_shape(text, grid, message):
    with pytest.raises(ProblemError, match=message):
        masks.parse(text).check(grid)
