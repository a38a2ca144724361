"""A CUDA GPU: four timing modes, clocks and power around every block, the peak of the caching allocator."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable

import torch

from attnbench.machine import identity
from attnbench.machine.device.instrument import (
    MAX_READINGS,
    TICKS,
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
from attnbench.machine.device.nvml import Gauge, steady, tags
from attnbench.machine.device.stopwatch import SingleReading, StartState, Stopwatch, cupti_objection, stopwatch
from attnbench.records.arm import Device
from attnbench.records.result import Cache, Environment, Procedure, Timing

# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html: "a resolution of around 0.5 microseconds".
TICK_S = 0.5e-6
MIN_SETTLE_S, MAX_SETTLE_S = 0.2, 3.0
SETTLE_CALLS = 3
MAX_GRAPH_CALLS = 64
L2_BYTES = 64 * 1024**2  # if the driver does not report it
# Power regimes: `burst` lets the device rest after so much work, for as long; `sustained` heats it up first.
BURST_S, MAX_REST_S = 5e-3, 50e-3
SUSTAINED_S = 1.0


class CudaInstrument:
    """The only GPU that is visible to this worker; in a process that sees several, the GPU of that index."""

    def __init__(self, device: Device) -> None:
        if not torch.cuda.is_available():
            has_cuda = torch.version.cuda or torch.version.hip
            raise RuntimeError(f"torch {torch.__version__} {'finds no CUDA device' if has_cuda else 'has no CUDA'}")
        count = torch.cuda.device_count()
        index = 0 if count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else device.index
        if index >= count:
            raise RuntimeError(f"no cuda:{index}; torch sees {count}")
        torch.cuda.set_device(index)
        exact_fp32()
        self.torch_device = f"cuda:{index}"
        self.properties = torch.cuda.get_device_properties(index)
        self.capability = (int(self.properties.major), int(self.properties.minor))
        self.l2_bytes = int(getattr(self.properties, "L2_cache_size", 0)) or L2_BYTES
        self._gauge = Gauge(str(getattr(self.properties, "uuid", "")))
        self._start_state = StartState(self.l2_bytes, self.torch_device)
        self._stopwatch: Stopwatch | None = None
        self._outside_before: int | None = None

    def environment(self) -> Environment:
        facts = {
            "capability": f"{self.capability[0]}.{self.capability[1]}",
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "memory_bytes": self.properties.total_memory,
            "multiprocessors": self.properties.multi_processor_count,
            "l2_bytes": self.l2_bytes,
            **self._gauge.about(),
        }
        return Environment(device=self.properties.name, facts=facts, packages=identity.packages())

    def timing_objection(self, timing: Timing) -> str | None:
        return cupti_objection() if timing is Timing.CUPTI else None

    def warm(self) -> None:
        """Create the CUDA context, and exclude all imported objects from later garbage collections."""
        self._start_state.calibrate()
        self._outside_before = self.outside_bytes()
        gc.collect()
        gc.freeze()

    def settle(self, call: Call, procedure: Procedure, known_s: float = 0.0) -> Pace:
        started = time.monotonic()
        self._start_state.cold = procedure.cache is Cache.COLD
        self._start_state.calibrate()
        wall = stopwatch(self._start_state, Procedure(timing=Timing.WALL), call, 1)
        times = [wall.take(call, 1).seconds for _ in range(SETTLE_CALLS - 1)]
        calls, _ = cuda_block_shape(times[-1], procedure)
        self._stopwatch = stopwatch(self._start_state, procedure, call, calls)
        clocks: list[float] = []
        settled, times = False, []
        while not settled and (not times or time.monotonic() - started < MAX_SETTLE_S):
            times.append(self._stopwatch.take(call, calls).seconds)
            clocks += [clock] if (clock := self._gauge.sm_clock_hz()) is not None else []
            settled = time.monotonic() - started >= MIN_SETTLE_S and (steady(clocks) or not clocks)
        call_s, settle_calls = statistics.median(times[-5:]), SETTLE_CALLS - 1 + calls * len(times)
        calls_now, readings = cuda_block_shape(call_s, procedure)
        if procedure.timing is not Timing.GRAPH:  # the number of calls in a captured graph is fixed
            calls = calls_now
        settle_s = time.monotonic() - started
        return Pace(
            calls=calls, readings=readings, call_s=call_s, settled=settled, settle_s=settle_s, settle_calls=settle_calls
        )

    def block(self, call: Call, pace: Pace, procedure: Procedure, spot: Spot | None = None) -> BlockReading:
        assert self._stopwatch
        if procedure.power == "sustained":
            self._keep_busy(call)
        before = self._gauge.read()
        with collector_off():
            readings = self._take(self._stopwatch, call, pace, procedure, spot)
        after = self._gauge.read()
        self._stopwatch.check(call)
        reasons = int(before.get("clock_reasons", 0)) | int(after.get("clock_reasons", 0))
        disturbances = dict.fromkeys((*tags(reasons), *(tag for reading in readings for tag in reading.tags)))
        facts = {f"{name}_before": value for name, value in before.items()} | after
        values = [reading.seconds for reading in readings]
        return BlockReading(values=values, calls=pace.calls, tags=tuple(disturbances), facts=facts)

    def _take(
        self, timer: Stopwatch, call: Call, pace: Pace, procedure: Procedure, spot: Spot | None
    ) -> list[SingleReading]:
        readings: list[SingleReading] = []
        busy_s = 0.0
        for _ in range(pace.readings):
            if procedure.power == "burst" and busy_s >= BURST_S:
                time.sleep(min(busy_s, MAX_REST_S))
                busy_s = 0.0
            readings.append(timer.take(call, pace.calls))
            busy_s += readings[-1].seconds * pace.calls
            if spot and len(readings) == spot.reading + 1:
                spot.look()
        return readings

    def _keep_busy(self, call: Call) -> None:
        until = time.monotonic() + SUSTAINED_S
        while time.monotonic() < until:
            call()
            torch.cuda.synchronize()

    def memory(self, call: Call) -> CallMemory:
        """Memory of the caching allocator, which rounds up to 512 bytes; `requested` is without rounding."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        outputs = call()
        torch.cuda.synchronize()
        after = torch.cuda.memory_stats()

        def grown(counter: str, moment: str) -> int:
            return int(after[f"{counter}.all.{moment}"] - before[f"{counter}.all.current"])

        total, allocated = grown("allocated_bytes", "peak"), max(grown("allocated_bytes", "current"), 0)
        returned = min(returned_bytes(outputs), allocated)
        facts = {
            "outputs": returned,
            "saved": allocated - returned,
            "workspace": total - allocated,
            "requested": grown("requested_bytes", "peak"),
            "reserved": int(after["reserved_bytes.all.peak"]),
        }
        if self._outside_before is not None and (outside := self.outside_bytes()) is not None:
            facts["outside"] = max(outside - self._outside_before, 0)  # another process may have freed memory
        return CallMemory(peak=total - returned, total=total, facts=facts)

    def process_memory(self, call: Call) -> CallMemory | None:
        return None  # libraries on a GPU are measured by `outside_bytes`

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        return self._gauge.energy_meter()

    def allocated(self) -> int | None:
        return int(torch.cuda.memory_allocated())

    def outside_bytes(self) -> int | None:
        """Memory of this process on the GPU outside torch: the context, and what libraries allocated."""
        used = self._gauge.process_bytes()
        return None if used is None else used - int(torch.cuda.memory_reserved())

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        self._stopwatch = None
        self._start_state.release()
        gc.collect()
        torch.cuda.empty_cache()


def cuda_block_shape(call_s: float, procedure: Procedure) -> tuple[int, int]:
    """Calls in a reading and readings in a block. With a cold cache a reading is one call: a second would be warm."""
    call_s = max(call_s, 1e-9)
    if procedure.timing is Timing.GRAPH:
        calls = min(MAX_GRAPH_CALLS, max(1, math.ceil(TICKS * TICK_S / call_s)))
    elif procedure.cache is Cache.COLD:
        calls = 1
    else:
        return block_shape(call_s, TICK_S, procedure.block_s)
    return calls, min(MAX_READINGS, max(1, math.ceil(procedure.block_s / (calls * call_s))))
