"""Attention as the textbook has it, every step a tensor. It runs everything; the others are compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnbench.attention import cost
from attnbench.attention.problem import FEATURES, Dtype, Mode, Problem, Returns
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_EVERYTHING = frozenset(FEATURES)
_MODES = frozenset(Mode)
_CPU_DTYPES = frozenset({Dtype.FP32, Dtype.FP16, Dtype.BF16})


def prepare(case: Case, device: str) -> Prepared:
    """The mask is made here; the call holds all the rest."""
    import torch

    problem = case.problem
    visible = hidden_rows = None
    if problem.mask != "none" or problem.lengths:
        visible = torch.from_numpy(problem.masking.dense(problem.grid)).unsqueeze(1).to(device)
        hidden_rows = ~visible.any(-1, keepdim=True) if "blind_rows" in problem.features or problem.lengths else None
    # A switch of the process, which has one case at a time; torch keeps its older and newer names of it in step.
    torch.set_float32_matmul_precision("high" if problem.dtype is Dtype.TF32 else "highest")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attend(problem, q, k, v, visible, hidden_rows)

    return Prepared(call=call)


def attend(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, hidden_rows: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax(scale q k^T) v, in the dtype of the inputs.

    q: [batch, heads, seq_q, head_dim]; k, v: [batch, kv_heads, seq_kv, ...]; visible: [batch or 1, 1, seq_q, seq_kv].
    """
    if problem.kv_heads != problem.heads:
        k, v = (tensor.repeat_interleave(problem.heads // problem.kv_heads, dim=1) for tensor in (k, v))
    wants_lse = problem.returns is Returns.LSE
    # A log-sum-exp is float32: summed over scores that were rounded to 16 bits it would not be worth the name.
    scores = (q.float() @ k.float().transpose(-2, -1) if wants_lse else q @ k.transpose(-2, -1)) * problem.scale
    if (cap := problem.softcap) is not None:
        scores = cap * (scores / cap).tanh()
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    if hidden_rows is None:
        weights = scores.softmax(-1)
    else:
        # A row of -inf alone would be NaN here and, through 0 x NaN, in the gradients of its neighbours.
        weights = scores.masked_fill(hidden_rows, 0.0).softmax(-1).masked_fill(hidden_rows, 0.0)
    out = weights.to(v.dtype) @ v
    return (out, scores.logsumexp(-1)) if wants_lse else out


def scratch_bytes(case: Case) -> int:
    """Score-sized tensors alive at the peak, and the expanded keys and values of grouped heads.

    Forward: the scaled and the raw scores together, then the masked ones and their softmax: two at a time. A backward
    keeps the weights and, with a mask or a cap, what leads to them, beside two gradients.
    """
    problem, mode = case.problem, case.mode
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    masked = problem.mask != "none" or bool(problem.lengths)
    tensors = 2 + (problem.returns is Returns.LSE) * (8 // problem.dtype.bytes)
    if mode.needs_grad:
        tensors = 3 + 2 * (problem.softcap is not None)
    total = tensors * scores
    if masked:
        sequences = problem.batch if problem.lengths or "padding" in problem.features else 1
        total += 2 * sequences * problem.seq_q * problem.seq_kv  # the mask and its negation
    if problem.kv_heads != problem.heads:
        expanded = problem.heads // problem.kv_heads * cost.input_bytes(problem)
        total += expanded * (2 if mode.needs_grad else 1)
    return total


BACKENDS = {
    "naive": Backend(
        name="naive",
        summary="the plain formula in torch, every step a tensor",
        limits={
            "cpu": Limits(dtypes=_CPU_DTYPES, features=_EVERYTHING, modes=_MODES),
            "cuda": Limits(dtypes=_CPU_DTYPES | {Dtype.TF32}, features=_EVERYTHING, modes=_MODES),
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
    )
}
