"""Whether outputs have their final bits when a call has returned, or other threads and streams still work on them.

A copy is made right behind the call: on a CPU by the thread that called, on a GPU by the stream that the call is timed
on. Only then the whole device is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.worker.correctness import OutputVerdict
from attnbench.worker.prepared_case import PreparedCase

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = "the output changed after the call had returned: the kernel works in another thread or stream"
LATE_S = 0.05  # time that other threads have to finish a wrong output, so that the reason can name them


def call_and_judge(
    case: PreparedCase, state: AbstractContextManager[None], judge: Callable[[], OutputVerdict]
) -> OutputVerdict:
    """The verdict on one untimed call; an output that changes after the call is wrong."""
    early: dict[str, Tensor] = {}
    case.call_once(state, lambda: early.update(_copies(case)))
    return finished(case, judge(), early)


def finished(case: PreparedCase, verdict: OutputVerdict, early: Mapping[str, Tensor] | None = None) -> OutputVerdict:
    """The verdict, if the outputs of the last call keep the bits of their `early` copies, or of copies made now."""
    early = _copies(case) if early is None else early
    if not verdict.ok:
        time.sleep(LATE_S)
        case.instrument.synchronize()
    late = outputs_on_device(case)
    if all(name in late and _same_bits(tensor, late[name]) for name, tensor in early.items()):
        return verdict
    return replace(verdict, ok=False, reason=UNFINISHED)


def outputs_on_device(case: PreparedCase) -> dict[str, Tensor]:
    """The outputs of the last call that are tensors on the device of the inputs; none where one is no tensor."""
    try:
        outputs = case.named_outputs()
    except TypeError:
        return {}
    kind = case.q.device.type
    return {name: tensor.detach() for name, tensor in outputs.items() if tensor.device.type == kind}


def _copies(case: PreparedCase) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in outputs_on_device(case).items()}


def _same_bits(first: Tensor, second: Tensor) -> bool:
    import torch

    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*bits)
