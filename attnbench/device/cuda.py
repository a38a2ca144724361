"""A CUDA GPU: event, graph and wall timing with a cold or a warm L2, the allocator's peak, clocks round every block."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from attnbench import host
from attnbench.arm import Device
from attnbench.device import Call, Memory, Pace, Reading, returned_bytes
from attnbench.device.nvml import Gauge, tags
from attnbench.result import Cache, Environment, Procedure, Timing

READINGS_MOST = 16
SETTLE_LEAST_S, SETTLE_MOST_S = 0.2, 3.0
SETTLE_CALLS = 3
CLOCKS, CLOCKS_WITHIN = 5, 0.01
L2_BYTES = 64 * 1024**2  # where the driver does not tell
FLUSHED = 2  # times the L2
# The host needs this many times its own launch time before the start event may fire.
HIDDEN = 2.0
HIDDEN_LEAST_S, HIDDEN_MOST_S = 50e-6, 5e-3
GRAPH_CALLS_MOST = 64


class CudaInstrument:
    """The one GPU that this worker sees."""

    torch_device = "cuda:0"

    def __init__(self, device: Device) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device: a CPU build of torch, or no driver")
        self.device = device
        self.properties = torch.cuda.get_device_properties(0)
        self.capability = (self.properties.major, self.properties.minor)
        self.l2_bytes = getattr(self.properties, "L2_cache_size", 0) or L2_BYTES
        self._gauge = Gauge(device.index)
        self._flusher: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._graph_of: Call | None = None
        self._launch_s = HIDDEN_LEAST_S
        self._cycles_s = 0.0
        exact_fp32()

    def environment(self) -> Environment:
        facts = {
            "capability": f"{self.capability[0]}.{self.capability[1]}",
            "cuda": torch.version.cuda or torch.version.hip,
            "memory_bytes": self.properties.total_memory,
            "multiprocessors": self.properties.multi_processor_count,
            "l2_bytes": self.l2_bytes,
            "driver": next((gpu.driver for gpu in host.gpus()), None),
            **self._gauge.about(),
        }
        return Environment(device=self.properties.name, facts=facts, packages=host.packages())

    def refuses(self, timing: Timing) -> str | None:
        if timing is Timing.CUPTI:
            if find_spec("cupti") is None:
                return "timing mode cupti needs cupti-python: pip install cupti-python"
            return "timing mode cupti is not built yet; there are events, graph and wall"
        return None

    def warm(self) -> None:
        torch.zeros(1, device=self.torch_device)
        start = time.perf_counter()
        torch.cuda._sleep(1_000_000)
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.cuda._sleep(10_000_000)
        torch.cuda.synchronize()
        self._cycles_s = 10_000_000 / (time.perf_counter() - start)

    def settle(self, call: Call, procedure: Procedure) -> Pace:
        self._graph = None
        started = time.monotonic()
        times: list[float] = []
        clocks: list[float] = []
        steady = False
        while time.monotonic() - started < SETTLE_MOST_S and not steady:
            begun = time.perf_counter()
            call()
            self._launch_s = time.perf_counter() - begun
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
            clocks += [reading["sm_clock_hz"]] if "sm_clock_hz" in (reading := self._gauge.read()) else []
            last = clocks[-CLOCKS:]
            calm = not clocks or (len(last) == CLOCKS and max(last) <= (1 + CLOCKS_WITHIN) * min(last))
            steady = calm and len(times) >= SETTLE_CALLS and time.monotonic() - started >= SETTLE_LEAST_S
        call_s = statistics.median(times[-5:])
        calls, readings = cut(call_s, procedure)
        return Pace(calls=calls, readings=readings, call_s=call_s, settled=steady, settle_s=time.monotonic() - started)

    def block(self, call: Call, pace: Pace, procedure: Procedure) -> Reading:
        before = self._gauge.read()
        gc.disable()
        try:
            read = {Timing.WALL: self._wall, Timing.EVENTS: self._events, Timing.GRAPH: self._replayed}[
                procedure.timing
            ]
            taken = [read(call, pace, procedure) for _ in range(pace.readings)]
        finally:
            gc.enable()
        after = self._gauge.read()
        facts = {f"{name}_before": value for name, value in before.items()} | after
        reasons = int(before.get("clock_reasons", 0)) | int(after.get("clock_reasons", 0))
        bound = ("host_bound",) if any(not hidden for _, hidden in taken) else ()
        return Reading(
            values=[seconds for seconds, _ in taken], calls=pace.calls, tags=(*tags(reasons), *bound), facts=facts
        )

    def _wall(self, call: Call, pace: Pace, procedure: Procedure) -> tuple[float, bool]:
        self._prepare_cache(procedure)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(pace.calls):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / pace.calls, True

    def _events(self, call: Call, pace: Pace, procedure: Procedure) -> tuple[float, bool]:
        def work() -> None:
            for _ in range(pace.calls):
                call()

        return self._between_events(work, pace.calls, procedure)

    def _replayed(self, call: Call, pace: Pace, procedure: Procedure) -> tuple[float, bool]:
        if self._graph is None or self._graph_of is not call:
            self._graph, self._graph_of = self._captured(call, pace.calls), call
        return self._between_events(self._graph.replay, pace.calls, procedure)

    def _between_events(self, work: Callable[[], Any], calls: int, procedure: Procedure) -> tuple[float, bool]:
        """Seconds a call on the current stream, and whether the host had queued all of it before it began."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self._prepare_cache(procedure)
        hide_s = min(max(HIDDEN * calls * self._launch_s, HIDDEN_LEAST_S), HIDDEN_MOST_S)
        if self._cycles_s:
            torch.cuda._sleep(int(hide_s * self._cycles_s))
        start.record()
        work()
        end.record()
        hidden = not start.query()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / calls, hidden

    def _prepare_cache(self, procedure: Procedure) -> None:
        """Cold: write twice the L2, so that every reading starts as it would between other layers."""
        if procedure.cache is not Cache.COLD:
            return
        if self._flusher is None:
            self._flusher = torch.empty(FLUSHED * self.l2_bytes, dtype=torch.int8, device=self.torch_device)
        self._flusher.zero_()

    def _captured(self, call: Call, calls: int) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        outside = self._kernels(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                call()
        inside = self._kernels(graph.replay)
        # A capture can skip a kernel, and pass on what the call before it left.
        if inside < calls * outside:
            raise RuntimeError(f"the CUDA graph holds {inside} kernels; {calls} calls launch {calls * outside}")
        return graph

    @staticmethod
    def _kernels(work: Callable[[], Any]) -> int:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize()
        return sum("CUDA" in str(event.device_type) for event in profiler.events())

    def memory(self, call: Call) -> Memory:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = call()
        torch.cuda.synchronize()
        total = torch.cuda.max_memory_allocated() - before
        returned = returned_bytes(outputs)
        facts = {"returned": returned, "reserved": torch.cuda.max_memory_reserved()}
        return Memory(peak=max(total - returned, 0), total=total, facts=facts)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        self._graph = self._graph_of = self._flusher = None
        gc.collect()
        torch.cuda.empty_cache()


def cut(call_s: float, procedure: Procedure) -> tuple[int, int]:
    """Calls in a reading and readings in a block. With a cold cache a reading is one call: the second would be warm."""
    if procedure.cache is Cache.COLD and procedure.timing is not Timing.GRAPH:
        calls = 1
    else:
        calls = max(1, min(GRAPH_CALLS_MOST, math.ceil(procedure.block_s / READINGS_MOST / call_s)))
    return calls, max(1, min(READINGS_MOST, math.ceil(procedure.block_s / (calls * call_s))))


def exact_fp32() -> None:
    """fp32 is IEEE here; TF32 is a dtype of its own. torch has two ways to say it, and refuses a mixture."""
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    else:
        torch.backends.cuda.matmul.allow_tf32 = False
