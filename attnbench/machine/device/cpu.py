"""A CPU: wall clock, system counters during a block, the exact allocator peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attnbench.machine import hardware, identity, resources
from attnbench.machine.device import process_memory
from attnbench.machine.device.counters import Counters, tags
from attnbench.machine.device.energy import rapl
from attnbench.machine.device.instrument import (
    BlockReading,
    Call,
    CallMemory,
    Pace,
    Spot,
    block_shape,
    collector_off,
    exact_fp32,
    returned_bytes,
)
from attnbench.records.arm import Device
from attnbench.records.result import Environment, Procedure, Timing

if TYPE_CHECKING:
    from torch.autograd.profiler import profile

# The length of blocks needs no more precision; rounds in which a call still warms up are excluded afterwards.
SETTLE_WITHIN = 0.1
MIN_SETTLE_BLOCKS, MAX_SETTLE_BLOCKS = 2, 8
MAX_SETTLE_S = 2.0
READY_SAMPLES = 5  # of the threads of an idle process
LONG_CALL_S = 0.4  # one call of this length warms up as well as many short ones

_CAPABILITY = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512", "amx": "AVX512"}  # torch's names

_clock = time.perf_counter_ns


class CpuInstrument:
    """One CPU, with a fixed number of threads."""

    torch_device = "cpu"
    capability = (0, 0)

    def __init__(self, device: Device) -> None:
        self.device = device
        self.threads = device.threads or resources.default_threads()
        torch.set_num_threads(self.threads)
        with contextlib.suppress(RuntimeError):  # allowed once in a process
            torch.set_num_interop_threads(1)
        exact_fp32()
        self.isa = torch.backends.cpu.get_cpu_capability()
        if device.isa and self.isa != (required := _CAPABILITY[device.isa]):
            remedy = f"it must start with ATEN_CPU_CAPABILITY={required}"
            raise RuntimeError(f"{device.text}: torch uses {self.isa}; {remedy}")
        self.resolution_s = timer_resolution_s()
        self.counters = Counters(resources.cores_for(device))

    def environment(self) -> Environment:
        facts = {
            "threads": self.threads,
            "cores": list(resources.cores_for(self.device)),
            "isa": self.isa,
            "allocator": identity.allocator(),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
            "timer_resolution_s": self.resolution_s,
            "mkl": torch.backends.mkl.is_available(),
            "not_watched": self.counters.left_out,
        }
        return Environment(device=hardware.cpu_model() or "CPU", facts=facts, packages=identity.packages())

    def timing_objection(self, timing: Timing) -> str | None:
        return None if timing is Timing.WALL else f"a CPU has no timing mode {timing}; it has wall"

    def warm(self) -> None:
        """Use the profiler once, and exclude imported objects from later garbage collections."""
        self.memory(lambda: torch.zeros(1))
        gc.collect()
        gc.freeze()

    def settle(self, call: Call, procedure: Procedure, known_s: float = 0.0) -> Pace:
        started = time.monotonic()
        with collector_off():
            blocks, made = [_timed(call, 1)], 1
            settled = blocks[0] >= LONG_CALL_S
            while not settled and len(blocks) <= MAX_SETTLE_BLOCKS and time.monotonic() - started < MAX_SETTLE_S:
                before_s = known_s or blocks[-1]
                calls, readings = block_shape(before_s, self.resolution_s, procedure.block_s)
                blocks.append(statistics.median(_timed(call, calls) for _ in range(readings)))
                made += calls * readings
                steady = abs(blocks[-1] / before_s - 1) <= SETTLE_WITHIN
                settled = steady and (known_s > 0 or len(blocks) > MIN_SETTLE_BLOCKS)
                known_s = 0.0  # compared once: a time that has changed settles as an unknown one does
        call_s = statistics.median(blocks[1:][-MIN_SETTLE_BLOCKS:] or blocks)
        calls, readings = block_shape(call_s, self.resolution_s, procedure.block_s)
        settle_s = time.monotonic() - started
        return Pace(
            calls=calls, readings=readings, call_s=call_s, settled=settled, settle_s=settle_s, settle_calls=made
        )

    def block(self, call: Call, pace: Pace, procedure: Procedure, spot: Spot | None = None) -> BlockReading:
        with collector_off():
            finish = self.counters.start()
            values = [
                _timed_around(call, pace.calls, spot) if spot and number == spot.reading else _timed(call, pace.calls)
                for number in range(pace.readings)
            ]
            facts = finish()
        disturbances = tags(facts, pace.calls * pace.readings, self.threads)
        return BlockReading(values=values, calls=pace.calls, tags=disturbances, facts=facts)

    def memory(self, call: Call) -> CallMemory:
        """Memory of torch's allocator; allocations of MKL and oneDNN are not seen."""
        # Not torch.profiler.profile: it imports torch._inductor, which takes longer than torch itself.
        from torch.autograd.profiler import profile

        with collector_off(), profile(profile_memory=True, use_kineto=True) as profiler:
            outputs = call()
        allocated = highest = 0
        for _, change in allocations(profiler):
            allocated += change
            highest = max(highest, allocated)
        allocated = max(allocated, 0)  # the call may free what was allocated before it
        returned = min(returned_bytes(outputs), allocated)  # a returned tensor may be older than the call
        facts = {"outputs": returned, "saved": allocated - returned, "workspace": highest - allocated}
        return CallMemory(peak=highest - returned, total=highest, facts=facts)

    def process_memory(self, call: Call) -> CallMemory | None:
        """Memory of the whole process, for a library with an allocator of its own; None where Linux has no figure."""
        if (before := process_memory.reset()) is None:
            return None
        with collector_off():
            outputs = call()
        total = process_memory.grown(before)
        returned = min(returned_bytes(outputs), total)
        return CallMemory(
            peak=total - returned, total=total, facts={"outputs": returned, "workspace": total - returned}
        )

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        return rapl()

    def allocated(self) -> int | None:
        return None

    def synchronize(self) -> None:
        """Nothing to wait for: calls are synchronous."""

    def release(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(0)


def timer_resolution_s() -> float:
    """The step of the clock, including the cost of reading it: the median of many."""
    steps = []
    for _ in range(200):
        start = _clock()
        while (end := _clock()) == start:
            pass
        steps.append(end - start)
    return statistics.median(steps) / 1e9


def busy_threads(window_s: float = 0.05) -> float:
    """How many threads of this idle process want a core all the time, because a kernel left them spinning.

    The CPU time that they get depends on what else runs. Linux also reports which threads are ready to run; a
    thread that waits for Python's lock is not among them, so the higher of both counts.
    """
    before, started, ready = time.process_time(), time.monotonic(), []
    for _ in range(READY_SAMPLES):
        time.sleep(window_s / READY_SAMPLES)
        ready.append(_ready_threads())
    return max((time.process_time() - before) / (time.monotonic() - started), statistics.median(ready))


def _ready_threads() -> int:
    """How many other threads of this process run or are ready to; 0 where there is no /proc."""
    this_thread, ready = threading.get_native_id(), 0
    for stat in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has ended
            ready += int(stat.parent.name) != this_thread and stat.read_text().rpartition(")")[2].split()[0] == "R"
    return ready


def _timed(call: Call, calls: int) -> float:
    """Seconds of one call. The last output lives until the clock has stopped, so that freeing it is not timed."""
    output = None
    start = _clock()
    for _ in range(calls):
        output = call()
    elapsed = _clock() - start
    del output
    return elapsed / calls / 1e9


def _timed_around(call: Call, calls: int, spot: Spot) -> float:
    """As `_timed`, in two parts with a look between them."""
    total = _timed(call, spot.call) * spot.call
    spot.look()
    rest = calls - spot.call
    return (total + (_timed(call, rest) * rest if rest else 0.0)) / calls


def allocations(profiler: profile) -> list[tuple[int, int]]:
    """Time (ns) and bytes of every allocation (+) and release (-), in order, from the profiler's memory events."""
    assert profiler.kineto_results
    events: list[Any] = [
        event for event in profiler.kineto_results.events() if event.name() == "[memory]"
    ]  # stubs lack nbytes
    return sorted(((event.start_ns(), event.nbytes()) for event in events), key=lambda change: change[0])
