"""Attention in plain torch, on any dtype, and the rule by which a kernel is judged against it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from attnbench import kernels
from attnbench.attention.dropout import keep_mask
from attnbench.kernels import Kernel, Tiling

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EVERYTHING = 10**6  # a window that wide hides nothing
NAMES = ("dq", "dk", "dv", "dbias", "dsinks")


class Shape(NamedTuple):
    """Of one problem."""

    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    seq_q: int = 40
    seq_kv: int = 40
    head_dim: int = 16
    head_dim_v: int = 16


def small_tilings(block_q: int = 16, block_kv: int = 16, path: str = "portable", **more: Any) -> dict[Kernel, Tiling]:
    """One tiling for all passes: small, so that a short sequence has many tiles."""
    tiling = Tiling(path=path, block_q=block_q, block_kv=block_kv, warps=4, stages=1, **more)
    return dict.fromkeys((Kernel.FORWARD, Kernel.BACKWARD_KV, Kernel.BACKWARD_Q), tiling)


def inputs(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v."""
    generator = torch.Generator().manual_seed(seed)
    s = shape
    sizes = [(s.heads, s.seq_q, s.head_dim), (s.kv_heads, s.seq_kv, s.head_dim), (s.kv_heads, s.seq_kv, s.head_dim_v)]
    q, k, v = (torch.randn(s.batch, *size, generator=generator).to(dtype) for size in sizes)
    return q, k, v


def normal(*sizes: int, seed: int = 9) -> Tensor:
    """Numbers for biases, sinks and gradients."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def slow(*values: Any) -> Any:
    """Parameters of a test that `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def distances(seq_q: int, seq_kv: int) -> Tensor:
    """Key less diagonal key, [seq_q, seq_kv]."""
    return torch.arange(seq_kv)[None] - (torch.arange(seq_q)[:, None] + seq_kv - seq_q)


def band(seq_q: int, seq_kv: int, left: int = EVERYTHING, right: int = EVERYTHING) -> Tensor:
    """Visible keys, [seq_q, seq_kv]: those from `left` before the diagonal one to `right` behind it."""
    steps = distances(seq_q, seq_kv)
    return (steps >= -left) & (steps <= right)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, *, visible: Tensor,
    scale: float | None = None, softcap: float | None = None, alibi_slopes: Tensor | None = None,
    dropout: float = 0.0, seed: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """out and lse in the dtype of q, K scaled in place of Q; visible: broadcasts to [batch, heads, seq_q, seq_kv]."""
    (batch, heads, seq_q, head_dim), seq_kv, group = q.shape, k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ (k * (head_dim**-0.5 if scale is None else scale)).transpose(2, 3)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if alibi_slopes is not None:
        slopes = alibi_slopes.reshape(-1, heads, 1, 1).to(q.dtype)
        logits = logits - slopes * distances(seq_q, seq_kv).abs().to(q.dtype)
    if bias is not None and bias.ndim == 2:
        bias = bias[:, distances(seq_q, seq_kv) + seq_kv - 1]
    if bias is not None:
        logits = logits + bias.to(q.dtype)
    logits = logits.masked_fill(~visible, -math.inf)
    if sinks is not None:
        column = sinks.to(q.dtype)[None, :, None, None].expand(batch, heads, seq_q, 1)
        logits = torch.cat([logits, column], 3)
    blind = ~(logits > -math.inf).any(3)
    weights = torch.softmax(logits.masked_fill(blind[..., None], 0.0), 3).masked_fill(blind[..., None], 0.0)
    lse = torch.logsumexp(logits.masked_fill(blind[..., None], 0.0), 3).masked_fill(blind, -math.inf)
    weights = weights[..., :seq_kv]
    if dropout:
        index = np.ix_(*(range(size) for size in (batch, heads, seq_q, seq_kv)))
        weights = weights * torch.from_numpy(keep_mask(dropout, seed, *index)) / (1 - dropout)
    return weights.to(v.dtype) @ v, lse


class Found(NamedTuple):
    """Output, log-sum-exp and gradients; those of what is not there are missing."""

    out: Tensor
    lse: Tensor
    gradients: tuple[Tensor, ...]


def differentiate(out: Tensor, lse: Tensor, leaves: list[Tensor], through_lse: bool) -> tuple[Tensor, ...]:
    """Gradients of a random linear function of out, and of lse if asked for."""
    total = (out * normal(*out.shape).to(out.dtype)).sum()
    if through_lse:
        seen = lse.masked_fill(lse == -math.inf, 0.0)
        total = total + (seen * normal(*lse.shape, seed=8).to(lse.dtype)).sum()
    return torch.autograd.grad(total, leaves)


def computed(function: Any, tensors: list[Tensor | None], dtype: torch.dtype | None, through_lse: bool) -> Found:
    """Run `function` of q, k, v, bias and sinks, cast to `dtype` if there is one, forward and backward."""
    given = [None if t is None else (t if dtype is None else t.to(dtype)).detach().requires_grad_() for t in tensors]
    out, lse = function(*given)
    leaves = [tensor for tensor in given if tensor is not None]
    return Found(out.detach(), lse.detach(), differentiate(out, lse, leaves, through_lse))


def assert_right(
    shape: Shape, visible: Tensor, dtype: torch.dtype = torch.float32, bias: Tensor | None = None,
    sinks: Tensor | None = None, through_lse: bool = False, tilings: dict[Kernel, Tiling] | None = None,
    given: tuple[Tensor, Tensor, Tensor] | None = None, scores: dict[str, Any] | None = None, **masks: Any,
) -> None:  # fmt: skip
    """The kernels, forward and backward, against float64. `scores` go to the formula too, `masks` to the kernels."""
    scores = scores or {}
    tensors = [*(given or inputs(shape, dtype)), bias, sinks]

    def kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None) -> Any:
        chosen = small_tilings() if tilings is None else tilings
        return kernels.attention(
            q, k, v, bias=bias, sinks=sinks, return_lse=True, tilings=chosen or None, **scores, **masks
        )

    def formula(*five: Tensor | None) -> Any:
        return attend(*five, visible=visible, **scores)  # type: ignore[arg-type]

    found = computed(kernel, tensors, None, through_lse)
    exact = computed(formula, tensors, torch.float64, through_lse)
    plain = computed(formula, tensors, dtype, through_lse)
    assert found.out.dtype is dtype
    ratio = 3 if scores.get("softcap") else 2
    near("out", found.out, exact.out, plain.out, ratio)
    assert_lse(found.lse, exact.lse, dtype)
    names = [name for name, tensor in zip(NAMES, tensors, strict=True) if tensor is not None]
    for name, *three in zip(names, found.gradients, exact.gradients, plain.gradients, strict=True):
        near(name, *three, ratio)  # type: ignore[arg-type]


def near(name: str, found: Tensor, exact: Tensor, plain: Tensor, ratio: float) -> None:
    """The rule of FlashAttention: `ratio` times the error of the plain formula, and what rounding explains."""
    assert found.shape == exact.shape, name
    assert found.isfinite().all(), name
    dtype = plain.dtype
    stored = exact.to(dtype)  # rounded first: in float64 the next line would show no rounding
    rounding = 2 * (stored + 0.3 - 0.3 - stored).abs().max() + 8 * torch.finfo(dtype).eps * max(1, exact.abs().max())
    # The gradient of a weight of 1 is the difference of two sums in float32, where the formula has an exact 0.
    rounding += 32 * torch.finfo(torch.float32).eps
    error = (found.double() - exact).abs().max()
    assert error <= ratio * (plain.double() - exact).abs().nan_to_num(0.0).max() + rounding, name


def assert_lse(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """-inf exactly where the reference has it."""
    assert torch.equal(found == -math.inf, exact == -math.inf)
    seen = exact > -math.inf
    limit = 1e-5 if dtype is torch.float32 else 1e-3
    torch.testing.assert_close(found.double()[seen], exact[seen], rtol=limit, atol=limit)
