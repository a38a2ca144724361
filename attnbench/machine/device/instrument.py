"""What every device offers to a measurement, the records of its readings, and the length of blocks."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import msgspec

from attnbench.records.result import Environment, Procedure, Timing

if TYPE_CHECKING:
    from torch import Tensor

Call = Callable[[], object]

MAX_READINGS = 16  # in a block
TICKS = 1000  # least length of a reading, in steps of its clock


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a block: `readings` values, each the mean time of `calls` calls in a row."""

    calls: int
    readings: int
    call_s: float  # of one call, while settling
    settled: bool  # whether the time became steady enough for that, within the time limit
    settle_s: float
    settle_calls: int


class BlockReading(msgspec.Struct, frozen=True, kw_only=True):
    """One block: seconds of one call for each reading, and the state of the machine during the block."""

    values: list[float]
    calls: int
    tags: tuple[str, ...] = ()
    facts: dict[str, float] = {}


class Spot(NamedTuple):
    """A call within a block, both counted from the start; `look` runs after it, outside the timed part."""

    reading: int  # from 0
    call: int  # of that reading, from 1; a device may look after its last call instead
    look: Callable[[], None]


class CallMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one call, after a warm call, outside the timed rounds. `peak` excludes inputs and outputs."""

    peak: int  # highest allocated during the call, less what was allocated before it and what it returns
    total: int  # highest allocated during the call, less what was allocated before it
    facts: dict[str, int] = {}


class Instrument(Protocol):
    """One device, ready to measure."""

    torch_device: str
    capability: tuple[int, int]

    def environment(self) -> Environment:
        """The device and its software."""

    def timing_objection(self, timing: Timing) -> str | None:
        """Why that timing mode is not available here, or None."""

    def warm(self) -> None:
        """Do one-time work, so that the first measurement does not include it."""

    def settle(self, call: Call, procedure: Procedure, known_s: float = 0.0) -> Pace:
        """Call until the shape of blocks can be chosen, within the limits of docs/method.md.

        `known_s`: of a call in an earlier restart, with which one block may agree; 0: not known.
        """

    def block(self, call: Call, pace: Pace, procedure: Procedure, spot: Spot | None = None) -> BlockReading:
        """Time one block."""

    def memory(self, call: Call) -> CallMemory:
        """The exact allocator peak of one call, which must follow a warm call."""

    def process_memory(self, call: Call) -> CallMemory | None:
        """The growth of the whole process in one call, by its high-water mark; None where there is no such figure."""

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        """The name of the energy counter and a function that reads it in joules; or why there is none."""

    def allocated(self) -> int | None:
        """Bytes that torch has allocated now; None where torch does not report them."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def release(self) -> None:
        """Drop the call; return cached memory to the system."""


def block_shape(call_s: float, tick_s: float, block_s: float) -> tuple[int, int]:
    """Calls in a reading and readings in a block, for the time of a call and the step of the clock, in seconds."""
    call_s = max(call_s, 1e-9)
    calls = max(1, math.ceil(TICKS * tick_s / call_s))
    readings = min(MAX_READINGS, max(1, math.ceil(block_s / (calls * call_s))))
    return max(calls, math.ceil(block_s / (readings * call_s))), readings


def tensors(outputs: object) -> list[Tensor]:
    """The tensors in nested tuples and lists, in order."""
    if isinstance(outputs, tuple | list):
        return [tensor for item in outputs for tensor in tensors(item)]
    return [cast("Tensor", outputs)] if hasattr(outputs, "untyped_storage") else []


def returned_bytes(outputs: object) -> int:
    """Bytes of the storages of the outputs, each storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors(outputs)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Disable garbage collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def exact_fp32() -> None:
    """Compute fp32 products in IEEE fp32 on every device; TF32 is a separate dtype.

    torch has two settings for this and raises when they disagree; this call sets both, for cuBLAS and oneDNN.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
