"""Right: other formulas for the softmax, masks, outputs and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import Output
from attnbench.studies.corpus.kernels import formula
from attnbench.studies.corpus.kernels.dropout import drawn
from attnbench.studies.corpus.registry import kernel

CAUSAL = Problem(seq_q=70, heads=2, head_dim=32, mask="causal")
BLIND = Problem(seq_q=70, seq_kv=50, heads=2, head_dim=32, mask="causal")
GROUPED = Problem(seq_q=40, heads=4, kv_heads=2, head_dim=32, mask="causal")


@kernel("base-two", CAUSAL)
def base_two(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """log2(e) is part of the scale."""
    logits = formula.products(problem, q, k) * (problem.scale * formula.LOG2E)
    scores = logits.masked_fill(~formula.visible(problem), formula.HIDDEN)
    weights = torch.exp2(scores - scores.amax(-1, keepdim=True))
    return weights @ v / weights.sum(-1, keepdim=True)


@kernel("reciprocal", CAUSAL)
def reciprocal(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """1 / sum is rounded, then multiplied."""
    scores = formula.scores(problem, q, k)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ v * weights.sum(-1, keepdim=True).reciprocal()


@kernel("weights-by-lse", CAUSAL)
def weights_by_lse(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """As a backward pass computes them."""
    scores = formula.scores(problem, q, k)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


@kernel("finite-mask-zeroed", BLIND)
def finite_mask_zeroed(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """No infinity anywhere; rows without keys have weights of 0."""
    seen = formula.visible(problem)
    logits = formula.logits(problem, q, k).masked_fill(~seen, torch.finfo(torch.float32).min)
    return (logits.softmax(-1) * seen) @ v


@kernel("output-strided", CAUSAL)
def output_strided(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Memory is [batch, seq, heads, head_dim]."""
    out = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)
    return out.copy_(formula.attended(formula.scores(problem, q, k), v).out)


@kernel("token-major", CAUSAL, layout="bshd")
def token_major(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Heads are the third dimension of all tensors."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return formula.attended(formula.scores(problem, q, k), v).out.transpose(1, 2)


@kernel("backward-recomputed", GROUPED, mode="fwd_bwd")
def backward_recomputed(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """As flash-attention does."""

    def backward(*qkv_dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return formula.gradients(problem, *qkv_dout).of_groups(problem)

    return formula.with_backward(lambda *qkv: formula.right(problem, *qkv), backward)(q, k, v)


def _by_keys(
    problem: Problem, dtype: torch.dtype, q: Tensor, k: Tensor, v: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by chunks of 16 keys, from the last; operands of every product are rounded to the dtype."""
    scores, keys, values = formula.scores(problem, q, k), formula.expanded(problem, k), formula.expanded(problem, v)
    part, douts = formula.attended(scores, values), dout.float()
    delta = (part.out * douts).sum(-1, keepdim=True)
    dq = torch.zeros_like(q, dtype=torch.float32)
    dk: list[Tensor] = []
    dv: list[Tensor] = []
    for span in formula.tiles(problem.seq_kv, 16)[::-1]:
        weights = (scores[..., span] - part.lse[..., None]).exp()
        dlogits = weights * (douts @ values[..., span, :].float().mT - delta)
        narrow = dlogits.to(dtype).float()
        dq = dq + narrow @ keys[..., span, :].float() * problem.scale
        dk.insert(0, narrow.mT @ q.float() * problem.scale)
        dv.insert(0, weights.to(dtype).float().mT @ douts)
    return formula.HeadGradients(dq, torch.cat(dk, 2), torch.cat(dv, 2)).of_groups(problem)


@kernel("backward-by-keys", GROUPED, mode="fwd_bwd")
def backward_by_keys(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """dq is a sum over chunks of keys, as atomic additions make it."""
    return formula.with_backward(
        lambda *qkv: formula.right(problem, *qkv), lambda *qkv_dout: _by_keys(problem, torch.float32, *qkv_dout)
    )(q, k, v)


@kernel(
    "backward-bf16",
    Problem(seq_q=40, heads=4, kv_heads=2, head_dim=32, dtype=Dtype.BF16, mask="causal"),
    mode="fwd_bwd",
)
def backward_bf16(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Weights and their gradients in bf16 for tensor cores, sums in fp32."""
    return formula.with_backward(
        lambda *qkv: formula.right(problem, *qkv), lambda *qkv_dout: _by_keys(problem, torch.bfloat16, *qkv_dout)
    )(q, k, v)


@kernel("dropout-after-product", Problem(seq_q=64, heads=4, head_dim=32, mask="causal", dropout=0.3))
def dropout_after_product(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Weights are only set to 0."""
    weights = formula.scores(problem, q, k).softmax(-1)
    return weights * drawn(problem, weights) @ v / (1 - problem.dropout)


@kernel("softcap-by-exponential", Problem(seq_q=70, heads=2, head_dim=32, mask="causal", score=Score(softcap=5.0)))
def softcap_by_exponential(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """Without a tanh."""
    cap = problem.softcap or 1.0
    logits = cap * (1 - 2 / ((2 * formula.products(problem, q, k) * problem.scale / cap).exp() + 1))
    return formula.finish(problem, logits.masked_fill(~formula.visible(problem), formula.HIDDEN), v)


@kernel("sink-as-key", Problem(seq_q=40, heads=4, kv_heads=2, head_dim=32, dtype=Dtype.BF16, mask="causal", sinks=True))
def sink_as_key(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """One more column of scores, and a row of zeros among the values."""
    scores, values = formula.scores(problem, q, k), formula.expanded(problem, v)
    scores = torch.cat([formula.sinks(problem).expand(*scores.shape[:3], 1), scores], -1)
    return formula.attended(scores, torch.nn.functional.pad(values, (0, 0, 1, 0))).out.to(v.dtype)


@kernel("alibi-by-key", Problem(seq_q=40, heads=6, head_dim=32, mask="causal", score=Score(bias="alibi")))
def alibi_by_key(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Output:
    """The last row of the bias for all rows."""
    bias = formula.finished_logits(problem, torch.zeros(1, problem.heads, problem.seq_q, problem.seq_kv))[..., -1:, :]
    logits = formula.products(problem, q, k) * problem.scale + bias
    return formula.finish(problem, logits.masked_fill(~formula.visible(problem), formula.HIDDEN), v)
