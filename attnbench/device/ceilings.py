"""What a device can do at most: matrix products, memory traffic, exp, and the cost of starting anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch

from attnbench.ceilings import Point, Rate
from attnbench.datasheet import GPU_EXP_PER_CLOCK
from attnbench.device import Call, collector_off

SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # n of an n x n x n product
PRODUCT_MOST_S = 0.25
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


class Meter:
    """Times calls on one device, warm and without rounds: a ceiling is the best that can be had."""

    def __init__(self, torch_device: str) -> None:
        self.torch_device = torch_device
        self.kind = torch_device.partition(":")[0]

    def times(self, call: Call, block_s: float, blocks: int, rest_s: float = 0.0) -> list[float]:
        """Seconds of a call, one value a block."""
        once = self._block(call, 1)
        calls = max(1, round(block_s / max(min(once, self._block(call, 1)), 1e-7)))
        found = []
        with collector_off():
            for _ in range(blocks):
                if rest_s:
                    time.sleep(rest_s)
                found.append(self._block(call, calls))
        return found

    def sustained(self, call: Call, seconds: float) -> float:
        """Seconds of a call, over a stretch without rest: the median of its blocks."""
        once = self._block(call, 1)
        calls = max(1, round(BURST_BLOCK_S / max(once, 1e-7)))
        found: list[float] = []
        until = time.monotonic() + seconds
        with collector_off():
            while time.monotonic() < until or not found:
                found.append(self._block(call, calls))
        return statistics.median(found)

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


def calibrate(torch_device: str, facts: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """The fields of `protocol.Calibrated`: those of `parts` measured, the others empty."""
    meter = Meter(torch_device)
    matmul, refused = {}, {}
    for dtype in _DTYPES if "matmul" in parts else ():
        try:
            matmul[dtype] = products(meter, dtype)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            refused[f"matmul {dtype}"] = str(error).partition("\n")[0]
    bandwidth: dict[str, tuple[Point, ...]] = {}
    for kind, point in traffic(meter) if "bandwidth" in parts else ():
        bandwidth[kind] = (*bandwidth.get(kind, ()), point)
    exp_per_s, derived = None, False
    if "exp" in parts:
        exp_per_s, derived = exponentials(meter, facts.get("sm_clock_most_hz"), facts.get("multiprocessors", 0))
    return {
        "matmul": matmul,
        "refused": refused,
        "bandwidth": bandwidth,
        "exp_per_s": exp_per_s,
        "exp_derived": derived,
        "launch_s": launch_s(meter) if "launch" in parts else None,
    }


def products(meter: Meter, dtype: str) -> Rate:
    """FLOP/s of the best size. Raises RuntimeError where the device has no such product."""
    best: tuple[float, int, Call] | None = None
    for size in SIZES[meter.kind]:
        call = _product(meter, dtype, size)
        call()
        seconds = min(meter.times(call, BURST_BLOCK_S, 2))
        rate = 2 * size**3 / seconds
        if best is None or rate > best[0]:
            best = rate, size, call
        if 8 * seconds > PRODUCT_MOST_S:
            break
    assert best
    _, size, call = best
    burst = min(meter.times(call, BURST_BLOCK_S, BURST_BLOCKS, REST_S))
    sustained = meter.sustained(call, SUSTAINED_S[meter.kind])
    work = 2 * size**3
    # The first blocks of a sustained stretch may be the fastest of all: a burst is never slower than it.
    return Rate(burst=max(work / burst, work / sustained), sustained=work / sustained, size=size)


def _product(meter: Meter, dtype: str, size: int) -> Call:
    """`out = a b` into a tensor that is there already."""
    kind = _DTYPES[dtype]
    a, b = (torch.randn(size, size, device=meter.torch_device) for _ in range(2))
    if dtype == "fp8_e4m3":
        if meter.kind == "cpu":
            raise RuntimeError("torch has no fp8 product on a CPU")
        one = torch.ones((), device=meter.torch_device)
        left, right = a.to(kind), b.to(kind).t()
        return lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    if dtype == "tf32" and meter.kind == "cpu":
        raise RuntimeError("tf32 is a format of GPUs")
    left, right = a.to(kind), b.to(kind)
    out = torch.empty_like(left)
    if dtype != "tf32":
        return lambda: torch.mm(left, right, out=out)

    def product() -> Any:
        torch.set_float32_matmul_precision("high")
        try:
            return torch.mm(left, right, out=out)
        finally:
            torch.set_float32_matmul_precision("highest")

    return product


def traffic(meter: Meter) -> Iterator[tuple[str, Point]]:
    """copy (one read, one write), read (a sum) and triad (two reads, one write), over rising working sets.

    Counted as STREAM counts (https://www.cs.virginia.edu/stream/ref.html): what is read and written, without the line
    that a cache reads before it is overwritten.
    """
    for size in WORKING_SETS[meter.kind]:
        numbers = size // 4
        a, b, c = (torch.ones(numbers, device=meter.torch_device) for _ in range(3))
        ways: dict[str, tuple[int, Call]] = {
            "copy": (2, _bind(b.copy_, a)),
            "read": (1, _bind(torch.sum, a)),
            "triad": (3, _bind(torch.add, a, b, alpha=2.0, out=c)),
        }
        for kind, (operands, call) in ways.items():
            call()
            # Short blocks: on a shared machine the best is the one that nobody disturbed.
            seconds = min(meter.times(call, TRAFFIC_S / 6, 6))
            yield kind, Point(bytes=operands * size, rate=operands * size / seconds)


def _bind(function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
    return lambda: function(*arguments, **options)


def exponentials(meter: Meter, clock_hz: float | None, multiprocessors: int) -> tuple[float | None, bool]:
    """exp or exp2 of fp32 a second, the faster; on a GPU derived from what its special function units give."""
    if meter.kind == "cuda":
        return (GPU_EXP_PER_CLOCK * multiprocessors * clock_hz if clock_hz else None), True
    numbers = torch.randn(EXP_NUMBERS * torch.get_num_threads())
    out = torch.empty_like(numbers)
    seconds = [min(meter.times(_bind(f, numbers, out=out), 0.01, 10)) for f in (torch.exp, torch.exp2)]
    return numbers.numel() / min(seconds), False


def launch_s(meter: Meter) -> float:
    """Seconds that one operation on a single number takes of the host: what is paid however little there is to do."""
    one = torch.ones(1, device=meter.torch_device)
    found = []
    for _ in range(10):
        begun = time.perf_counter_ns()
        for _ in range(LAUNCHES):
            torch.add(one, one, out=one)
        found.append((time.perf_counter_ns() - begun) / 1e9 / LAUNCHES)
        if meter.kind == "cuda":
            torch.cuda.synchronize()
    return min(found)
