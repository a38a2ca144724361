"""Wrong logits: soft cap, scale, ALiBi."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.choices import Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.registry import kernel

PLAIN = Problem(seq_q=32, heads=2, head_dim=32, mask="causal")
CAPPED = Problem(seq_q=32, heads=2, head_dim=32, mask="causal", score=Score(softcap=5.0))
BIASED = Problem(seq_q=32, heads=4, head_dim=32, mask="causal", score=Score(bias="alibi"))


def _masked(problem: Problem, logits: Tensor, v: Tensor) -> Output:
    return formula.finish(problem, logits.masked_fill(~formula.visible(problem), formula.HIDDEN), v)


def _cap(problem: Problem) -> float:
    return problem.softcap or float("inf")


@kernel("softcap-after-mask", CAPPED, elsewhere=Problem(seq_q=32, heads=2, head_dim=32, score=Score(softcap=5.0)))
def softcap_after_mask(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The soft cap turns -inf into -cap."""
    logits = (formula.products(problem, q, k) * problem.scale).masked_fill(~formula.visible(problem), formula.HIDDEN)
    return formula.finish(problem, _cap(problem) * (logits / _cap(problem)).tanh(), v)


@kernel("softcap-ignored", CAPPED, elsewhere=PLAIN)
def softcap_ignored(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Plain logits."""
    return _masked(problem, formula.products(problem, q, k) * problem.scale, v)


@kernel("softcap-product", CAPPED)
def softcap_product(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The logit instead of the cap is multiplied by the tanh."""
    logits = formula.products(problem, q, k) * problem.scale
    return _masked(problem, logits * (logits / _cap(problem)).tanh(), v)


@kernel("softcap-before-scale", CAPPED)
def softcap_before_scale(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The products are capped, then scaled."""
    return _masked(problem, _cap(problem) * (formula.products(problem, q, k) / _cap(problem)).tanh() * problem.scale, v)


@kernel(
    "scale-of-padded-width", Problem(seq_q=32, heads=2, head_dim=40), elsewhere=Problem(seq_q=32, heads=2, head_dim=64)
)
def scale_of_padded_width(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """1 / sqrt(64), the width that the kernel pads to."""
    return formula.finish(problem, formula.logits(problem, q, k, 64**-0.5), v)


@kernel(
    "scale-ignored", Problem(seq_q=32, heads=2, head_dim=32, mask="causal", score=Score(scale=0.3)), elsewhere=PLAIN
)
def scale_ignored(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """1 / sqrt(head_dim), whatever the caller passes."""
    return _masked(problem, formula.logits(problem, q, k, problem.head_dim**-0.5), v)


@kernel("scale-grows", Problem(seq_q=32, heads=2, head_dim=32), elsewhere=Problem(seq_q=16, heads=2, head_dim=32))
def scale_grows(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Every tile of 16 keys multiplies the scale by log2(e), for exponentials of base 2."""
    tile = torch.arange(problem.seq_kv) // 16
    return _masked(problem, formula.logits(problem, q, k) * formula.LOG2E**tile, v)


def _sloped(problem: Problem, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, distance: Tensor) -> Output:
    logits = formula.products(problem, q, k) * problem.scale
    return _masked(problem, logits - slopes[:, None, None] * distance, v)


def _distance(problem: Problem) -> Tensor:
    rows, keys = formula.places(problem)
    return (rows - keys).abs()


def _powers(problem: Problem, first: int) -> Tensor:
    exponents = torch.arange(first, problem.heads + first) * 8 / problem.heads
    return torch.exp2(-exponents)


@kernel(
    "alibi-geometric",
    Problem(seq_q=32, heads=6, head_dim=32, mask="causal", score=Score(bias="alibi")),
    elsewhere=BIASED,
)
def alibi_geometric(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """2^(-8 h / heads) for any number of heads."""
    return _sloped(problem, q, k, v, _powers(problem, 1), _distance(problem))


@kernel("alibi-first-slope-one", BIASED)
def alibi_first_slope_one(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Exponents start at 0."""
    return _sloped(problem, q, k, v, _powers(problem, 0), _distance(problem))


@kernel(
    "alibi-top-left",
    Problem(seq_q=24, seq_kv=40, heads=4, head_dim=32, score=Score(bias="alibi")),
    elsewhere=Problem(seq_q=32, heads=4, head_dim=32, score=Score(bias="alibi")),
)
def alibi_top_left(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The distance is |i - j|."""
    rows, keys = torch.arange(problem.seq_q)[:, None], torch.arange(problem.seq_kv)
    return _sloped(problem, q, k, v, _powers(problem, 1), (rows - keys).abs())


@kernel(
    "alibi-shifted",
    Problem(seq_q=32, heads=4, head_dim=32, mask="causal", score=Score(bias="alibi"), returns=Returns.LSE),
    elsewhere=BIASED,
)
def alibi_shifted(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The diagonal key has the distance 1."""
    return _sloped(problem, q, k, v, _powers(problem, 1), _distance(problem) + 1)
