"""The steps of attention that the kernels of the corpus are made of, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnbench.attention.biases import Constant
from attnbench.attention.choices import Returns
from attnbench.attention.logits import sink_logits
from attnbench.attention.problem import Problem
from attnbench.backends import Output

HIDDEN = -math.inf
LOG2E = 1 / math.log(2)

# What kernels keep between calls, by name; cleared before each judgement.
KEPT: dict[object, Any] = {}


class SplitPart(NamedTuple):
    """Attention over some of the keys: out [..., rows, width] and lse [..., rows], float32."""

    out: Tensor
    lse: Tensor


def expanded(problem: Problem, tensor: Tensor) -> Tensor:
    """Keys or values repeated for the query heads that share them."""
    return tensor.repeat_interleave(problem.heads // problem.kv_heads, 1)


def places(problem: Problem) -> tuple[Tensor, Tensor]:
    """The number of the diagonal key of each row [seq_q, 1], and of each key [1, seq_kv]."""
    rows = torch.arange(problem.seq_q)[:, None] + problem.seq_kv - problem.seq_q
    return rows, torch.arange(problem.seq_kv)[None]


def visible(problem: Problem) -> Tensor:
    """The mask, True where visible: [batch or 1, 1, seq_q, seq_kv]."""
    return torch.from_numpy(problem.visible()).unsqueeze(1)


def products(problem: Problem, q: Tensor, k: Tensor) -> Tensor:
    """q . k: [batch, heads, seq_q, seq_kv]."""
    return q.float() @ expanded(problem, k).float().mT


def finished_logits(problem: Problem, logits: Tensor) -> Tensor:
    """Scaled products with the soft cap and the bias."""
    if cap := problem.softcap:
        logits = cap * (logits / cap).tanh()
    if isinstance(bias := problem.bias, Constant):
        logits = logits + bias.dense_tensor(problem).float()
    return logits


def logits(problem: Problem, q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Everything before the mask."""
    return finished_logits(problem, products(problem, q, k) * (problem.scale if scale is None else scale))


def scores(problem: Problem, q: Tensor, k: Tensor) -> Tensor:
    """Logits with -inf where a key is hidden."""
    return logits(problem, q, k).masked_fill(~visible(problem), HIDDEN)


def sinks(problem: Problem) -> Tensor:
    """[heads, 1, 1]."""
    return sink_logits(problem).float()[:, None, None]


def attended(scores: Tensor, values: Tensor, sink: Tensor | None = None) -> SplitPart:
    """Softmax of the scores times the values; a row without visible keys has output 0 and log-sum-exp -inf."""
    maximum = scores.amax(-1, keepdim=True)
    if sink is not None:
        maximum = maximum.maximum(sink)
    maximum = maximum.masked_fill(maximum == HIDDEN, 0.0)
    weights = (scores - maximum).exp()
    total = weights.sum(-1, keepdim=True)
    if sink is not None:
        total = total + (sink - maximum).exp()
    out = (weights @ values.float()) / total.masked_fill(total == 0, 1.0)
    return SplitPart(out, (maximum + total.log())[..., 0])


def returned(problem: Problem, part: SplitPart, dtype: torch.dtype) -> Output:
    """The result of a kernel: out, or out and lse."""
    out = part.out.to(dtype)
    return (out, part.lse.contiguous()) if problem.returns is Returns.LSE else out


def finish(problem: Problem, scores: Tensor, v: Tensor, sink: Tensor | None = None) -> Output:
    """The result from masked logits and the values of key heads."""
    return returned(problem, attended(scores, expanded(problem, v), sink), v.dtype)


def right(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Output:
    """Correct attention."""
    return finish(problem, scores(problem, q, k), v, sinks(problem) if problem.sinks else None)


def tiles(keys: int, size: int) -> list[slice]:
    """Slices of that size; the last may be shorter."""
    return [slice(start, min(start + size, keys)) for start in range(0, keys, size)]


def parts(scores: Tensor, values: Tensor, spans: Iterable[slice]) -> list[SplitPart]:
    """Attention over each span of the keys."""
    return [attended(scores[..., span], values[..., span, :]) for span in spans]


def merge(states: Sequence[SplitPart], base: float = math.e) -> SplitPart:
    """Merge parts by their log-sum-exp, of that base."""
    lse = torch.stack([part.lse for part in states])
    maximum = lse.amax(0)
    maximum = maximum.masked_fill(maximum == HIDDEN, 0.0)
    weights = base ** (lse - maximum)
    total = weights.sum(0)
    out = torch.stack([part.out for part in states]).mul(weights[..., None]).sum(0)
    return SplitPart(out / total.masked_fill(total == 0, 1.0)[..., None], maximum + total.log() / math.log(base))


def online(
    scores: Tensor, values: Tensor, spans: Iterable[slice], rounded: Callable[[Tensor], Tensor] = lambda state: state
) -> SplitPart:
    """Online softmax over the spans; `rounded` is applied to the statistics that are kept."""
    maximum = scores.new_full((*scores.shape[:-1], 1), HIDDEN)
    total, out = torch.zeros_like(maximum), scores.new_zeros(*scores.shape[:-1], values.shape[-1])
    for span in spans:
        above = rounded(maximum.maximum(scores[..., span].amax(-1, keepdim=True)))
        safe = above.masked_fill(above == HIDDEN, 0.0)
        factor, weights = (maximum - safe).exp(), (scores[..., span] - safe).exp()
        total = rounded(total * factor + weights.sum(-1, keepdim=True))
        out, maximum = out * factor + weights @ values[..., span, :].float(), above
    lse = maximum.masked_fill(maximum == HIDDEN, 0.0) + total.log()
    return SplitPart(out / total.masked_fill(total == 0, 1.0), lse[..., 0])


class HeadGradients(NamedTuple):
    """dq, dk and dv of every query head, float32."""

    dq: Tensor
    dk: Tensor
    dv: Tensor

    def of_groups(self, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        """dk and dv summed over the query heads that share a key head."""
        sharing = problem.heads // problem.kv_heads
        dk, dv = (tensor.unflatten(1, (-1, sharing)).sum(2) for tensor in self[1:])
        return self.dq, dk, dv


def gradients(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, sink: Tensor | None = None
) -> HeadGradients:
    """The backward pass of a fused kernel: weights recomputed from the log-sum-exp."""
    masked = scores(problem, q, k)
    keys, values, douts = expanded(problem, k).float(), expanded(problem, v).float(), dout.float()
    lse = attended(masked, values, sink).lse[..., None]
    weights = (masked - lse.masked_fill(lse == HIDDEN, 0.0)).exp()
    dweights = douts @ values.mT
    dlogits = weights * (dweights - (dweights * weights).sum(-1, keepdim=True)) * problem.scale
    return HeadGradients(dlogits @ keys, dlogits.mT @ q.float(), weights.mT @ douts)


def with_backward(
    forward: Callable[..., Output], backward: Callable[..., Sequence[Tensor]]
) -> Callable[[Tensor, Tensor, Tensor], Output]:
    """A differentiable function: forward(q, k, v) -> out, backward(q, k, v, dout) -> dq, dk, dv in any dtype."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *qkv: Tensor) -> Output:
            ctx.save_for_backward(*qkv)
            return forward(*qkv)

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
            computed = backward(*ctx.saved_tensors, dout)
            return tuple(each.to(dout.dtype) for each in computed)

    applied: Callable[[Tensor, Tensor, Tensor], Output] = Fused.apply
    return applied
