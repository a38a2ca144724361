"""Pictures of masks: shades by hand, charts by what they hold, and slips by name."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag

from attnbench import cli
from attnbench.attention import masks
from attnbench.attention.terms import Grid
from attnbench.report.charts import mask as mask_chart
from attnbench.report.charts import rendering
from attnbench.report.charts.figure import Box
from attnbench.report.terminal import pictures


def test_a_small_mask_cell_by_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["viz", "causal", "--seq", "4", "--block", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "██",
        "████",
        "██████",
        "████████",
        "causal, 4 queries over 4 keys",
        "pairs: 10 of 16, 62.5 %",
        "blocks of 2: 25 % empty, 50 % in part, 25 % full",
        "a kernel that skips the empty ones does 1.2 times the work of the pairs",
    ]


def test_shades_tell_empty_part_and_full() -> None:
    assert [pictures.shade(share) for share in (0.0, 1e-6, 0.3, 0.5, 0.999, 1.0)] == [0, 1, 1, 2, 3, 4]


def test_a_batch_of_requests_has_a_block_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """A prefill of 3 tokens, 2 decodes over 2 keys, and a window that hides one key of the prefill."""
    assert cli.invoke(["viz", "--requests", "q3_2q1s2", "--block", "2"]) == 0
    picture = ["██", "████", "██████", "      ████", "          ████"]
    assert capsys.readouterr().out.splitlines() == [
        *picture,
        "causal, 3 requests, 5 queries over 7 keys",
        "pairs: 10 of 13, 76.9 %",
        "blocks of 2: 16.7 % empty, 16.7 % in part, 66.7 % full",
        "a kernel that skips the empty ones does 1.1 times the work of the pairs",
    ]
    assert cli.invoke(["viz", "causal+window:1", "--requests", "q3_2q1s2"]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == [*picture[:2], "  ████", *picture[3:]]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5), st.integers(1, 12))
def test_the_cells_of_a_batch_hold_the_visible_pairs(sizes: list[tuple[int, int]], cells: int) -> None:
    grids = [Grid(1, queries, queries + before) for queries, before in sizes]
    for text in ("causal", "causal+window:2", "causal+dilated:2"):
        mask = masks.parse(text)
        dense = block_diag(*(mask.dense(grid)[0] for grid in grids))
        shares = mask_chart.shares(mask, grids, cells)
        down, right = (masks.edges(length, cells, 0) for length in dense.shape)
        expected = [[dense[a:b, c:d].mean() for c, d in itertools.pairwise(right)] for a, b in itertools.pairwise(down)]
        np.testing.assert_allclose(shares, expected)


def test_rows_that_see_nothing_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["viz", "causal", "--seq-q", "8", "--seq-kv", "4"]) == 0
    assert "some rows see no key: their output is 0" in capsys.readouterr().out


@pytest.mark.parametrize("format_", rendering.FORMATS)
def test_a_picture_in_every_format(tmp_path: Path, format_: str) -> None:
    file = tmp_path / f"mask.{format_}"
    assert cli.invoke(["viz", "longformer:64:2", "--seq", "256", "-o", str(file)]) == 0
    begins = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}[format_]
    assert file.read_bytes().startswith(begins)


def test_the_chart_holds_what_is_visible_and_nothing_else() -> None:
    grid = Grid(1, 64, 32)
    mask = masks.parse("causal+window:3")
    (panel,) = mask_chart.figure(mask, [grid], 16).panels  # has a cell for each pair
    boxes = [mark for mark in panel.marks if isinstance(mark, Box)]
    area = sum((box.x[1] - box.x[0]) * (box.y[1] - box.y[0]) for box in boxes)
    assert area == pytest.approx(mask.pairs(grid))
    assert {box.color for box in boxes} == {"#0072b2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cauzal"], "did you mean 'causal'?"),
        (["causal", "--seq", "0"], "--seq: 0: at least 1"),
        (["causal", "--block", "0"], "--block: 0: at least 1"),
        (["bigbird", "--seq-q", "8", "--seq-kv", "9"], "needs seq_q == seq_kv"),
        (["causal", "-o", "mask.gif"], "gif"),
        (["--requests", "q4s2"], "--requests: requests 'q4s2': 'q4s2': 2 keys are fewer than 4 queries"),
        (["--requests", "q4", "--seq", "9"], "--requests: gives the lengths and the batch: leave out --seq"),
        (["--requests", "2q8", "--weights"], "--weights: of one sequence, not of a batch of requests: use --seq-q"),
        (["tree:0-0", "--requests", "2q1s9"], "--requests 2q1s9: q1s9: mask 'tree:0-0'"),
    ],
)
def test_a_slip_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["viz", *arguments]) == 2
    assert message in capsys.readouterr().err
