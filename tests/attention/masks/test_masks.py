"""Masks: the grammar, the predicates, and pair counts against brute force."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.attention import masks
from attnbench.attention.masks.padding import Padding
from attnbench.attention.terms import Grid
from attnbench.errors import ProblemError, RangeError, UnknownNameError


@st.composite
def masked_grids(draw):
    """A mask as text, and a shape on which it makes sense."""
    seq_q, seq_kv = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    terms = []
    if draw(st.booleans()):
        terms.append("causal" if draw(st.booleans()) else f"prefix:{draw(st.integers(0, 30))}")
    if draw(st.booleans()):
        left, right = draw(st.integers(0, 30)), draw(st.integers(0, 30))
        terms.append(f"window:{left}" if draw(st.booleans()) else f"window:{left}:{right}")
    if draw(st.booleans()):
        terms.append(f"padding:{draw(st.integers(0, 50)) / 100}")
    if draw(st.booleans()):
        seq_kv = seq_q
        terms.append(f"document:{draw(st.integers(1, seq_q))}")
    return "+".join(draw(st.permutations(terms))) or "none", Grid(draw(st.integers(1, 3)), seq_q, seq_kv)


@given(masked_grids())
def test_pairs_equal_the_count_of_the_predicate(drawn):
    text, grid = drawn
    mask = masks.parse(text)
    b, i, j = np.ogrid[: grid.batch, : grid.seq_q, : grid.seq_kv]
    seen = np.broadcast_to(mask.visible(grid, b, i, j), (grid.batch, grid.seq_q, grid.seq_kv))
    assert mask.pairs(grid) == int(seen.sum())
    assert mask.seen_keys(grid) == int(seen.any(axis=1).sum())


@given(masked_grids())
def test_interval_and_predicate_agree(drawn):
    text, grid = drawn
    mask = masks.parse(text)
    b, i, j = np.ogrid[: grid.batch, : grid.seq_q, : grid.seq_kv]
    seen = np.broadcast_to(mask.visible(grid, b, i, j), (grid.batch, grid.seq_q, grid.seq_kv))
    assert np.array_equal(np.broadcast_to(mask.dense(grid), seen.shape), seen)
    assert mask.has_blind_rows(grid) == bool((~seen.any(-1)).any())


@given(masked_grids())
def test_text_round_trips(drawn):
    text, _ = drawn
    mask = masks.parse(text)
    assert masks.parse(mask.text) == mask
    assert masks.parse(mask.text).text == mask.text


@pytest.mark.parametrize("text", ["window:512:0", "causal+window:512", "window:512+causal", "causal+window:512:9"])
def test_equal_masks_have_one_form(text):
    assert masks.parse(text).text == "causal+window:512"


def test_a_one_sided_window_makes_a_prefix_redundant():
    grid = Grid(1, 9, 9)
    mask = masks.parse("prefix:4+window:2:0")
    assert mask.text == "causal+window:2"
    low, high = masks.parse("prefix:4").rows(grid)
    assert (low == 0).all()
    assert (high >= mask.rows(grid)[1]).all()


# The table of the mechanisms page, for one head and n = 4096.
AT_4096 = {
    "none": 16_777_216,
    "causal": 8_390_656,
    "window:512": 3_935_744,
    "causal+window:512": 1_969_920,
    "prefix:64": 8_392_672,
    "document:8": 2_097_152,
    "causal+document:8": 1_050_624,
}


@pytest.mark.parametrize(("text", "pairs"), AT_4096.items())
def test_pairs_at_4096(text, pairs):
    assert masks.parse(text).pairs(Grid(1, 4096, 4096)) == pairs


def test_padding_lengths_of_the_worked_example():
    padding = masks.parse("padding:0.3").find(Padding)
    assert padding.key_lengths(Grid(4, 512, 512)).tolist() == [474, 397, 320, 243]


def test_causal_is_aligned_to_the_bottom_right():
    dense = masks.parse("causal").dense(Grid(1, 2, 4))[0]
    assert dense.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_window_counts_the_diagonal():
    assert masks.parse("causal+window:2").dense(Grid(1, 4, 4))[0].sum(-1).tolist() == [1, 2, 3, 3]


WRONG = {
    "window": (ProblemError, "window needs left"),
    "windw:3": (UnknownNameError, "'window'"),
    "window:1:2:3": (ProblemError, "takes 2 value(s), not 3"),
    "window:-1": (ProblemError, "negative"),
    "window:lft=3": (UnknownNameError, "'left'"),
    "padding:0.7": (ProblemError, "0..0.5"),
    "padding:x": (ProblemError, "not a number"),
    "causal+prefix:3": (ProblemError, "prefix is causal already; use prefix alone"),
    "causal+causal": (ProblemError, "causal is given twice"),
    "window:x": (RangeError, "not an integer: 'x'"),
    "document:0": (ProblemError, "at least 1"),
    "none+causal": (ProblemError, "none cannot be combined"),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.items())
def test_error_names_the_value(text, expected):
    with pytest.raises(expected[0]) as caught:
        masks.parse(text)
    assert expected[1] in str(caught.value)


def test_a_document_mask_refuses_unequal_lengths():
    with pytest.raises(ProblemError, match="needs seq_q == seq_kv, not 8 and 9"):
        masks.parse("document:2").check(Grid(1, 8, 9))
    with pytest.raises(ProblemError, match="add up to 9, the sequence is 8"):
        masks.parse("document:4-5").check(Grid(1, 8, 8))


@given(st.integers(1, 40), st.data())
def test_closed_forms(n, data):
    grid = Grid(1, n, n)
    left, right = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    assert masks.parse("causal").pairs(grid) == n * (n + 1) // 2
    window = n * (left + right + 1) - left * (left + 1) // 2 - right * (right + 1) // 2
    assert masks.parse(f"window:{left}:{right}").pairs(grid) == window
    assert masks.parse(f"prefix:{left}").pairs(grid) == n * (n + 1) // 2 + left * (left - 1) // 2


def test_every_mask_has_a_file_in_the_folder_which_cites_its_source():
    folder = Path(masks.__file__).parent
    for word, kind in masks.PRIMITIVES.items():
        module = sys.modules[kind.__module__]
        assert module.__file__ == str(folder / f"{word}.py")
        assert "https://" in module.__doc__
        assert kind.summary
        assert masks.parse(kind.example).find(kind) is not None


def test_counting_is_linear_in_the_length():
    # 128k x 128k: as an array it would take 16 GiB.
    assert masks.parse("causal").pairs(Grid(1, 131072, 131072)) == 131072 * 131073 // 2
