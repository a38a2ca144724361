"""Wrong sinks and log-sum-exps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnbench.attention.choices import Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.formula import HIDDEN, SplitPart
from attnbench.studies.corpus.registry import kernel

PLAIN = Problem(seq_q=32, heads=4, head_dim=32, mask="causal")
SINKS = Problem(seq_q=32, heads=4, head_dim=32, mask="causal", sinks=True)
LSE = Problem(seq_q=32, heads=2, head_dim=32, mask="causal", returns=Returns.LSE)
BLIND = Problem(seq_q=40, seq_kv=24, heads=2, head_dim=32, mask="causal", returns=Returns.LSE)


@kernel("sink-dropped", SINKS, elsewhere=PLAIN)
def sink_dropped(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Plain softmax."""
    return formula.finish(problem, formula.scores(problem, q, k), v)


@kernel("sink-of-row", SINKS, elsewhere=Problem(seq_q=1, seq_kv=40, heads=4, head_dim=32, sinks=True))
def sink_of_row(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Rows of all heads are numbered in one sequence, modulo the heads."""
    rows = torch.arange(problem.heads * problem.seq_q).reshape(problem.heads, problem.seq_q, 1)
    return formula.finish(problem, formula.scores(problem, q, k), v, formula.sinks(problem)[rows % problem.heads, 0, 0])


@kernel(
    "sink-twice",
    Problem(seq_q=4, seq_kv=48, heads=4, head_dim=32, sinks=True),
    elsewhere=Problem(seq_q=4, seq_kv=16, heads=4, head_dim=32, sinks=True),
)
def sink_twice(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The sink enters the first two splits of 16 keys."""
    scores, values, sink = formula.scores(problem, q, k), formula.expanded(problem, v), formula.sinks(problem)
    states = [
        formula.attended(scores[..., span], values[..., span, :], sink if number < 2 else None)
        for number, span in enumerate(formula.tiles(problem.seq_kv, 16))
    ]
    return formula.returned(problem, formula.merge(states), v.dtype)


@kernel("sink-gradient", SINKS, mode="fwd_bwd", elsewhere=PLAIN)
def sink_gradient(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The backward pass recomputes the weights without the sink."""

    def backward(*qkv_dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return formula.gradients(problem, *qkv_dout).of_groups(problem)

    return formula.with_backward(lambda *qkv: formula.right(problem, *qkv), backward)(q, k, v)


def _part(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> SplitPart:
    return formula.attended(formula.scores(problem, q, k), formula.expanded(problem, v))


@kernel("lse-base-two", LSE)
def lse_base_two(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """log2 of the sum."""
    part = _part(problem, q, k, v)
    return formula.returned(problem, part._replace(lse=part.lse / math.log(2)), v.dtype)


@kernel("lse-scaled-maximum", LSE)
def lse_scaled_maximum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The maximum of the scaled logits is scaled again."""
    part, maximum = _part(problem, q, k, v), formula.scores(problem, q, k).amax(-1)
    return formula.returned(problem, part._replace(lse=part.lse - maximum + maximum * problem.scale), v.dtype)


@kernel("lse-plus-infinity", BLIND, elsewhere=LSE)
def lse_plus_infinity(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """+inf for a row without keys."""
    part = _part(problem, q, k, v)
    return formula.returned(problem, part._replace(lse=part.lse.masked_fill(part.lse == HIDDEN, math.inf)), v.dtype)


@kernel("lse-finite", BLIND, elsewhere=LSE)
def lse_finite(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """-50000, scaled, for a row without keys."""
    part = _part(problem, q, k, v)
    return formula.returned(problem, part._replace(lse=part.lse.clamp_min(-5e4 * problem.scale)), v.dtype)


@kernel("lse-wrong-slot", BLIND, elsewhere=LSE)
def lse_wrong_slot(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The -inf of a row without keys goes to the last row of the next head; its own slot stays 0."""
    part = _part(problem, q, k, v)
    blind = part.lse == HIDDEN
    lse = part.lse.masked_fill(blind, 0.0)
    lse[..., -1] = lse[..., -1].masked_fill(blind.any(-1).roll(1, 1), HIDDEN)
    return formula.returned(problem, part._replace(lse=lse), v.dtype)
