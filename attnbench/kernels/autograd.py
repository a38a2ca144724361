"""The kernels as one differentiable function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.kernels.gradients import Saved, backward_pass
from attnbench.kernels.launch import Terms, forward_pass


class Attention(torch.autograd.Function):
    """(out, lse) of q, k, v, bias and sinks. Gradients are equal bit for bit from run to run."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, terms: Terms,
        facts: dict[str, Any] | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The launch, and what the backward pass needs of it."""
        out, lse, found = forward_pass(q, k, v, bias, sinks, terms, with_lse=True)
        assert lse is not None
        ctx.save_for_backward(q, k, v, bias, sinks, out, lse)
        ctx.terms, ctx.facts = terms, facts
        if facts is not None:
            facts.update(found)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all five tensors; those of the sinks are a sum over rows, -sum(exp(sink - lse) delta)."""
        q, k, v, bias, sinks, out, lse = ctx.saved_tensors
        dout = dout if dout.stride(3) == 1 else dout.contiguous()
        delta = lse.new_empty(lse.shape)
        saved = Saved(q, k, v, bias, out, lse, dout, delta)
        dlse = None if dlse is None else dlse.contiguous()
        dq, dk, dv, dbias, facts = backward_pass(saved, dlse, ctx.terms, with_bias=ctx.needs_input_grad[3])
        dsinks = None
        if sinks is not None and ctx.needs_input_grad[4]:
            weight = torch.exp(sinks.float()[None, :, None] - lse)
            dsinks = -(weight * delta).sum((0, 2)).to(sinks.dtype)
        if ctx.facts is not None:
            ctx.facts.update(facts)
        return dq, dk, dv, dbias, dsinks, None, None
