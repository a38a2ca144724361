"""Wrong masks."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

SQUARE = Problem(seq_q=32, heads=2, head_dim=32, mask="causal")
LONGER_KEYS = Problem(seq_q=24, seq_kv=40, heads=2, head_dim=32, mask="causal")
BLIND = Problem(seq_q=40, seq_kv=24, heads=2, head_dim=32, mask="causal")


def _masked(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, value: float = formula.HIDDEN
) -> Output:
    return formula.finish(problem, formula.logits(problem, q, k).masked_fill(~visible, value), v)


@kernel("causal-top-left", LONGER_KEYS, elsewhere=SQUARE)
def causal_top_left(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Row i sees keys up to i."""
    rows, keys = torch.arange(problem.seq_q)[:, None], torch.arange(problem.seq_kv)
    return _masked(problem, q, k, v, keys <= rows)


@kernel("blind-rows-average", BLIND, elsewhere=SQUARE)
def blind_rows_average(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Hidden logits are the least finite number, so a row of them has equal weights."""
    return _masked(problem, q, k, v, formula.visible(problem), torch.finfo(torch.float32).min)


@kernel("prefix-one-short", Problem(seq_q=32, heads=2, head_dim=32, mask="prefix:9"))
def prefix_one_short(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The last key of the prefix is hidden from the rows before it."""
    rows, keys = formula.places(problem)
    return _masked(problem, q, k, v, (keys < 8) | (keys <= rows))


@kernel(
    "padding-ignored",
    Problem(seq_q=32, batch=2, heads=2, head_dim=32, mask="padding:0.3"),
    elsewhere=Problem(seq_q=32, batch=2, heads=2, head_dim=32),
)
def padding_ignored(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Every row sees every key."""
    return formula.finish(problem, formula.logits(problem, q, k), v)


@kernel(
    "ragged-first-length",
    Problem(seq_q=33, batch=3, heads=2, head_dim=32, mask="padding:0.3"),
    elsewhere=Problem(seq_q=33, heads=2, head_dim=32, mask="padding:0.3"),
)
def ragged_first_length(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Keys up to the length of the first sequence are visible in all."""
    return _masked(problem, q, k, v, formula.visible(problem)[:1])


@kernel("prefill-without-cache", Problem(seq_q=16, seq_kv=48, heads=2, head_dim=32, mask="causal"), elsewhere=SQUARE)
def prefill_without_cache(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Keys before those of the chunk are hidden."""
    keys = torch.arange(problem.seq_kv)
    return _masked(problem, q, k, v, formula.visible(problem) & (keys >= problem.seq_kv - problem.seq_q))


@kernel("finite-mask-value", Problem(seq_q=32, heads=2, mask="causal"))
def finite_mask_value(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Hidden logits are -10000."""
    return _masked(problem, q, k, v, formula.visible(problem), -10000.0)
