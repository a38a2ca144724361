"""The tensors that a problem is measured and verified on, made on the CPU from a seed.

Every arm makes its own inputs from the same seed, and their digests prove that they are equal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.attention.problem import Dtype, Problem
from attnbench.errors import UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DISTRIBUTIONS = ("normal", "peaked")
PEAKED_DEVIATION = 8.0  # of the logits: exp(8) apart, so that a few keys carry almost all the weight


@dataclass(frozen=True)
class Inputs:
    """What a call is given, contiguous, in the dtype of the problem.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]; dout: [batch, heads, seq_q, head_dim_v], in the dtype of the output.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor


def make(problem: Problem, seed: int, distribution: str = "normal") -> Inputs:
    """Inputs on the CPU. With `lengths`, tokens beyond the end of a sequence are zero."""
    import torch

    if distribution not in DISTRIBUTIONS:
        raise UnknownNameError("input distribution", distribution, DISTRIBUTIONS)
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, seq: int, width: int, dtype: Dtype, spread: float = 1.0) -> Tensor:
        # Drawn in float32 and cast, so that all dtypes round the same numbers.
        numbers = torch.randn(problem.batch, heads, seq, width, generator=generator)
        for b, length in enumerate(problem.lengths):
            numbers[b, :, length:] = 0
        return numbers.mul_(spread).to(torch_dtype(dtype))

    p, dtype = problem, problem.dtype
    return Inputs(
        q=draw(p.heads, p.seq_q, p.head_dim, dtype, _spread_of_q(problem, distribution)),
        k=draw(p.kv_heads, p.seq_kv, p.head_dim, dtype),
        v=draw(p.kv_heads, p.seq_kv, p.head_dim_v, dtype),
        dout=draw(p.heads, p.seq_q, p.head_dim_v, dtype.out),
    )


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The torch dtype in which numbers of that format are stored."""
    import torch

    return {
        Dtype.FP32: torch.float32,
        Dtype.TF32: torch.float32,
        Dtype.FP16: torch.float16,
        Dtype.BF16: torch.bfloat16,
        Dtype.FP8_E4M3: torch.float8_e4m3fn,
    }[dtype]


def digest(inputs: Inputs) -> str:
    """16 hex digits of the bytes, shapes and dtypes, wherever the tensors lie."""
    import torch

    state = hashlib.blake2b(digest_size=8)
    for tensor in (inputs.q, inputs.k, inputs.v, inputs.dout):
        state.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _spread_of_q(problem: Problem, distribution: str) -> float:
    """The standard deviation of q; with k at 1, the logits have |scale| sqrt(head_dim) times as much."""
    per_unit = abs(problem.scale) * problem.head_dim**0.5
    return PEAKED_DEVIATION / per_unit if distribution == "peaked" and per_unit else 1.0
