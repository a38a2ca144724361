"""A CPU: wall clock, page faults and steal, the exact allocator peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attnbench import host
from attnbench.arm import Device
from attnbench.device import Call, Memory, Pace, Reading, returned_bytes
from attnbench.result import Environment, Procedure, Timing

READINGS_MOST = 16
RESOLUTIONS = 1000  # a reading is at least that many ticks of the timer long
SETTLE_WINDOW = 5
SETTLE_WITHIN = 0.02
SETTLE_MOST_S = 2.0
SETTLE_CALLS_MOST = 400
FAULTS_A_CALL = (
    64  # after settling there should be none: more means that the allocator gives memory back and asks again
)
STOLEN_SHARE = 0.01

_perf = time.perf_counter_ns


class CpuInstrument:
    """One CPU, with a fixed number of threads on fixed cores."""

    torch_device = "cpu"
    capability = (0, 0)

    def __init__(self, device: Device) -> None:
        self.device = device
        self.threads = device.threads or host.default_threads()
        torch.set_num_threads(self.threads)
        with contextlib.suppress(RuntimeError):  # only once a process
            torch.set_num_interop_threads(1)
        self.resolution_s = timer_resolution_s()

    def environment(self) -> Environment:
        facts = {
            "threads": self.threads,
            "cores": list(host.cores_for(self.device)),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "allocator": host.allocator(),
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
            "timer_resolution_s": self.resolution_s,
        }
        return Environment(device=host.cpu_model() or "CPU", facts=facts, packages=host.packages())

    def refuses(self, timing: Timing) -> str | None:
        return None if timing is Timing.WALL else f"a CPU has no timing mode {timing}; it has wall"

    def warm(self) -> None:
        self.memory(lambda: torch.zeros(1))  # the profiler's first use takes over a second

    def settle(self, call: Call, procedure: Procedure) -> Pace:
        started = time.monotonic()
        first_s = _timed(call, 1)
        calls = self._calls(first_s)
        windows: list[float] = [first_s]
        settled = first_s > SETTLE_MOST_S / SETTLE_WINDOW  # one long call warms as well as many
        while not settled and time.monotonic() - started < SETTLE_MOST_S and len(windows) < SETTLE_CALLS_MOST:
            windows.append(_timed(call, calls))
            last, before = windows[-SETTLE_WINDOW:], windows[-2 * SETTLE_WINDOW : -SETTLE_WINDOW]
            if len(before) == SETTLE_WINDOW:
                near = statistics.median(before) / statistics.median(last)
                settled = abs(near - 1) < SETTLE_WITHIN
        call_s = statistics.median(windows[-SETTLE_WINDOW:])
        calls = self._calls(call_s)
        readings = max(1, min(READINGS_MOST, math.ceil(procedure.block_s / (calls * call_s))))
        calls = max(calls, math.ceil(procedure.block_s / (readings * call_s)))
        return Pace(calls=calls, readings=readings, call_s=call_s, settled=settled, settle_s=time.monotonic() - started)

    def _calls(self, call_s: float) -> int:
        return max(1, -int(-RESOLUTIONS * self.resolution_s // max(call_s, 1e-9)))

    def block(self, call: Call, pace: Pace, procedure: Procedure) -> Reading:
        with _without_collector():
            before = _Meter()
            values = [_timed(call, pace.calls) for _ in range(pace.readings)]
            facts = before.since()
        return Reading(values=values, calls=pace.calls, tags=tags(facts, pace.calls * pace.readings), facts=facts)

    def memory(self, call: Call) -> Memory:
        from torch.profiler import ProfilerActivity, profile

        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            outputs = call()
        returned = returned_bytes(outputs)
        del outputs
        running = highest = 0
        for change in _allocations(profiler):
            running += change
            highest = max(highest, running)
        return Memory(peak=max(highest - returned, 0), total=highest, facts={"returned": returned})

    def synchronize(self) -> None:
        """A CPU is never behind."""

    def release(self) -> None:
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)


def timer_resolution_s() -> float:
    """The least step that the clock shows between two readings, taken from many."""
    steps = []
    for _ in range(200):
        start = _perf()
        while (end := _perf()) == start:
            pass
        steps.append(end - start)
    return statistics.median(steps) / 1e9


def busy_threads(window_s: float = 0.05) -> float:
    """How many cores this process keeps busy while it does nothing: threads that a kernel left spinning."""
    before, started = time.process_time(), time.monotonic()
    time.sleep(window_s)
    return (time.process_time() - before) / (time.monotonic() - started)


def tags(facts: dict[str, float], calls: int) -> tuple[str, ...]:
    """What disturbed a block, judged from its facts."""
    found = []
    if facts["minor_faults"] / calls > FAULTS_A_CALL:
        found.append("faulted")
    if facts.get("stolen_s", 0.0) > STOLEN_SHARE * facts["seconds"]:
        found.append("stolen")
    if facts.get("throttled", 0.0) > 0:
        found.append("throttled")
    return tuple(found)


def _timed(call: Call, calls: int) -> float:
    kept = None
    start = _perf()
    for _ in range(calls):
        kept = call()
    elapsed = _perf() - start
    del kept
    return elapsed / calls / 1e9


class _Meter:
    """Counters of this process and of the machine, read before and after a block."""

    def __init__(self) -> None:
        self._machine = _machine_counters()
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self._started = _perf()

    def since(self) -> dict[str, float]:
        """What has come since."""
        seconds = (_perf() - self._started) / 1e9
        now = resource.getrusage(resource.RUSAGE_SELF)
        machine = _machine_counters()
        return {
            "seconds": seconds,
            "minor_faults": now.ru_minflt - self._usage.ru_minflt,
            "major_faults": now.ru_majflt - self._usage.ru_majflt,
            "voluntary_switches": now.ru_nvcsw - self._usage.ru_nvcsw,
            "involuntary_switches": now.ru_nivcsw - self._usage.ru_nivcsw,
            **{name: value - self._machine[name] for name, value in machine.items() if name in self._machine},
        }


def _machine_counters() -> dict[str, float]:
    counters: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        counters["stolen_s"] = int(first[8]) / os.sysconf("SC_CLK_TCK")  # proc(5): the eighth figure of the cpu line
    with contextlib.suppress(OSError):
        for line in Path("/sys/fs/cgroup/cpu.stat").read_text().splitlines():
            if line.startswith("nr_throttled "):
                counters["throttled"] = float(line.split()[1])
    return counters


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    gc.freeze()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.unfreeze()


def _allocations(profiler: Any) -> list[int]:
    """Bytes taken (+) and given back (-), in order: the profiler's own memory events."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return [event.nbytes() for event in events]
