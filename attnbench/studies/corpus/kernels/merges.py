"""Right: keys in parts that are merged, and pages."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnbench.attention.choices import Dtype, Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.formula import SplitPart
from attnbench.studies.corpus.kernels.pages import read
from attnbench.studies.corpus.registry import kernel

DECODE = Problem(seq_q=4, seq_kv=203, heads=4, kv_heads=2, head_dim=32, mask="causal", returns=Returns.LSE)
HALF = Problem(
    seq_q=4, seq_kv=203, heads=4, kv_heads=2, head_dim=32, dtype=Dtype.BF16, mask="causal", returns=Returns.LSE
)
BLIND = Problem(seq_q=40, seq_kv=24, heads=2, head_dim=32, mask="causal", returns=Returns.LSE)


def _parts(problem: Problem, q: Tensor, k: Tensor, v: Tensor, ends: list[int]) -> list[SplitPart]:
    spans = [slice(start, stop) for start, stop in zip([0, *ends], [*ends, problem.seq_kv], strict=True)]
    return formula.parts(formula.scores(problem, q, k), formula.expanded(problem, v), spans)


@kernel("split-two", DECODE)
def split_two(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Halves."""
    parts = _parts(problem, q, k, v, [problem.seq_kv // 2])
    return formula.returned(problem, formula.merge(parts), v.dtype)


@kernel("split-seven", HALF)
def split_seven(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Parts from 1 key to 96."""
    parts = _parts(problem, q, k, v, [1, 4, 20, 52, 148, 199])
    return formula.returned(problem, formula.merge(parts), v.dtype)


@kernel("split-base-two", DECODE)
def split_base_two(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """log2 and 2^x within, the natural logarithm outside."""
    parts = [SplitPart(part.out, part.lse * formula.LOG2E) for part in _parts(problem, q, k, v, [64, 128, 192])]
    merged = formula.merge(parts, base=2.0)
    return formula.returned(problem, SplitPart(merged.out, merged.lse * math.log(2)), v.dtype)


@kernel("split-empty", BLIND)
def split_empty(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Parts that no row sees, and rows that see no part."""
    scores, values = formula.scores(problem, q, k), formula.expanded(problem, v)
    parts = formula.parts(scores, values, formula.tiles(problem.seq_kv, 16))
    nothing = SplitPart(torch.zeros_like(parts[0].out), torch.full_like(parts[0].lse, formula.HIDDEN))
    return formula.returned(problem, formula.merge([nothing, *parts, nothing]), v.dtype)


@kernel("cascade", HALF)
def cascade(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """A prefix without a mask, and the rest with one."""
    prefix = problem.seq_kv - problem.seq_q
    logits, values = formula.logits(problem, q, k), formula.expanded(problem, v)
    shared = formula.attended(logits[..., :prefix], values[..., :prefix, :])
    rest = formula.attended(formula.scores(problem, q, k)[..., prefix:], values[..., prefix:, :])
    return formula.returned(problem, formula.merge([shared, rest]), v.dtype)


@kernel("fp16-partials-rounded", Problem(seq_q=4, seq_kv=203, heads=2, head_dim=32, dtype=Dtype.FP16, mask="causal"))
def fp16_partials_rounded(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Partial outputs in the dtype of the output, log-sum-exps in fp32."""
    parts = [SplitPart(part.out.half().float(), part.lse) for part in _parts(problem, q, k, v, [50, 100, 150])]
    return formula.returned(problem, formula.merge(parts), v.dtype)


@kernel(
    "paged-online",
    Problem(seq_q=1, seq_kv=60, batch=2, heads=4, kv_heads=2, head_dim=32, page_size=16, dtype=Dtype.BF16),
)
def paged_online(q: Tensor, k: Tensor, v: Tensor, problem: Problem, table: Tensor) -> Output:
    """One page after the other."""
    keys, values = (read(tensor, table, problem.seq_kv) for tensor in (k, v))
    spans = formula.tiles(problem.seq_kv, problem.page_size)
    part = formula.online(formula.logits(problem, q, keys), formula.expanded(problem, values), spans)
    return formula.returned(problem, part, v.dtype)
