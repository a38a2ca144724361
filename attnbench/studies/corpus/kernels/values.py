"""Wrong for some values of the logits only."""

from __future__ import annotations

from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

CAUSAL = Problem(seq_q=48, heads=2, mask="causal")


@kernel("first-tile-maximum", CAUSAL)
def first_tile_maximum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """From the last tile to the first: one without visible keys sets the maximum to 0."""
    scores = formula.scores(problem, q, k)
    maximum = scores.amax(-1, keepdim=True)
    starts_hidden = scores[..., -16:].amax(-1, keepdim=True) == formula.HIDDEN
    weights = (scores - maximum.maximum(maximum.new_zeros(())).where(starts_hidden, maximum)).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1.0)


@kernel("sentinel-maximum", CAUSAL)
def sentinel_maximum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The maximum of the products is at least -50000."""
    raw = formula.products(problem, q, k).masked_fill(~formula.visible(problem), formula.HIDDEN)
    weights = ((raw - raw.amax(-1, keepdim=True).clamp_min(-5e4)) * problem.scale).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.masked_fill(total == 0, 1.0)


@kernel("constant-maximum", CAUSAL)
def constant_maximum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """10 is subtracted from every logit."""
    weights = (formula.scores(problem, q, k) - 10.0).exp()
    return weights @ v / weights.sum(-1, keepdim=True)
