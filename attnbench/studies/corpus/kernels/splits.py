"""Splits of the keys that are merged wrongly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.formula import SplitPart
from attnbench.studies.corpus.registry import kernel

PREFIX = 48  # keys of the first part
CHUNK = Problem(seq_q=8, seq_kv=64, heads=2, head_dim=40, mask="causal")
ONE_PART = Problem(seq_q=8, seq_kv=40, heads=2, head_dim=40, mask="causal")


def _two(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> list[SplitPart]:
    """The first 48 keys and the rest, if there is one."""
    scores, values = formula.scores(problem, q, k), formula.expanded(problem, v)
    return formula.parts(scores, values, formula.tiles(problem.seq_kv, PREFIX))


@kernel("merge-base-two", CHUNK, elsewhere=ONE_PART)
def merge_base_two(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The weights are e to the power of a log-sum-exp of base 2."""
    states = [SplitPart(part.out, part.lse / math.log(2)) for part in _two(problem, q, k, v)]
    return formula.returned(problem, formula.merge(states), v.dtype)


@kernel("merge-strides", CHUNK, elsewhere=ONE_PART)
def merge_strides(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Rows of the second part are read with the padded stride of the first."""
    first, *rest = _two(problem, q, k, v)
    padded = problem.head_dim_v + 24
    for number, part in enumerate(rest):
        flat = part.out.flatten()
        starts = torch.arange(flat.numel() // problem.head_dim_v)[:, None] * padded
        read = flat[(starts + torch.arange(problem.head_dim_v)) % flat.numel()]
        rest[number] = part._replace(out=read.view_as(part.out))
    return formula.returned(problem, formula.merge([first, *rest]), v.dtype)


@kernel(
    "merge-empty",
    Problem(seq_q=40, seq_kv=24, heads=2, head_dim=32, mask="causal"),
    elsewhere=Problem(seq_q=32, heads=2, head_dim=32, mask="causal"),
)
def merge_empty(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """-inf is subtracted from -inf where both parts have no key."""
    scores, values = formula.scores(problem, q, k), formula.expanded(problem, v)
    first, second = formula.parts(scores, values, formula.tiles(problem.seq_kv, problem.seq_kv // 2))
    maximum = first.lse.maximum(second.lse)
    weights = [(part.lse - maximum).exp()[..., None] for part in (first, second)]
    out = (first.out * weights[0] + second.out * weights[1]) / (weights[0] + weights[1])
    return out.to(v.dtype)


@kernel("merge-aliased", CHUNK, elsewhere=ONE_PART)
def merge_aliased(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Columns from 32 on take the merged log-sum-exp for that of the first part."""
    first, *rest = _two(problem, q, k, v)
    merged = formula.merge([first, *rest])
    late = formula.merge([first._replace(lse=merged.lse), *rest]) if rest else merged
    return torch.cat([merged.out[..., :32], late.out[..., 32:]], -1).to(v.dtype)
