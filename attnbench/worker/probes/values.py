"""Values that break kernels: extreme logits, numbers at the ends of a dtype, NaN where nothing may be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from attnbench.attention import layouts
from attnbench.attention.inputs import LARGEST, torch_dtype
from attnbench.worker.probes import outcome
from attnbench.worker.probes.outcome import Judged, NotApplicableError, Reaction, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.attention.inputs import Inputs
    from attnbench.attention.problem import Problem
    from attnbench.worker.prepared_case import PreparedCase

LOWEST = -1e5  # q.k of every pair
HUGE = 1e4  # standard deviation of q.k of one key
WIDE = 1e30  # values where the dtype has the range of fp32: no sum of them overflows


def negative(problem: Problem, tensors: Inputs) -> Inputs:
    """Every logit of a row is far below 0, where a running maximum may have begun higher."""
    largest = LARGEST.get(problem.dtype, abs(LOWEST))
    size = min((abs(LOWEST) / problem.head_dim) ** 0.5, largest / 2)
    sign = -1 if problem.scale > 0 else 1
    return outcome.changed(tensors, q=_shifted(tensors.q, size), k=_shifted(tensors.k, sign * size))


def huge(problem: Problem, tensors: Inputs) -> Inputs:
    """One key has logits thousands of times those of the others."""
    factor = min(HUGE / problem.head_dim**0.5, LARGEST.get(problem.dtype, HUGE) / 8)
    k = tensors.k.float()
    k[:, :, k.shape[2] // 2] *= factor
    return outcome.changed(tensors, k=k.to(tensors.k.dtype))


def equal(_problem: Problem, tensors: Inputs) -> Inputs:
    """All logits of a row are equal: q is 0."""
    return outcome.changed(tensors, q=tensors.q * 0)


def limit(problem: Problem, tensors: Inputs) -> Inputs:
    """Values are near the largest number of the dtype; 1e30 where it has the range of fp32."""
    largest = 0.9 * LARGEST[problem.dtype] if problem.dtype in LARGEST else WIDE
    return outcome.changed(tensors, v=(tensors.v.float().sign() * largest).to(tensors.v.dtype))


def _with(case: PreparedCase, change: Callable[[Problem, Inputs], Inputs]) -> Judged:
    tensors = change(case.problem, outcome.own_inputs(case))
    return outcome.judged(case, tensors, lambda: outcome.attend(case, outcome.placed(case, tensors)))


def denormal(case: PreparedCase) -> Judged:
    """Values are smaller than the smallest normal number of the dtype."""
    import torch

    original = outcome.own_inputs(case)
    smallest = torch.finfo(torch_dtype(case.problem.dtype)).smallest_normal
    tensors = outcome.changed(original, v=(original.v.double().sign() * smallest / 2).to(original.v.dtype))
    if not tensors.v.count_nonzero():
        raise NotApplicableError("this CPU or dtype flushes denormals before the call")
    judged = outcome.judged(case, tensors, lambda: outcome.attend(case, outcome.placed(case, tensors)))
    if judged.outcome is not Reaction.REFUSES and not case.named_outputs()["out"].count_nonzero():
        return Judged(Reaction.FLUSHES, "the output is 0")
    return judged


def nan_hidden(case: PreparedCase) -> Judged:
    """A key and its value are NaN; rows that do not see this key must not change."""
    problem = case.problem
    if problem.requests or problem.page_size:
        raise NotApplicableError("one mask for all sequences is needed")
    visible = problem.masking.dense(problem.grid).reshape(-1, problem.seq_q, problem.seq_kv)
    hidden = np.logical_not(np.any(visible, axis=0))  # [seq_q, seq_kv]
    key = int(hidden.sum(axis=0).argmax())
    rows = np.flatnonzero(hidden[:, key])
    if not len(rows):
        raise NotApplicableError("every row sees every key")
    original = outcome.own_inputs(case)
    filled = {value: _filled(original, key, value) for value in (0.0, float("nan"))}
    clean, spoilt = (outcome.out(case, outcome.placed(case, tensors))[:, :, rows] for tensors in filled.values())
    return _unchanged(clean, spoilt, f"key {key} is NaN, and {len(rows)} rows do not see it")


def nan_padding(case: PreparedCase) -> Judged:
    """The unused end of a page, which a server does not initialise, is NaN."""
    import torch

    problem = case.problem
    if not (case.prepared.stored and problem.requests) or case.prepared.library_cache:
        raise NotApplicableError("a batch of requests with keys in pages is needed")
    q, k, v = (tensor.detach() for tensor in case.qkv)
    used = torch.zeros(k.shape[0] * problem.page_size, dtype=torch.bool)
    used[torch.from_numpy(layouts.slots(problem))] = True
    if used.all():
        raise NotApplicableError("every page is full")
    spoilt = [tensor.clone() for tensor in (k, v)]
    for tensor in spoilt:
        tensor.flatten(0, 1)[~used.to(tensor.device)] = float("nan")
    clean = outcome.out(case, [q, k, v])
    return _unchanged(clean, outcome.out(case, [q, *spoilt]), "the unused ends of pages are NaN")


def _unchanged(clean: Tensor, spoilt: Tensor, what: str) -> Judged:
    import torch

    if not clean.isfinite().all():
        raise NotApplicableError("the output is not finite without NaN either")
    if torch.allclose(spoilt, clean, rtol=1e-2, atol=1e-2):
        return Judged(Reaction.RIGHT)
    bad = int((~spoilt.isfinite()).any(-1).flatten(0, 1).any(0).sum())  # in any head
    return Judged(Reaction.SPREADS if bad else Reaction.WRONG, f"{what}: {bad} rows became NaN" if bad else what)


def _shifted(tensor: Tensor, size: float) -> Tensor:
    return (tensor.float() + size).to(tensor.dtype)


def _filled(tensors: Inputs, key: int, value: float) -> Inputs:
    filled = {name: getattr(tensors, name).clone() for name in "kv"}
    for tensor in filled.values():
        tensor[:, :, key] = value
    return outcome.changed(tensors, **filled)


def _variant(change: Callable[[Problem, Inputs], Inputs], *sources: str) -> Variant:
    return Variant(what=outcome.words(change), run=partial(_with, change=change), sources=sources)


VARIANTS = {
    "negative": _variant(negative, "https://github.com/flashinfer-ai/flashinfer/issues/4267"),
    "huge": _variant(huge, "https://github.com/vllm-project/vllm/issues/56578"),
    "equal": _variant(equal, "https://github.com/NVIDIA/TensorRT-LLM/issues/17477"),
    "limit": _variant(limit, "https://github.com/pytorch/pytorch/pull/162401"),
    "denormal": Variant(outcome.words(denormal), denormal, ("https://github.com/iree-org/iree/pull/22041",)),
    "nan_hidden": Variant(outcome.words(nan_hidden), nan_hidden, ("https://github.com/pytorch/pytorch/issues/101967",)),
    "nan_padding": Variant(
        outcome.words(nan_padding),
        nan_padding,
        ("https://github.com/Dao-AILab/flash-attention/issues/2374", "https://github.com/ROCm/aiter/pull/5401"),
    ),
}
