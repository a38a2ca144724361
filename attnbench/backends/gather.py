"""Sparse attention by gathering: each row takes its own keys and values out of memory, and the others cost nothing.

With a mask of few keys a row the keys are known beforehand; with hard weightings and top-p all logits are computed, and
only the values of the chosen keys are gathered. Rows with fewer keys than the longest are filled up and hidden.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from attnbench.attention import cost
from attnbench.attention.problem import PATTERNS, Dtype, Mode, Problem
from attnbench.attention.weightings import Argmax, TopK, TopP
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_MASKS = frozenset({"causal", "window", "prefix", "document", "padding", "blind_rows"}) | PATTERNS
_CHOOSES = frozenset({"argmax", "topk", "topp"})
_FEATURES = _MASKS | _CHOOSES | {"gqa", "cross", "scale", "softcap", "head_dim_v"}
_DTYPES = frozenset({Dtype.FP32, Dtype.FP16, Dtype.BF16})


class Kept(NamedTuple):
    """The keys of every row, [batch or 1, seq_q, most]; where `hidden`, a row has no more."""

    keys: Tensor
    hidden: Tensor


def prepare(case: Case, device: str) -> Prepared:
    """The keys of every row are listed here, untimed; the call gathers."""
    import torch

    problem = case.problem
    started = time.perf_counter()
    visible = None
    if problem.mask != "none":
        visible = torch.from_numpy(problem.masking.dense(problem.grid))
    if problem.weighting != "softmax":
        shown = None if visible is None else visible[:, None].to(device)
        return Prepared(call=lambda q, k, v: _chosen(problem, shown, q, k, v), facts={"gathers": "values"})
    kept = _listed(problem, visible, device)
    seconds = {"mask_build": time.perf_counter() - started}
    facts = {"gathers": "keys and values", "keys_of_a_row": int(kept.keys.shape[-1])}
    return Prepared(call=lambda q, k, v: _gathered(problem, kept, q, k, v), seconds=seconds, facts=facts)


def _listed(problem: Problem, visible: Any, device: str) -> Kept:
    import torch

    if visible is None:
        visible = torch.ones(1, problem.seq_q, problem.seq_kv, dtype=torch.bool)
    most = max(1, int(visible.sum(-1).max()))
    # True sorts before False, and stays in its order.
    order = torch.argsort((~visible).to(torch.uint8), dim=-1, stable=True)[..., :most]
    return Kept(order.to(device), ~visible.gather(-1, order).to(device))


def _gathered(problem: Problem, kept: Kept, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[batch, heads, seq, width] in and out; keys of a row: [batch, kv_heads, seq_q, most, width]."""
    groups = problem.heads // problem.kv_heads
    keys, values = _rows_of(k, kept.keys), _rows_of(v, kept.keys)
    q = q.unflatten(1, (problem.kv_heads, groups))  # the heads of a group share what was gathered
    logits = (q.movedim(2, 3) @ keys.mT).movedim(3, 2) * problem.scale
    if (cap := problem.softcap) is not None:
        logits = cap * (logits / cap).tanh()
    hidden = kept.hidden[:, None, None]
    weights = problem.weigh.weights(logits.masked_fill(hidden, float("-inf")))
    return (weights.movedim(2, 3) @ values).movedim(3, 2).flatten(1, 2)


def _chosen(problem: Problem, visible: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All logits, then the values of the chosen keys alone."""
    groups = problem.heads // problem.kv_heads
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    logits = q @ k.mT * problem.scale
    if (cap := problem.softcap) is not None:
        logits = cap * (logits / cap).tanh()
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    weights = problem.weigh.weights(logits)
    most = _most(problem, weights)
    kept, keys = weights.topk(most, dim=-1)
    values = v.unsqueeze(2).expand(-1, -1, keys.shape[2], -1, -1)
    gathered = values.gather(3, keys[..., None].expand(*keys.shape, v.shape[-1]))
    return (kept[..., None, :] @ gathered).squeeze(-2)


def _most(problem: Problem, weights: Tensor) -> int:
    weigh = problem.weigh
    if isinstance(weigh, Argmax):
        return 1
    if isinstance(weigh, TopK):
        return min(weigh.k, problem.seq_kv)
    assert isinstance(weigh, TopP)
    return max(1, int((weights > 0).sum(-1).max()))


def _rows_of(tensor: Tensor, keys: Tensor) -> Tensor:
    """[batch, kv_heads, seq_kv, width], keys [batch or 1, seq_q, most] -> [batch, kv_heads, seq_q, most, width]."""
    batch, heads, _, width = tensor.shape
    if keys.shape[0] == 1:
        return tensor.index_select(2, keys.flatten()).view(batch, heads, *keys.shape[1:], width)
    places = keys.flatten(1)[:, None, :, None].expand(batch, heads, -1, width)
    return tensor.gather(2, places).view(batch, heads, *keys.shape[1:], width)


def scratch_bytes(case: Case) -> int:
    """What is gathered, the list of it in 64 bits, and the logits; with gradients also theirs in part."""
    problem = case.problem
    number, width = problem.dtype.bytes, problem.head_dim + problem.head_dim_v
    rows = problem.batch * problem.heads * problem.seq_q
    if problem.weighting != "softmax":
        most = {TopK: getattr(problem.weigh, "k", 0), Argmax: 1}.get(type(problem.weigh), problem.seq_kv)
        logits = rows * problem.seq_kv * (6 * number + 24)
        return logits + rows * most * (problem.head_dim_v + 2) * number * (2 if case.mode.needs_grad else 1)
    most = int(np.max(problem.masking.counts(problem.grid)))
    gathered = problem.batch * problem.kv_heads * problem.seq_q * most * width * number
    logits = 3 * rows * most * number
    listed = (problem.batch if "padding" in problem.features else 1) * problem.seq_q * most * 9
    # While it is prepared the whole mask is there, and the order of its keys.
    built = problem.seq_q * problem.seq_kv * 10
    return (
        max(built, (gathered + logits) * (3 if case.mode.needs_grad else 2) // 2) + listed + cost.input_bytes(problem)
    )


BACKENDS = {
    "gather": Backend(
        name="gather",
        summary="sparse attention by gathering the keys of each row",
        limits=dict.fromkeys(("cpu", "cuda"), Limits(dtypes=_DTYPES, features=_FEATURES, modes=frozenset(Mode))),
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
    )
}
