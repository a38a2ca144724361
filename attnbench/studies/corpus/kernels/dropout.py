"""Wrong dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

DROPPED = Problem(seq_q=64, heads=4, head_dim=32, mask="causal", dropout=0.3)
PLAIN = Problem(seq_q=64, heads=4, head_dim=32, mask="causal")


def drawn(problem: Problem, weights: Tensor) -> Tensor:
    """1 where a weight is kept, else 0, drawn in each call."""
    return torch.rand_like(weights).ge(problem.dropout).float()


@kernel("dropout-gradient-scale", DROPPED, mode="fwd_bwd", elsewhere=PLAIN)
def dropout_gradient_scale(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The backward pass multiplies kept weights by the rate."""
    mask = drawn(problem, formula.logits(problem, q, k))
    wrong = problem.dropout or 1.0

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = formula.scores(problem, q, k).softmax(-1) * mask / (1 - problem.dropout)
        return (weights @ formula.expanded(problem, v).float()).to(v.dtype)

    def backward(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, values = formula.scores(problem, q, k).softmax(-1), formula.expanded(problem, v).float()
        dweights = dout.float() @ values.mT * mask * wrong
        dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdim=True)) * problem.scale
        keys = formula.expanded(problem, k).float()
        of_heads = formula.HeadGradients(
            dlogits @ keys, dlogits.mT @ q.float(), (weights * mask * wrong).mT @ dout.float()
        )
        return of_heads.of_groups(problem)

    return formula.with_backward(forward, backward)(q, k, v)


@kernel("dropout-before-sum", DROPPED, elsewhere=PLAIN)
def dropout_before_sum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The weights that are left add up to 1."""
    scores = formula.scores(problem, q, k)
    scores = scores.masked_fill(drawn(problem, scores) == 0, formula.HIDDEN)
    return formula.finish(problem, scores, v)


@kernel("dropout-off-later", DROPPED, elsewhere=PLAIN)
def dropout_off_later(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The rate is 0 from the third call on."""
    formula.KEPT["calls"] = calls = formula.KEPT.get("calls", 0) + 1
    weights = formula.scores(problem, q, k).softmax(-1)
    if calls < 3:
        weights = weights * drawn(problem, weights) / (1 - problem.dropout)
    return (weights @ formula.expanded(problem, v).float()).to(v.dtype)
