"""Ceilings of a device: rates of matrix products, memory traffic and exp, and the launch cost of an operation."""

import statistics
import time
from collections.abc import Collection, Iterator
from functools import partial
from typing import NamedTuple

import torch

from attnbench.machine.datasheet import GPU_EXP_PER_CLOCK
from attnbench.machine.device.instrument import Call, collector_off
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Facts

SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # n of an n x n x n product
MAX_PRODUCT_S = 0.25
BURST_BLOCK_S, BURST_BLOCKS, REST_S = 0.02, 8, 0.02
SUSTAINED_S = {"cpu": 1.0, "cuda": 2.0}
# Bytes of one operand; the largest are many times any cache.
WORKING_SETS = {
    "cpu": tuple(2**power for power in range(14, 29, 2)),
    "cuda": tuple(2**power for power in range(20, 33, 2)),
}
TRAFFIC_S = 0.06
EXP_NUMBERS = 2**14  # 64 KiB of fp32: stays in a cache
LAUNCHES = 1000

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
}


class CallTimer:
    """Times calls on one device, warm and without rounds: a ceiling is the best time."""

    def __init__(self, torch_device: str) -> None:
        self.torch_device = torch_device
        self.kind = torch_device.partition(":")[0]

    def times(self, call: Call, block_s: float, blocks: int, rest_s: float = 0.0) -> list[float]:
        """Seconds of a call, one value for each block, with rests between them."""
        first = self._block(call, 1)
        calls = max(1, round(block_s / max(min(first, self._block(call, 1)), 1e-7)))
        times = []
        with collector_off():
            for _ in range(blocks):
                if rest_s:
                    time.sleep(rest_s)
                times.append(self._block(call, calls))
        return times

    def sustained(self, call: Call, seconds: float) -> float:
        """Seconds of a call, over `seconds` without rest: the median of the blocks."""
        calls = max(1, round(BURST_BLOCK_S / max(self._block(call, 1), 1e-7)))
        times: list[float] = []
        until = time.monotonic() + seconds
        with collector_off():
            while time.monotonic() < until or not times:
                times.append(self._block(call, calls))
        return statistics.median(times)

    def _block(self, call: Call, calls: int) -> float:
        if self.kind == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / calls
        begun = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return (time.perf_counter_ns() - begun) / 1e9 / calls


class Calibration(NamedTuple):
    """Ceilings by kind, in the fields of `records.ceilings.Ceilings`; what was not requested is empty."""

    matmul: dict[str, Rate]
    refused: dict[str, str]
    bandwidth: dict[str, tuple[Point, ...]]
    exp_per_s: float | None
    exp_derived: bool
    launch_s: float | None


def calibrate(torch_device: str, facts: Facts, parts: Collection[str]) -> Calibration:
    """Measure `parts` of: matmul, bandwidth, exp, launch. `facts` are those of the device's Environment."""
    timer = CallTimer(torch_device)
    matmul, refused = {}, {}
    for dtype in _DTYPES if "matmul" in parts else ():
        try:
            matmul[dtype] = products(timer, dtype)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            refused[f"matmul {dtype}"] = str(error).partition("\n")[0]
    bandwidth: dict[str, tuple[Point, ...]] = {}
    for kind, point in traffic(timer) if "bandwidth" in parts else ():
        bandwidth[kind] = (*bandwidth.get(kind, ()), point)
    exp_per_s, derived = None, False
    if "exp" in parts:
        exp_per_s, derived = exponentials(timer, facts.get("sm_clock_most_hz"), facts.get("multiprocessors", 0))
    launch = launch_s(timer) if "launch" in parts else None
    return Calibration(matmul, refused, bandwidth, exp_per_s, derived, launch)


def products(timer: CallTimer, dtype: str) -> Rate:
    """FLOP/s of the best size. Raises RuntimeError if the device has no such product."""
    best: tuple[float, int, Call] | None = None
    for size in SIZES[timer.kind]:
        call = _product(timer, dtype, size)
        call()
        seconds = min(timer.times(call, BURST_BLOCK_S, 2))
        rate = 2 * size**3 / seconds
        if best is None or rate > best[0]:
            best = rate, size, call
        if 8 * seconds > MAX_PRODUCT_S:
            break
    assert best
    _, size, call = best
    work = 2 * size**3
    burst = work / min(timer.times(call, BURST_BLOCK_S, BURST_BLOCKS, REST_S))
    sustained = work / timer.sustained(call, SUSTAINED_S[timer.kind])
    # The first blocks of a sustained measurement may be the fastest: a burst is never slower.
    return Rate(burst=max(burst, sustained), sustained=sustained, size=size)


def _product(timer: CallTimer, dtype: str, size: int) -> Call:
    """`out = a b` into a preallocated tensor."""
    kind = _DTYPES[dtype]
    a, b = (torch.randn(size, size, device=timer.torch_device) for _ in range(2))
    if dtype == "fp8_e4m3":
        if timer.kind == "cpu":
            raise RuntimeError("torch has no fp8 product on a CPU")
        scale = torch.ones((), device=timer.torch_device)
        left, right = a.to(kind), b.to(kind).t()
        return lambda: torch._scaled_mm(left, right, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    if dtype == "tf32" and timer.kind == "cpu":
        raise RuntimeError("tf32 is a format of GPUs")
    left, right = a.to(kind), b.to(kind)
    out = torch.empty_like(left)
    if dtype != "tf32":
        return lambda: torch.mm(left, right, out=out)

    def product() -> torch.Tensor:
        torch.set_float32_matmul_precision("high")
        try:
            return torch.mm(left, right, out=out)
        finally:
            torch.set_float32_matmul_precision("highest")

    return product


def traffic(timer: CallTimer) -> Iterator[tuple[str, Point]]:
    """copy (one read, one write), read (a sum) and triad (two reads, one write), over rising working sets.

    Bytes are counted as in STREAM (https://www.cs.virginia.edu/stream/ref.html): what is read and written, without the
    lines that a cache reads before it overwrites them.
    """
    for size in WORKING_SETS[timer.kind]:
        numbers = size // 4
        a, b, c = (torch.ones(numbers, device=timer.torch_device) for _ in range(3))
        kinds: dict[str, tuple[int, Call]] = {
            "copy": (2, partial(b.copy_, a)),
            "read": (1, partial(torch.sum, a)),
            "triad": (3, partial(torch.add, a, b, alpha=2.0, out=c)),
        }
        for kind, (operands, call) in kinds.items():
            call()
            # Short blocks: on a shared machine the best block is one without disturbance.
            seconds = min(timer.times(call, TRAFFIC_S / 6, 6))
            yield kind, Point(bytes=operands * size, rate=operands * size / seconds)


def exponentials(timer: CallTimer, clock_hz: float | None, multiprocessors: int) -> tuple[float | None, bool]:
    """The faster of exp and exp2 of fp32, in results a second; and whether it is derived, as for a GPU."""
    if timer.kind == "cuda":
        return (GPU_EXP_PER_CLOCK * multiprocessors * clock_hz if clock_hz else None), True
    numbers = torch.randn(EXP_NUMBERS * torch.get_num_threads())
    out = torch.empty_like(numbers)
    seconds = [min(timer.times(partial(f, numbers, out=out), 0.01, 10)) for f in (torch.exp, torch.exp2)]
    return numbers.numel() / min(seconds), False


def launch_s(timer: CallTimer) -> float:
    """Seconds of host time for one operation on a single number: the least cost of any operation."""
    number = torch.ones(1, device=timer.torch_device)
    times = []
    for _ in range(10):
        begun = time.perf_counter_ns()
        for _ in range(LAUNCHES):
            torch.add(number, number, out=number)
        times.append((time.perf_counter_ns() - begun) / 1e9 / LAUNCHES)
        if timer.kind == "cuda":
            torch.cuda.synchronize()
    return min(times)
