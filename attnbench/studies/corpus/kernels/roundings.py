"""Right: roundings that the dtype of the problem allows, and more precision than it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.precision import to_tf32
from attnbench.studies.corpus.registry import kernel

FP32 = Problem(seq_q=70, heads=2, head_dim=32, mask="causal")
TF32 = Problem(seq_q=70, heads=2, head_dim=32, dtype=Dtype.TF32, mask="causal")
BF16 = Problem(seq_q=70, heads=2, head_dim=32, dtype=Dtype.BF16, mask="causal")


@kernel("bf16-in-chunks", BF16)
def bf16_in_chunks(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Operands in bf16, sums in fp32."""
    weights, spans = formula.scores(problem, q, k).softmax(-1).bfloat16().float(), formula.tiles(problem.seq_kv, 32)
    return torch.stack([weights[..., span] @ v[..., span, :].float() for span in spans]).sum(0).to(v.dtype)


@kernel("bf16-weights-rounded", BF16)
def bf16_weights_rounded(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Weights before the division, in bf16, for the second product alone."""
    scores = formula.scores(problem, q, k)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return (weights.bfloat16().float() @ v.float() / weights.sum(-1, keepdim=True)).to(v.dtype)


@kernel("bf16-plain", BF16)
def bf16_plain(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The textbook formula on bf16 tensors."""
    logits = (q @ k.mT * problem.scale).masked_fill(~formula.visible(problem), formula.HIDDEN)
    return logits.softmax(-1) @ v


@kernel("bf16-query-scaled", BF16)
def bf16_query_scaled(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The scale is multiplied into a bf16 query."""
    logits = (q * problem.scale).float() @ k.float().mT
    return formula.finish(problem, logits.masked_fill(~formula.visible(problem), formula.HIDDEN), v)


@kernel("tf32-inputs", TF32)
def tf32_inputs(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Operands of both products in tf32."""
    weights = formula.scores(problem, to_tf32(q), to_tf32(k)).softmax(-1)
    return to_tf32(weights) @ to_tf32(v)


@kernel("tf32-three-products", FP32)
def tf32_three_products(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """High and low halves of the operands; the product of the low halves is left out."""

    def product(left: Tensor, right: Tensor) -> Tensor:
        high, other = to_tf32(left), to_tf32(right)
        low, other_low = to_tf32(left - high), to_tf32(right - other)
        return high @ other_low + low @ other + high @ other

    logits = product(q, k.mT) * problem.scale
    return product(logits.masked_fill(~formula.visible(problem), formula.HIDDEN).softmax(-1), v)


@kernel("double-exponential", FP32)
def double_exponential(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Only the softmax is computed in float64."""
    return formula.scores(problem, q, k).double().softmax(-1).float() @ v


@kernel("scale-in-query", FP32)
def scale_in_query(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """(scale q) . k."""
    logits = (q * problem.scale) @ k.mT
    return formula.finish(problem, logits.masked_fill(~formula.visible(problem), formula.HIDDEN), v)


@kernel("scale-in-both", FP32)
def scale_in_both(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """(sqrt(scale) q) . (sqrt(scale) k)."""
    root = problem.scale**0.5
    logits = (q * root) @ (k * root).mT
    return formula.finish(problem, logits.masked_fill(~formula.visible(problem), formula.HIDDEN), v)
