"""A minimal custom backend: `attnbench run --backend examples/my_kernel.py:attend`."""

import torch

import attnbench


def attend(q, k, v, *, causal, scale):
    """q, k, v: [batch, heads, seq, head_dim]. Causal is bottom-right: query i sees keys up to i + seq_kv - seq_q."""
    scores = q @ k.transpose(-2, -1) * scale
    if causal:
        seq_q, seq_kv = scores.shape[-2:]
        future = torch.ones(seq_q, seq_kv, dtype=torch.bool, device=q.device).triu(seq_kv - seq_q + 1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ v


@attnbench.backend(dtypes={"fp32"}, features={"causal", "softcap"}, modes={"fwd"})
def attend_capped(q, k, v, problem):
    """Attention with a soft cap: declares what it supports, and takes the whole problem."""
    scores = q @ k.transpose(-2, -1) * problem.scale
    if (cap := problem.score.softcap) is not None:
        scores = cap * torch.tanh(scores / cap)
    if "causal" in problem.features:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1) @ v
