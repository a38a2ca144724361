"""Windows that are one key off, or in the wrong place."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

CAUSAL = Problem(seq_q=48, heads=2, head_dim=32, mask="causal+window:8")


def _within(problem: Problem, q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor) -> Output:
    keys = formula.places(problem)[1]
    hidden = (keys < first) | (keys > last)
    return formula.finish(problem, formula.logits(problem, q, k).masked_fill(hidden, formula.HIDDEN), v)


def _bounds(problem: Problem) -> tuple[int, int]:
    window = problem.window
    assert window
    return window[0], 0 if problem.causal else window[1]


@kernel("window-one-more", CAUSAL)
def window_one_more(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """One key too many on the left."""
    rows, (left, right) = formula.places(problem)[0], _bounds(problem)
    return _within(problem, q, k, v, rows - left - 1, rows + right)


@kernel("window-right-short", Problem(seq_q=48, heads=2, head_dim=32, mask="window:6:4"))
def window_right_short(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """One key too few on the right."""
    rows, (left, right) = formula.places(problem)[0], _bounds(problem)
    return _within(problem, q, k, v, rows - left, rows + right - 1)


@kernel("window-top-left", Problem(seq_q=24, seq_kv=40, heads=2, head_dim=32, mask="causal+window:8"), elsewhere=CAUSAL)
def window_top_left(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The left bound is that of a square problem."""
    rows, (left, right) = formula.places(problem)[0], _bounds(problem)
    return _within(problem, q, k, v, torch.arange(problem.seq_q)[:, None] - left, rows + right)


@kernel(
    "window-of-last-row",
    Problem(seq_q=5, seq_kv=64, heads=4, kv_heads=2, head_dim=32, mask="causal+window:20"),
    elsewhere=Problem(seq_q=1, seq_kv=64, heads=4, kv_heads=2, head_dim=32, mask="causal+window:20"),
)
def window_of_last_row(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The left bound of the last row holds for all rows."""
    rows, (left, right) = formula.places(problem)[0], _bounds(problem)
    return _within(problem, q, k, v, rows[-1:] - left, rows + right)
