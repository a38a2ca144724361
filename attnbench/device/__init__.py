"""How a device is measured: clocks, memory, energy. Imported by the worker alone; torch is at home here."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from attnbench.arm import Device
from attnbench.result import Environment, Procedure, Timing

if TYPE_CHECKING:
    from torch import Tensor

Call = Callable[[], Any]

READINGS_MOST = 16  # in a block
TICKS = 1000  # a reading is at least that many steps of its clock long


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How a block is cut: `readings` values, each the mean time of `calls` calls in a row."""

    calls: int
    readings: int
    call_s: float  # of one call, while settling
    settled: bool  # whether it grew steady in the time allowed
    settle_s: float


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One block: seconds a call for each reading, and what the machine did meanwhile."""

    values: list[float]
    calls: int
    tags: tuple[str, ...] = ()
    facts: dict[str, float] = {}


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one call, after a warm call, outside the timed rounds. `peak` is over inputs and outputs."""

    peak: int  # highest allocated during the call, above what was allocated before it, less what it returns
    total: int  # highest allocated during the call, above what was allocated before it
    facts: dict[str, int] = {}


class Instrument(Protocol):
    """One device, ready to measure."""

    torch_device: str
    capability: tuple[int, int]

    def environment(self) -> Environment:
        """What this device and its software are."""

    def refuses(self, timing: Timing) -> str | None:
        """Why that timing mode cannot be had here, or None."""

    def warm(self) -> None:
        """Do once what the first measurement would else pay for."""

    def settle(self, call: Call, procedure: Procedure) -> Pace:
        """Call until the time is steady, within the limits of docs/method.md, and cut the blocks."""

    def block(self, call: Call, pace: Pace, procedure: Procedure) -> Reading:
        """One timed block."""

    def memory(self, call: Call) -> Memory:
        """The exact allocator peak of one call; to be made after a warm call."""

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        """What counts energy, and a function that gives the joules so far; or why nothing does."""

    def allocated(self) -> int | None:
        """Bytes that torch holds now; None where that is not told."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def release(self) -> None:
        """Forget the call; give cached memory back to the system."""


def cut(call_s: float, tick_s: float, block_s: float) -> tuple[int, int]:
    """Calls in a reading and readings in a block, for a call of that length and a clock of that step."""
    call_s = max(call_s, 1e-9)
    calls = max(1, math.ceil(TICKS * tick_s / call_s))
    readings = min(READINGS_MOST, max(1, math.ceil(block_s / (calls * call_s))))
    return max(calls, math.ceil(block_s / (readings * call_s))), readings


def instrument(device: Device) -> Instrument:
    """The instrument of that device. Raises RuntimeError, saying why, where it is not there."""
    if device.kind == "cuda":
        from attnbench.device.cuda import CudaInstrument

        return CudaInstrument(device)
    from attnbench.device.cpu import CpuInstrument

    return CpuInstrument(device)


def tensors(outputs: Any) -> list[Tensor]:
    """Those of a nest of tuples and lists, in order."""
    if isinstance(outputs, tuple | list):
        return [tensor for item in outputs for tensor in tensors(item)]
    return [outputs] if hasattr(outputs, "untyped_storage") else []


def returned_bytes(outputs: Any) -> int:
    """Bytes of the storages given back, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors(outputs)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def exact_fp32() -> None:
    """fp32 is IEEE on every device; TF32 is a dtype of its own.

    torch has two ways to say it and refuses to read a mixture; this one sets both, for cuBLAS and oneDNN.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
