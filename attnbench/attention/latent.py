"""Attention over a latent cache: out = softmax(q kᵀ) v, where keys and values of a head are products with the cache.

q: [batch, heads, seq_q, nope + rope]; cache: [batch, 1, seq_kv, rank + rope]; out: [batch, heads, seq_q, head_dim_v].
A key is (c W_UK, r) with the first numbers c and the last numbers r of a token; a value is c W_UV. Expanded, they are
computed for every token. Absorbed, (q W_UKᵀ, q of RoPE) attends to the cache itself, whose values are c, and W_UV
follows. The formulas are equal (https://arxiv.org/abs/2405.04434, section 2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from attnbench.attention import fixed_random
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.kv_cache import Latent
from attnbench.attention.problem import Problem

if TYPE_CHECKING:
    from torch import Tensor


class Matrices(NamedTuple):
    """The matrices of some heads."""

    of_keys: Tensor  # [heads, rank, nope], W_UK
    of_values: Tensor  # [heads, rank, head_dim_v], W_UV


def matrices(problem: Problem, heads: range | None = None) -> Matrices:
    """The matrices of those heads or of all, on the CPU in the dtype of the problem, fixed as other weights."""
    import torch

    rank, rope = _cache(problem)
    widths = {"keys": problem.head_dim - rope, "values": problem.head_dim_v}
    of_heads = range(problem.heads) if heads is None else heads
    stacks = (
        torch.stack([fixed_random.projection(f"latent {name} {head}", rank, width).float() for head in of_heads])
        for name, width in widths.items()
    )
    return Matrices(*(stack.to(torch_dtype(problem.dtype)) for stack in stacks))


def matrix_bytes(problem: Problem) -> int:
    """Bytes of the matrices of all heads; 0 without a latent cache."""
    if not problem.kv:
        return 0
    rank, rope = _cache(problem)
    return problem.heads * rank * (problem.head_dim - rope + problem.head_dim_v) * problem.dtype.bytes


def expanded(problem: Problem) -> Problem:
    """The problem of the expanded keys and values."""
    return replace(problem, kv="", kv_heads=problem.heads)


def absorbed(problem: Problem) -> Problem:
    """The problem of the absorbed queries: all heads share the cache, and its output is in the latent space."""
    rank, rope = _cache(problem)
    scale = problem.head_dim**-0.5 if problem.score.scale is None else problem.score.scale
    score = replace(problem.score, scale=scale)
    return replace(problem, kv="", kv_heads=1, head_dim=rank + rope, head_dim_v=rank, score=score)


def product_flops(problem: Problem, tokens: int) -> int:
    """FLOPs of the products of some tokens, queries with outputs or those of the cache, with both matrices."""
    return 2 * matrix_bytes(problem) // problem.dtype.bytes * tokens


def expand(weights: Matrices, cache: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [batch, heads, seq_kv, nope + rope] and values [batch, heads, seq_kv, head_dim_v]."""
    import torch

    heads, rank, _ = weights.of_keys.shape
    shared, rope = cache[:, 0, :, :rank], cache[..., rank:]
    keys, values = (torch.einsum("bsr,hrd->bhsd", shared, matrix) for matrix in weights)
    return torch.cat([keys, rope.expand(-1, heads, -1, -1)], dim=-1), values


def absorb(weights: Matrices, q: Tensor) -> Tensor:
    """Queries of the cache: [batch, heads, seq_q, rank + rope]."""
    import torch

    nope = weights.of_keys.shape[2]
    return torch.cat([torch.einsum("bhqd,hrd->bhqr", q[..., :nope], weights.of_keys), q[..., nope:]], dim=-1)


def project(weights: Matrices, out: Tensor) -> Tensor:
    """The output of each head, from that in the latent space."""
    import torch

    return torch.einsum("bhqr,hrd->bhqd", out, weights.of_values)


def _cache(problem: Problem) -> Latent:
    assert problem.latent, problem
    return problem.latent
