"""The textbook formula, every step a tensor. It supports everything; the other backends are compared with it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attnbench.attention import cost, latent, layouts
from attnbench.attention.biases import Constant, Relative
from attnbench.attention.choices import Dtype, Returns
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.logits import similarity, sink_logits
from attnbench.attention.problem import FEATURES, Problem
from attnbench.attention.scores import Similarity
from attnbench.attention.weightings import GumbelMax
from attnbench.backends import FLOATS, Backend, Limits, Output, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_EVERYTHING = frozenset(FEATURES)


def prepare(case: Case, device: str) -> Prepared:
    """Build the tensors that depend on no input; the call computes the rest."""
    import torch

    problem = case.problem
    plain = latent.expanded(problem) if problem.kv else problem
    fixed = _fixed(plain, device)
    weights = latent.Matrices(*(part.to(device) for part in latent.matrices(problem))) if problem.kv else None
    # A global setting of the process, which runs one case at a time.
    torch.set_float32_matmul_precision("high" if problem.dtype is Dtype.TF32 else "highest")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if weights is not None:
            k, v = latent.expand(weights, k)
        return attend(plain, fixed, q, k, v)

    if not problem.page_size:
        return Prepared(call=call)
    where = torch.from_numpy(layouts.page_table(problem).astype(np.int64)).to(device)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Output:
        return call(q, *(layouts.gathered(problem, tensor, where) for tensor in (k, v)))

    return Prepared(call=read, stored=partial(layouts.paged, problem))


class Fixed(NamedTuple):
    """The tensors of a problem that are not inputs; None where the problem has none."""

    visible: Tensor | None  # [batch or 1, 1, seq_q, seq_kv]
    hidden_rows: Tensor | None  # [batch or 1, 1, seq_q, 1], rows that see no key
    bias: Tensor | None  # [heads or 1, seq_q, seq_kv]
    noise: Tensor | None  # [batch, heads, seq_q, seq_kv], of hard:sample
    sinks: Tensor | None  # [heads, 1, 1]


def _fixed(problem: Problem, device: str) -> Fixed:
    import torch

    visible = hidden_rows = bias = noise = sinks = None
    dtype = torch_dtype(problem.dtype)
    if problem.mask != "none":
        visible = torch.from_numpy(problem.masking.dense(problem.grid)).unsqueeze(1).to(device)
        hidden_rows = ~visible.any(-1, keepdim=True) if "blind_rows" in problem.features else None
    if isinstance(problem.bias, Constant):
        bias = problem.bias.dense_tensor(problem).to(device, dtype)
    if isinstance(problem.weighing, GumbelMax):
        rows, keys = torch.arange(problem.seq_q), torch.arange(problem.seq_kv)
        drawn = [GumbelMax.noise(b, slice(0, problem.heads), rows, keys).to(dtype) for b in range(problem.batch)]
        noise = torch.stack(drawn).to(device)
    if problem.sinks:
        sinks = sink_logits(problem).float().to(device)[:, None, None]
    return Fixed(visible, hidden_rows, bias, noise, sinks)


def attend(problem: Problem, fixed: Fixed, q: Tensor, k: Tensor, v: Tensor) -> Output:
    """Softmax(scale q k^T) v with mask, bias, soft cap, sinks and dropout, in the dtype of the inputs.

    q: [batch, heads, seq_q, head_dim]; k, v: [batch, kv_heads, seq_kv, ...].
    """
    import torch

    if problem.kv_heads != problem.heads:
        k, v = (tensor.repeat_interleave(problem.heads // problem.kv_heads, dim=1) for tensor in (k, v))
    wants_lse = problem.returns is Returns.LSE
    # The log-sum-exp is float32: a sum over scores rounded to 16 bits would be too inaccurate.
    wide = (q.float(), k.float()) if wants_lse else (q, k)
    logits = similarity(problem, *wide) * problem.scale
    if (cap := problem.softcap) is not None:
        logits = cap * (logits / cap).tanh()
    if fixed.bias is not None:
        logits = logits + fixed.bias
    elif isinstance(bias := problem.bias, Relative):
        logits = logits + bias.whole(problem, *wide)
    if fixed.visible is not None:
        logits = logits.masked_fill(~fixed.visible, float("-inf"))
    weights = _weights(problem, fixed, logits)
    dropped = torch.nn.functional.dropout(weights, problem.dropout) if problem.dropout else weights
    out = dropped.to(v.dtype) @ v
    if wants_lse:
        return out, logits.logsumexp(-1) if fixed.sinks is None else _with_sinks(fixed, logits).logsumexp(-1)
    return (out, dropped) if problem.returns is Returns.WEIGHTS else out


def _weights(problem: Problem, fixed: Fixed, logits: Tensor) -> Tensor:
    if fixed.noise is not None:
        logits = logits + fixed.noise
    if problem.weighting != "softmax":
        return problem.weighing.weights(logits)
    if fixed.sinks is not None:
        return _with_sinks(fixed, logits).softmax(-1)[..., :-1]
    if fixed.hidden_rows is None:
        return logits.softmax(-1)
    # A row of -inf alone would be NaN here and, through 0 x NaN, in the gradients of its neighbours.
    return logits.masked_fill(fixed.hidden_rows, 0.0).softmax(-1).masked_fill(fixed.hidden_rows, 0.0)


def _with_sinks(fixed: Fixed, logits: Tensor) -> Tensor:
    import torch

    assert fixed.sinks is not None
    return torch.cat([logits, fixed.sinks.to(logits).expand(*logits.shape[:3], 1)], dim=-1)


def scratch_bytes(case: Case) -> int:
    """Score-sized tensors alive at the peak, and the expanded keys and values of grouped heads.

    Forward: the scaled and the raw scores together, then the masked ones and their softmax: two at a time. A backward
    keeps the weights and, with a mask or a cap, the logits before them, in addition to two gradients.
    """
    problem, mode = case.problem, case.mode
    scores = problem.batch * problem.heads * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    tensors = 2 + (problem.returns is Returns.LSE) * (8 // problem.dtype.bytes)
    if mode.needs_grad:
        tensors = 3 + 2 * (problem.softcap is not None)
    tensors += bool(problem.bias) + problem.sinks + 2 * (problem.dropout > 0)
    if problem.weighting not in ("softmax", "raw", "sigmoid"):  # others sort the keys, with indices in 64 bits
        tensors += 4 + 16 // problem.dtype.bytes
    if problem.score.similarity is Similarity.ADDITIVE:  # a vector for each pair, before and after its tanh
        tensors += (3 if mode.needs_grad else 2) * problem.head_dim
    total = tensors * scores
    if isinstance(problem.bias, Relative):
        total += cost.relative_bias_bytes(problem, problem.bias)
    if problem.mask != "none":
        sequences = problem.batch if "padding" in problem.features else 1
        total += 2 * sequences * problem.seq_q * problem.seq_kv  # the mask and its negation
    if problem.page_size:
        total += 2 * cost.input_bytes(problem)
    if problem.kv:
        total += 2 * cost.kv_bytes(latent.expanded(problem)) + latent.matrix_bytes(problem)
    elif problem.kv_heads != problem.heads:
        expanded = problem.heads // problem.kv_heads * cost.input_bytes(problem)
        total += expanded * (2 if mode.needs_grad else 1)
    return total


BACKENDS = {
    "naive": Backend(
        name="naive",
        summary="the plain formula in torch, every step a tensor",
        limits={
            "cpu": Limits(dtypes=FLOATS, features=_EVERYTHING),
            "cuda": Limits(dtypes=FLOATS | {Dtype.TF32}, features=_EVERYTHING),
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        by_request=True,
    )
}
