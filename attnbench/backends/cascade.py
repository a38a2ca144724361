"""Cascade attention over torch's fused kernel: a shared prefix once for all its requests, then a merge by log-sum-exp.

As in vLLM and FlashInfer (https://flashinfer.ai/2024/02/02/cascade-inference.html): the queries of a group are the rows
of one call over the prefix; each request attends to its other keys; and two parts a and b are merged to
(out_a e^lse_a + out_b e^lse_b) / (e^lse_a + e^lse_b).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention import cost, layouts
from attnbench.attention.choices import Mode
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, HALVES, Backend, Keywords, Limits, Prepared, planned
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_FEATURES = frozenset({"causal", "gqa", "cross", "scale", "requests", "paged"})


class Step(NamedTuple):
    """One call of the kernel."""

    rows: slice | NDArray[np.int64] | Tensor  # of packed q
    keys: slice  # of packed k and v
    options: Keywords  # of the kernel: its mask
    merges: bool  # with what these rows have of their prefix


def prepare(case: Case, device: str) -> Prepared:
    """Plan the calls: for each group the prefix, then for each request what its queries see beside it."""
    import torch

    problem = case.problem
    attend, aligned_right = kernel(device)
    (steps, where), seconds = planned(
        lambda: (plan(problem, aligned_right), layouts.slots(problem) if problem.page_size else None),
        lambda tables: _on(device, *tables),
        device,
    )

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(1, problem.tokens_q, problem.heads, problem.head_dim_v).transpose(1, 2)
        lse = q.new_empty(1, problem.heads, problem.tokens_q, dtype=torch.float32)
        for rows, keys, options, merges in steps:
            kv = (each[:, :, keys] if where is None else layouts.packed_keys(each, where[keys]) for each in (k, v))
            part, part_lse = attend(q[:, :, rows], *kv, scale=problem.scale, **options)
            if merges:
                part = merged(out[:, :, rows], lse[:, :, rows], part, part_lse)
            else:
                lse[:, :, rows] = part_lse
            out[:, :, rows] = part
        return out

    facts = {"requests": "shared prefix once", "groups": len(problem.prefix_groups), "calls_inside": len(steps)}
    return Prepared(
        call=call,
        seconds=seconds,
        facts={**facts, "merge_bytes": cost.merge_bytes(problem)},
        stored=partial(layouts.paged, problem) if problem.page_size else None,
    )


def kernel(device: str) -> tuple[Callable[..., tuple[Tensor, Tensor]], bool]:
    """A kernel of torch that returns out and lse, and whether its `is_causal` is aligned to the bottom right.

    On CUDA it is, as torch itself relies on (CausalVariant.LOWER_RIGHT in torch/nn/attention/bias.py).
    """
    import torch

    if torch.device(device).type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, False

    def attend(*qkv: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*qkv, **options)
        return out, lse

    return attend, True


def _on(device: str, steps: list[Step], where: NDArray[np.int64] | None) -> tuple[list[Step], Tensor | None]:
    """The places of rows and keys on the device. A mask is for a CPU alone."""
    import torch

    def moved(places: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(places).to(device)

    placed = [step._replace(rows=moved(step.rows)) if isinstance(step.rows, np.ndarray) else step for step in steps]
    return placed, None if where is None else moved(where)


def plan(problem: Problem, aligned_right: bool) -> list[Step]:
    """The calls, in order: a request is merged after the prefix of its group."""
    steps, prefixes = [], _prefixes(problem)
    for length, members in problem.prefix_groups:
        spans = [problem.spans[number] for number in members]
        queries = np.concatenate([np.arange(rows.start, rows.stop) for rows, _ in spans])
        adjacent = len(queries) == queries[-1] + 1 - queries[0]
        rows = slice(queries[0], queries[-1] + 1) if adjacent else queries
        first = spans[0][1].start
        steps.append(Step(rows, slice(first, first + length), {}, merges=False))
    masks: dict[tuple[Problem, int], Keywords] = {}
    for length, part, (rows, keys) in zip(prefixes, problem.parts, problem.spans, strict=True):
        if (part, length) not in masks:
            masks[part, length] = _mask(part, length, aligned_right)
        steps.append(Step(rows, slice(keys.start + length, keys.stop), masks[part, length], merges=length > 0))
    return steps


def _prefixes(problem: Problem) -> list[int]:
    """The shared keys of every request; 0 where it shares none."""
    of_members = {number: keys for keys, members in problem.prefix_groups for number in members}
    return [of_members.get(number, 0) for number in range(problem.batch)]


def _mask(part: Problem, prefix: int, aligned_right: bool) -> Keywords:
    """The arguments of the kernel that hide keys after the prefix; see `kernel` for the alignment."""
    import torch

    if part.mask == "none" or part.seq_q == 1:
        return {}
    if aligned_right or part.seq_q == part.seq_kv - prefix:
        return {"is_causal": True}
    visible = torch.from_numpy(part.visible()[:, :, prefix:])[None]
    return {"attn_mask": torch.zeros(visible.shape).masked_fill(~visible, -math.inf).to(torch_dtype(part.dtype))}


def merged(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> Tensor:
    """Attention to the keys of both parts: [batch, heads, rows, width], in float32. lse: [batch, heads, rows]."""
    share = (part_lse - lse).sigmoid()[..., None]  # of the second part: e^b / (e^a + e^b)
    return out.float().lerp(part.float(), share)


def scratch_bytes(case: Case) -> int:
    """The lse, the largest part of q and of out, this in float32 too, the most keys from pages, and masks."""
    problem, number = case.problem, case.problem.dtype.bytes
    of_groups = [sum(problem.sizes[member].queries for member in group.requests) for group in problem.prefix_groups]
    rows, prefixes = max([problem.seq_q, *of_groups]), _prefixes(problem)
    keys = max(*prefixes, *(size.keys - shared for size, shared in zip(problem.sizes, prefixes, strict=True)))
    gathered = keys * problem.kv_heads * (problem.head_dim + problem.head_dim_v) * number if problem.page_size else 0
    masks = sum(part.seq_q * part.seq_kv * (5 + number) for part in set(problem.parts) if part.seq_q > 1)
    parts = rows * problem.heads * (problem.head_dim * number + problem.head_dim_v * (number + 12))
    return 4 * problem.tokens_q * problem.heads + parts + gathered + masks


def _refuses(case: Case) -> list[str]:
    return [] if case.problem.shared_prefix else ["no shared prefix: use --requests and --set shared_prefix=2k:8"]


_LIMITS = Limits(dtypes=FLOATS, features=_FEATURES, modes=frozenset({Mode.FWD}))
# As FlashAttention in torch; below SDPA, nothing pads head_dim.
_CUDA = replace(_LIMITS, dtypes=HALVES, head_dim_most=256, head_dim_multiple=8, capability=(8, 0))
BACKENDS = {
    "sdpa:cascade": Backend(
        name="sdpa:cascade",
        summary="torch's fused kernel, a shared prefix once for all its requests",
        limits={"cpu": _LIMITS, "cuda": _CUDA},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        refuses=_refuses,
    )
}
