"""Tensors as callers have them in memory: what a backend does with views and odd addresses.

A backend may read a view as it is, copy it first, or refuse it. Reading it as if it were contiguous is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from attnbench.backends import Layout
from attnbench.worker.probes import outcome
from attnbench.worker.probes.outcome import Judged, NotApplicableError, Reaction, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.attention.inputs import Inputs
    from attnbench.worker.prepared_case import PreparedCase

COPIES = frozenset({"aten::copy_", "aten::clone"})


def transposed(tensor: Tensor) -> Tensor:
    """The two middle dimensions change places in memory, as after `view(b, seq, heads, width).transpose(1, 2)`."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def sliced(tensor: Tensor) -> Tensor:
    """Every row is one of three parts of a longer row, as `qkv.chunk(3, dim=-1)` gives."""
    width = tensor.shape[-1]
    return tensor.new_zeros(*tensor.shape[:-1], 3 * width)[..., width : 2 * width].copy_(tensor)


def columns(tensor: Tensor) -> Tensor:
    """The last dimension is not the innermost one in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def channels_last(tensor: Tensor) -> Tensor:
    """The second dimension is the innermost one in memory, as torch.channels_last has it after a convolution."""
    import torch

    return tensor.contiguous(memory_format=torch.channels_last)


def offset(tensor: Tensor) -> Tensor:
    """The tensor starts one number after an aligned address."""
    return tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def _viewed(case: PreparedCase, view: Callable[[Tensor], Tensor]) -> Judged:
    contiguous = [tensor.detach() for tensor in _tensors(case)]
    return _compare(case, outcome.own_inputs(case), contiguous, [view(tensor) for tensor in contiguous])


def expanded(case: PreparedCase) -> Judged:
    """All key heads (with one head, all sequences) are the same memory: a stride of 0."""
    _tensors(case)
    original = outcome.own_inputs(case)
    axis = next((axis for axis in (1, 0) if original.k.shape[axis] > 1), None)
    if axis is None:
        raise NotApplicableError("one key head and one sequence")
    keys = {name: getattr(original, name) for name in "kv"}
    same = outcome.changed(
        original, **{name: tensor.narrow(axis, 0, 1).expand_as(tensor).contiguous() for name, tensor in keys.items()}
    )
    q, *contiguous = outcome.placed(case, same)
    placed_axis = 2 if axis and case.backend.layout is Layout.BSHD else axis
    views = [tensor.narrow(placed_axis, 0, 1).clone().expand_as(tensor) for tensor in contiguous]
    return _compare(case, same, [q, *contiguous], [q, *views])


def _compare(case: PreparedCase, tensors: Inputs, contiguous: list[Tensor], views: list[Tensor]) -> Judged:
    judged = outcome.judged(case, tensors, lambda: outcome.attend(case, views))
    if judged.outcome is not Reaction.RIGHT:
        return judged
    return Judged(Reaction.COPIES if _copies(case, views) > _copies(case, contiguous) else Reaction.TAKES)


def _tensors(case: PreparedCase) -> tuple[Tensor, ...]:
    if case.prepared.stored:
        where = "a cache in the form of the library" if case.prepared.library_cache else "pages"
        raise NotApplicableError(f"keys are in {where}")
    return case.qkv


def _copies(case: PreparedCase, tensors: list[Tensor]) -> int:
    """How many copies torch makes during a call, those inside its own kernels included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        outcome.attend(case, tensors)
    return sum(event.count for event in profiled.key_averages() if event.key in COPIES)


def _variant(view: Callable[[Tensor], Tensor], *sources: str) -> Variant:
    return Variant(what=outcome.words(view), run=partial(_viewed, view=view), sources=sources)


VARIANTS = {
    "transposed": _variant(
        transposed, "https://github.com/ROCm/pytorch/issues/3230", "https://github.com/flagos-ai/FlagGems/issues/5896"
    ),
    "sliced": _variant(sliced, "https://github.com/pytorch/pytorch/issues/134471"),
    "columns": _variant(columns, "https://github.com/pytorch/pytorch/pull/187506"),
    "channels_last": _variant(channels_last, "https://github.com/pytorch/pytorch/pull/122083"),
    "offset": _variant(offset, "https://github.com/intel/intel-xpu-backend-for-triton/issues/3704"),
    "expanded": Variant(outcome.words(expanded), expanded, ("https://github.com/torch-spyre/torch-spyre/issues/4331",)),
}
