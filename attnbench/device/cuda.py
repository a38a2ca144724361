"""A CUDA GPU: four ways to time a call, clocks and power round every block, the peak of the caching allocator."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable

import torch

from attnbench import host
from attnbench.arm import Device
from attnbench.device import (
    READINGS_MOST,
    TICKS,
    Call,
    Memory,
    Pace,
    Reading,
    collector_off,
    cupti,
    cut,
    exact_fp32,
    returned_bytes,
)
from attnbench.device.nvml import Gauge, steady, tags
from attnbench.device.stopwatch import Shot, Stage, Stopwatch, stopwatch
from attnbench.result import Cache, Environment, Procedure, Timing

# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__EVENT.html: "a resolution of around 0.5 microseconds".
TICK_S = 0.5e-6
SETTLE_LEAST_S, SETTLE_MOST_S = 0.2, 3.0
SETTLE_CALLS = 3
GRAPH_CALLS_MOST = 64
L2_BYTES = 64 * 1024**2  # where the driver does not tell
# Power regimes: in `burst` the device rests after so much work, as long as it worked; `sustained` heats it up first.
BURST_S, REST_MOST_S = 5e-3, 50e-3
SUSTAINED_S = 1.0


class CudaInstrument:
    """The one GPU that this worker sees; in another process, the one of that index."""

    def __init__(self, device: Device) -> None:
        if not torch.cuda.is_available():
            build = (
                "has no CUDA" if torch.version.cuda is None and torch.version.hip is None else "finds no CUDA device"
            )
            raise RuntimeError(f"torch {torch.__version__} {build}")
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
        self._stage = Stage(self.l2_bytes, self.torch_device)
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
        return Environment(device=self.properties.name, facts=facts, packages=host.packages())

    def refuses(self, timing: Timing) -> str | None:
        return cupti.objection() if timing is Timing.CUPTI else None

    def warm(self) -> None:
        """Make the CUDA context, and keep all that is imported out of later garbage collections."""
        self._stage.calibrate()
        self._outside_before = self.outside_bytes()
        gc.collect()
        gc.freeze()

    def settle(self, call: Call, procedure: Procedure) -> Pace:
        started = time.monotonic()
        self._stage.cold = procedure.cache is Cache.COLD
        self._stage.calibrate()
        rough = stopwatch(self._stage, Procedure(timing=Timing.WALL), call, 1)
        times = [rough.take(call, 1).seconds for _ in range(SETTLE_CALLS - 1)]
        calls, _ = pace_of(times[-1], procedure)
        self._stopwatch = stopwatch(self._stage, procedure, call, calls)
        clocks: list[float] = []
        settled, times = False, []
        while not settled and (not times or time.monotonic() - started < SETTLE_MOST_S):
            times.append(self._stopwatch.take(call, calls).seconds)
            clocks += [clock] if (clock := self._gauge.sm_clock_hz()) is not None else []
            settled = time.monotonic() - started >= SETTLE_LEAST_S and (steady(clocks) or not clocks)
        call_s = statistics.median(times[-5:])
        recut, readings = pace_of(call_s, procedure)
        if procedure.timing is not Timing.GRAPH:  # a graph is captured, and holds as many calls as it does
            calls = recut
        return Pace(calls=calls, readings=readings, call_s=call_s, settled=settled, settle_s=time.monotonic() - started)

    def block(self, call: Call, pace: Pace, procedure: Procedure) -> Reading:
        assert self._stopwatch
        if procedure.power == "sustained":
            self._keep_busy(call)
        before = self._gauge.read()
        with collector_off():
            shots = self._shots(self._stopwatch, call, pace, procedure)
        after = self._gauge.read()
        self._stopwatch.check(call)
        reasons = int(before.get("clock_reasons", 0)) | int(after.get("clock_reasons", 0))
        found = dict.fromkeys((*tags(reasons), *(tag for shot in shots for tag in shot.tags)))
        facts = {f"{name}_before": value for name, value in before.items()} | after
        return Reading(values=[shot.seconds for shot in shots], calls=pace.calls, tags=tuple(found), facts=facts)

    def _shots(self, taker: Stopwatch, call: Call, pace: Pace, procedure: Procedure) -> list[Shot]:
        shots: list[Shot] = []
        busy_s = 0.0
        for _ in range(pace.readings):
            if procedure.power == "burst" and busy_s >= BURST_S:
                time.sleep(min(busy_s, REST_MOST_S))
                busy_s = 0.0
            shots.append(taker.take(call, pace.calls))
            busy_s += shots[-1].seconds * pace.calls
        return shots

    def _keep_busy(self, call: Call) -> None:
        until = time.monotonic() + SUSTAINED_S
        while time.monotonic() < until:
            call()
            torch.cuda.synchronize()

    def memory(self, call: Call) -> Memory:
        """What the caching allocator gives, rounded up by it to 512 bytes; `requested` is without the rounding."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        outputs = call()
        torch.cuda.synchronize()
        after = torch.cuda.memory_stats()

        def grown(counter: str, moment: str) -> int:
            return int(after[f"{counter}.all.{moment}"] - before[f"{counter}.all.current"])

        total, held = grown("allocated_bytes", "peak"), max(grown("allocated_bytes", "current"), 0)
        returned = min(returned_bytes(outputs), held)
        facts = {
            "outputs": returned,
            "saved": held - returned,
            "workspace": total - held,
            "requested": grown("requested_bytes", "peak"),
            "reserved": int(after["reserved_bytes.all.peak"]),
        }
        if self._outside_before is not None and (outside := self.outside_bytes()) is not None:
            facts["outside"] = outside - self._outside_before
        return Memory(peak=total - returned, total=total, facts=facts)

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        return self._gauge.energy_meter()

    def allocated(self) -> int | None:
        return int(torch.cuda.memory_allocated())

    def outside_bytes(self) -> int | None:
        """What this process holds on the GPU and torch does not own: the context, and what libraries took."""
        used = self._gauge.process_bytes()
        return None if used is None else used - int(torch.cuda.memory_reserved())

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        self._stopwatch = None
        self._stage.release()
        gc.collect()
        torch.cuda.empty_cache()


def pace_of(call_s: float, procedure: Procedure) -> tuple[int, int]:
    """Calls in a reading and readings in a block. With a cold cache a reading is one call: the second would be warm."""
    call_s = max(call_s, 1e-9)
    if procedure.timing is Timing.GRAPH:
        calls = min(GRAPH_CALLS_MOST, max(1, math.ceil(TICKS * TICK_S / call_s)))
    elif procedure.cache is Cache.COLD:
        calls = 1
    else:
        return cut(call_s, TICK_S, procedure.block_s)
    return calls, min(READINGS_MOST, max(1, math.ceil(procedure.block_s / (calls * call_s))))
