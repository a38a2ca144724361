"""Too little precision where it matters."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.choices import Dtype, Returns
from attnbench.attention.problem import Problem
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.formula import SplitPart
from attnbench.studies.corpus.registry import kernel

FP32 = Problem(seq_q=64, heads=2, head_dim=32, mask="causal")


def to_tf32(tensor: Tensor) -> Tensor:
    """Rounded to 10 bits of mantissa."""
    bits = tensor.float().contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _weights(problem: Problem, q: Tensor, k: Tensor) -> Tensor:
    """Not normalised: at most 1."""
    scores = formula.scores(problem, q, k)
    return (scores - scores.amax(-1, keepdim=True)).exp()


@kernel("fp16-row-sum", Problem(seq_q=4, seq_kv=4096, heads=1, head_dim=16, dtype=Dtype.FP16))
def fp16_row_sum(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The sum of 4096 weights stops growing."""
    weights = _weights(problem, q, k).half()
    total = torch.zeros_like(weights[..., :1])
    for column in weights.split(1, -1):
        total = total + column
    return (weights.float() @ v.float() / total.float()).to(v.dtype)


@kernel("bf16-accumulator", Problem(seq_q=4, seq_kv=1024, heads=1, head_dim=16, dtype=Dtype.BF16))
def bf16_accumulator(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """One key after the other is added to a bf16 output."""
    weights = formula.scores(problem, q, k).softmax(-1).bfloat16()
    out = torch.zeros_like(q[..., : problem.head_dim_v])
    for column, value in zip(weights.split(1, -1), v.split(1, -2), strict=True):
        out = out + column * value
    return out


@kernel("tf32-products", FP32)
def tf32_products(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Operands are rounded to tf32 in a problem of fp32."""
    scores = formula.scores(problem, to_tf32(q), to_tf32(k))
    return to_tf32(scores.softmax(-1)) @ to_tf32(v)


@kernel("cubic-exponential", FP32)
def cubic_exponential(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """2^fraction by a polynomial of degree 3, in a problem of fp32."""
    scores = formula.scores(problem, q, k)
    powers = ((scores - scores.amax(-1, keepdim=True)) * formula.LOG2E).clamp_min(-126.0)
    whole = powers.floor()
    rest = powers - whole
    cubic = 1.0 + rest * (0.695146 + rest * (0.227564 + rest * 0.0771191))
    weights = (torch.exp2(whole) * cubic).masked_fill(scores == formula.HIDDEN, 0.0)
    return weights @ v / weights.sum(-1, keepdim=True)


@kernel("fp16-statistics", Problem(seq_q=2, seq_kv=2**16, heads=1, head_dim=16, dtype=Dtype.FP16, returns=Returns.LSE))
def fp16_statistics(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Maximum and sum are rounded to fp16 after every 16 keys, so that the sum stops growing."""
    part: SplitPart = formula.online(
        formula.scores(problem, q, k), v, formula.tiles(problem.seq_kv, 16), lambda state: state.half().float()
    )
    return formula.returned(problem, part, v.dtype)


@kernel("fp8-weights-underflow", Problem(seq_q=16, seq_kv=1024, heads=2, head_dim=32, dtype=Dtype.BF16))
def fp8_weights_underflow(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The sum counts weights that are 0 in fp8."""
    weights = _weights(problem, q, k)
    narrow = weights.to(torch.float8_e4m3fn).float()
    return (narrow @ v.float() / weights.sum(-1, keepdim=True)).to(v.dtype)
