"""A CPU: wall clock, what the system counts meanwhile, the exact allocator peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from attnbench import host
from attnbench.arm import Device
from attnbench.device import Call, Memory, Pace, Reading, collector_off, cut, exact_fp32, returned_bytes
from attnbench.device.counters import Counters, tags
from attnbench.device.energy import rapl
from attnbench.result import Environment, Procedure, Timing

SETTLE_WINDOW = 5  # blocks
SETTLE_WITHIN = 0.02
SETTLE_MOST_S = 2.0
SETTLE_BLOCKS_MOST = 40
WINDOW_MOST_S = 0.25  # longer blocks come in smaller windows
LONG_CALL_S = 0.4  # one such call warms as well as many

_CAPABILITY = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512", "amx": "AVX512"}  # as torch says it

_clock = time.perf_counter_ns


class CpuInstrument:
    """One CPU, with a fixed number of threads."""

    torch_device = "cpu"
    capability = (0, 0)

    def __init__(self, device: Device) -> None:
        self.device = device
        self.threads = device.threads or host.default_threads()
        torch.set_num_threads(self.threads)
        with contextlib.suppress(RuntimeError):  # only once a process
            torch.set_num_interop_threads(1)
        exact_fp32()
        self.isa = torch.backends.cpu.get_cpu_capability()
        if device.isa and self.isa != (wanted := _CAPABILITY[device.isa]):
            raise RuntimeError(f"{device.text}: torch uses {self.isa}; it must start with ATEN_CPU_CAPABILITY={wanted}")
        self.resolution_s = timer_resolution_s()
        self.counters = Counters(host.cores_for(device))

    def environment(self) -> Environment:
        facts = {
            "threads": self.threads,
            "cores": list(host.cores_for(self.device)),
            "isa": self.isa,
            "allocator": host.allocator(),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
            "timer_resolution_s": self.resolution_s,
            "mkl": torch.backends.mkl.is_available(),
            "not_watched": self.counters.left_out,
        }
        return Environment(device=host.cpu_model() or "CPU", facts=facts, packages=host.packages())

    def refuses(self, timing: Timing) -> str | None:
        return None if timing is Timing.WALL else f"a CPU has no timing mode {timing}; it has wall"

    def warm(self) -> None:
        """Use the profiler once, which takes a second, and keep all that is imported out of later collections."""
        self.memory(lambda: torch.zeros(1))
        gc.collect()
        gc.freeze()

    def settle(self, call: Call, procedure: Procedure) -> Pace:
        started = time.monotonic()
        with collector_off():
            blocks = [_timed(call, 1)]
            settled = blocks[0] >= LONG_CALL_S
            while not settled and len(blocks) <= SETTLE_BLOCKS_MOST and time.monotonic() - started < SETTLE_MOST_S:
                calls, readings = cut(blocks[-1], self.resolution_s, procedure.block_s)
                blocks.append(statistics.median(_timed(call, calls) for _ in range(readings)))
                settled = _steady(blocks, procedure.block_s)
        call_s = statistics.median(blocks[-SETTLE_WINDOW:])
        calls, readings = cut(call_s, self.resolution_s, procedure.block_s)
        return Pace(calls=calls, readings=readings, call_s=call_s, settled=settled, settle_s=time.monotonic() - started)

    def block(self, call: Call, pace: Pace, procedure: Procedure) -> Reading:
        with collector_off():
            finish = self.counters.start()
            values = [_timed(call, pace.calls) for _ in range(pace.readings)]
            facts = finish()
        found = tags(facts, pace.calls * pace.readings, self.threads)
        return Reading(values=values, calls=pace.calls, tags=found, facts=facts)

    def memory(self, call: Call) -> Memory:
        """What torch's allocator gives; what MKL or oneDNN take for themselves is not seen."""
        from torch.profiler import ProfilerActivity, profile

        with collector_off(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            outputs = call()
        held = highest = 0
        for _, change in allocations(profiler):
            held += change
            highest = max(highest, held)
        returned = min(returned_bytes(outputs), held)  # what was there before the call is not of its making
        facts = {"outputs": returned, "saved": held - returned, "workspace": highest - held}
        return Memory(peak=highest - returned, total=highest, facts=facts)

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        return rapl()

    def allocated(self) -> int | None:
        return None

    def synchronize(self) -> None:
        """A CPU is never behind."""

    def release(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def timer_resolution_s() -> float:
    """The step of the clock, its own cost included: the median of many."""
    steps = []
    for _ in range(200):
        start = _clock()
        while (end := _clock()) == start:
            pass
        steps.append(end - start)
    return statistics.median(steps) / 1e9


def busy_threads(window_s: float = 0.05) -> float:
    """How many cores this process keeps busy while it does nothing: threads that a kernel left spinning."""
    before, started = time.process_time(), time.monotonic()
    time.sleep(window_s)
    return (time.process_time() - before) / (time.monotonic() - started)


def _steady(blocks: list[float], block_s: float) -> bool:
    """Whether the last two windows agree."""
    width = max(1, min(SETTLE_WINDOW, int(WINDOW_MOST_S / max(blocks[-1], block_s))))
    if len(blocks) < 2 * width:
        return False
    last, before = statistics.median(blocks[-width:]), statistics.median(blocks[-2 * width : -width])
    return abs(last / before - 1) <= SETTLE_WITHIN


def _timed(call: Call, calls: int) -> float:
    """Seconds of one call. The last output lives until the clock has stopped: giving it back is not the call's work."""
    kept = None
    start = _clock()
    for _ in range(calls):
        kept = call()
    elapsed = _clock() - start
    del kept
    return elapsed / calls / 1e9


def allocations(profiler: Any) -> list[tuple[int, int]]:
    """When (ns) and how many bytes were taken (+) or given back (-), in order: the profiler's own memory events."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sorted(((event.start_ns(), event.nbytes()) for event in events), key=lambda change: change[0])
