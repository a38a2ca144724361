"""Sparse attention by gathering: each row reads only the keys and values that it uses, and the others cost nothing.

With a sparse mask the keys are known before the call; with hard weightings and top-p all logits are computed, and only
the values of the selected keys are gathered. Rows with fewer keys than the longest are padded with hidden ones.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attnbench.attention import cost
from attnbench.attention.masks import PATTERNS
from attnbench.attention.problem import Problem
from attnbench.attention.weightings import Argmax, TopK, TopP
from attnbench.backends import FLOATS, Backend, Limits, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_MASKS = frozenset({"causal", "window", "prefix", "document", "padding", "blind_rows"}) | PATTERNS
_SELECTIONS = frozenset({"argmax", "topk", "topp"})
_FEATURES = _MASKS | _SELECTIONS | {"gqa", "cross", "scale", "softcap", "head_dim_v"}


class GatheredKeys(NamedTuple):
    """The keys of every row, [batch or 1, seq_q, longest]; `hidden` marks the padding of shorter rows."""

    keys: Tensor
    hidden: Tensor


def prepare(case: Case, device: str) -> Prepared:
    """List the keys of every row, untimed; the call gathers."""
    import torch

    problem = case.problem
    started = time.perf_counter()
    visible = None
    if problem.mask != "none":
        visible = torch.from_numpy(problem.masking.dense(problem.grid))
    if problem.weighting != "softmax":
        shown = None if visible is None else visible[:, None].to(device)
        return Prepared(call=lambda q, k, v: _selected(problem, shown, q, k, v), facts={"gathers": "values"})
    lists = _listed(problem, visible, device)
    seconds = {"mask_build": time.perf_counter() - started}
    facts = {"gathers": "keys and values", "keys_of_a_row": int(lists.keys.shape[-1])}
    return Prepared(call=lambda q, k, v: _gathered(problem, lists, q, k, v), seconds=seconds, facts=facts)


def _listed(problem: Problem, visible: Tensor | None, device: str) -> GatheredKeys:
    import torch

    if visible is None:
        visible = torch.ones(1, problem.seq_q, problem.seq_kv, dtype=torch.bool)
    longest = max(1, int(visible.sum(-1).max()))
    # A stable sort puts the visible keys first and keeps their order.
    order = torch.argsort((~visible).to(torch.uint8), dim=-1, stable=True)[..., :longest]
    return GatheredKeys(order.to(device), ~visible.gather(-1, order).to(device))


def _gathered(problem: Problem, lists: GatheredKeys, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[batch, heads, seq, width] in and out; keys of a row: [batch, kv_heads, seq_q, longest, width]."""
    groups = problem.heads // problem.kv_heads
    keys, values = _rows_of(k, lists.keys), _rows_of(v, lists.keys)
    q = q.unflatten(1, (problem.kv_heads, groups))  # the heads of a group share what was gathered
    logits = (q.movedim(2, 3) @ keys.mT).movedim(3, 2) * problem.scale
    if (cap := problem.softcap) is not None:
        logits = cap * (logits / cap).tanh()
    hidden = lists.hidden[:, None, None]
    weights = problem.weighing.weights(logits.masked_fill(hidden, float("-inf")))
    return (weights.movedim(2, 3) @ values).movedim(3, 2).flatten(1, 2)


def _selected(problem: Problem, visible: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All logits, then the values of the selected keys alone."""
    groups = problem.heads // problem.kv_heads
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    logits = q @ k.mT * problem.scale
    if (cap := problem.softcap) is not None:
        logits = cap * (logits / cap).tanh()
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    weights = problem.weighing.weights(logits)
    longest = _longest(problem, weights)
    selected, keys = weights.topk(longest, dim=-1)
    values = v.unsqueeze(2).expand(-1, -1, keys.shape[2], -1, -1)
    gathered = values.gather(3, keys[..., None].expand(*keys.shape, v.shape[-1]))
    return (selected[..., None, :] @ gathered).squeeze(-2)


def _longest(problem: Problem, weights: Tensor) -> int:
    weigh = problem.weighing
    if isinstance(weigh, Argmax):
        return 1
    if isinstance(weigh, TopK):
        return min(weigh.k, problem.seq_kv)
    assert isinstance(weigh, TopP)
    return max(1, int((weights > 0).sum(-1).max()))


def _rows_of(tensor: Tensor, keys: Tensor) -> Tensor:
    """[batch, kv_heads, seq_kv, width] and keys [batch or 1, seq_q, n] -> [batch, kv_heads, seq_q, n, width]."""
    batch, heads, _, width = tensor.shape
    if keys.shape[0] == 1:
        return tensor.index_select(2, keys.flatten()).view(batch, heads, *keys.shape[1:], width)
    places = keys.flatten(1)[:, None, :, None].expand(batch, heads, -1, width)
    return tensor.gather(2, places).view(batch, heads, *keys.shape[1:], width)


def scratch_bytes(case: Case) -> int:
    """The gathered keys and values, their indices in 64 bits, and the logits; with gradients also part of theirs."""
    problem = case.problem
    number, width = problem.dtype.bytes, problem.head_dim + problem.head_dim_v
    rows = problem.batch * problem.heads * problem.seq_q
    if problem.weighting != "softmax":
        longest = {TopK: getattr(problem.weighing, "k", 0), Argmax: 1}.get(type(problem.weighing), problem.seq_kv)
        logits = rows * problem.seq_kv * (6 * number + 24)
        return logits + rows * longest * (problem.head_dim_v + 2) * number * (2 if case.mode.needs_grad else 1)
    longest = int(np.max(problem.masking.counts(problem.grid)))
    gathered = problem.batch * problem.kv_heads * problem.seq_q * longest * width * number
    logits = 3 * rows * longest * number
    listed = (problem.batch if "padding" in problem.features else 1) * problem.seq_q * longest * 9
    # Preparing needs the whole mask and the order of its keys.
    built = problem.seq_q * problem.seq_kv * 10
    return (
        max(built, (gathered + logits) * (3 if case.mode.needs_grad else 2) // 2) + listed + cost.input_bytes(problem)
    )


BACKENDS = {
    "gather": Backend(
        name="gather",
        summary="sparse attention by gathering the keys of each row",
        limits=dict.fromkeys(("cpu", "cuda"), Limits(dtypes=FLOATS, features=_FEATURES)),
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
    )
}
