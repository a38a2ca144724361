"""How one reading of a CUDA call is taken: between events, in a graph, by the wall clock, or by CUPTI.

A stopwatch starts every reading from the same state of the device: idle, and the L2 cold where the procedure says so.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from attnbench.device import Call, cupti, tensors
from attnbench.result import Procedure, Timing

FLUSHED = 2  # times the L2
# The start event may not fire before the host has queued the work: it is held back for this many times that long.
HIDDEN = 2.0
HIDDEN_LEAST_S, HIDDEN_MOST_S = 50e-6, 20e-3
MISSES_MOST = 5  # after that the call waits for the device itself: no delay hides its host
BESIDE_LEAST_S, BESIDE_SHARE = 100e-6, 0.1
GRAPH_ERROR = 0.02  # of the norm; a stale output is off by its whole size


class Shot(NamedTuple):
    """One reading."""

    seconds: float  # of one call
    tags: tuple[str, ...] = ()


class Stopwatch(Protocol):
    """Takes readings of one call."""

    def take(self, call: Call, calls: int) -> Shot:
        """Mean time of so many calls in a row."""

    def check(self, call: Call) -> None:
        """Raise RuntimeError where what was timed is not what the call does."""


class Stage:
    """The state of the device when a reading starts."""

    def __init__(self, l2_bytes: int, torch_device: str) -> None:
        self._l2_bytes, self._torch_device = l2_bytes, torch_device
        self._flusher: torch.Tensor | None = None
        self._driver = _driver()
        self.cold = False
        self.cycles_per_s = 0.0

    def calibrate(self) -> None:
        """Measure how many cycles of the delay kernel make a second, at the clock of now."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(100_000)
        start.record()
        torch.cuda._sleep(2_000_000)
        end.record()
        torch.cuda.synchronize()
        self.cycles_per_s = 2_000_000 / (start.elapsed_time(end) / 1e3)

    def set(self) -> None:
        """Wait until the device is idle, then queue a write of twice the L2 where it should be cold."""
        torch.cuda.synchronize()
        if not self.cold:
            return
        if self._driver is not None:
            self._driver.cuCtxResetPersistingL2Cache()  # lines that a kernel asked to keep survive a flush
        if self._flusher is None:
            size = FLUSHED * self._l2_bytes
            self._flusher = torch.empty(size, dtype=torch.int8, device=self._torch_device)
        self._flusher.zero_()

    def hold(self, seconds: float) -> None:
        """Queue a kernel that does nothing for that long."""
        torch.cuda._sleep(int(seconds * self.cycles_per_s))

    def release(self) -> None:
        """Give the flush buffer back."""
        self._flusher = None


class Events:
    """CUDA events on the current stream, round calls that were queued while a delay kernel held the device."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._queue_s = 0.0  # what the host needed to queue a reading, last time
        self._misses = 0

    def take(self, call: Call, calls: int) -> Shot:
        def work() -> None:
            kept = None
            for _ in range(calls):
                kept = call()
            del kept

        seconds, tags = self.between(work)
        return Shot(seconds / calls, tags)

    def between(self, work: Callable[[], Any]) -> Shot:
        """Seconds of the whole work on the device."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._stage.set()
        if self._misses < MISSES_MOST:
            self._stage.hold(hidden_s(self._queue_s))
        start.record()
        begun = time.perf_counter()
        work()
        end.record()
        queued_s = time.perf_counter() - begun
        hidden = not start.query()
        end.synchronize()
        ended = time.perf_counter()
        torch.cuda.synchronize()
        beside_s = time.perf_counter() - ended
        self._learn(queued_s, hidden)
        seconds = start.elapsed_time(end) / 1e3
        tags = () if hidden else ("host_bound",)
        # The events saw one stream; if the device was not idle after it, the call works on another one too.
        beside = beside_s > BESIDE_LEAST_S + BESIDE_SHARE * seconds
        return Shot(seconds, (*tags, "side_stream") if beside else tags)

    def _learn(self, queued_s: float, hidden: bool) -> None:
        self._queue_s = queued_s if hidden else max(queued_s, 2 * self._queue_s)
        self._misses = 0 if hidden else self._misses + 1

    def check(self, call: Call) -> None:
        """Every reading called it."""


class Graph:
    """Unrolled calls in one CUDA graph. Cold is only the first of them, unless the call itself rotates its buffers."""

    def __init__(self, stage: Stage, call: Call, calls: int) -> None:
        self._events = Events(stage)
        self._calls = calls
        outside = kernels(call).total()
        self._graph, self._outputs = _capture(call, calls)
        inside = kernels(self._graph.replay).total()
        # A capture can miss a kernel, and leave the output of an earlier call in place.
        if inside < calls * outside:
            raise RuntimeError(f"the CUDA graph holds {inside} kernels; {calls} calls launch {calls * outside}")

    def take(self, call: Call, calls: int) -> Shot:
        seconds, tags = self._events.between(self._graph.replay)
        return Shot(seconds / self._calls, tags)

    def check(self, call: Call) -> None:
        """Call once outside the graph, and compare the outputs."""
        if not all(map(_near, tensors(self._outputs), tensors(call()))):
            raise RuntimeError("the CUDA graph gives another output than the call outside it")


class Wall:
    """The host's clock, from an idle device to an idle device."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def take(self, call: Call, calls: int) -> Shot:
        self._stage.set()
        torch.cuda.synchronize()
        kept = None
        start = time.perf_counter_ns()
        for _ in range(calls):
            kept = call()
        torch.cuda.synchronize()
        elapsed = time.perf_counter_ns() - start
        del kept
        return Shot(elapsed / calls / 1e9)

    def check(self, call: Call) -> None:
        """Every reading called it."""


class Cupti:
    """Times of the kernels alone, added up."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def take(self, call: Call, calls: int) -> Shot:
        def work() -> None:
            for _ in range(calls):
                call()

        self._stage.set()
        torch.cuda.synchronize()
        return Shot(cupti.device_seconds(work, torch.cuda.synchronize) / calls)

    def check(self, call: Call) -> None:
        """Every reading called it."""


def stopwatch(stage: Stage, procedure: Procedure, call: Call, calls: int) -> Stopwatch:
    """The one for that timing mode; a graph is captured here."""
    if procedure.timing is Timing.GRAPH:
        return Graph(stage, call, calls)
    plain: dict[Timing, Callable[[Stage], Stopwatch]] = {
        Timing.EVENTS: Events,
        Timing.WALL: Wall,
        Timing.CUPTI: Cupti,
    }
    return plain[procedure.timing](stage)


def hidden_s(queue_s: float) -> float:
    """How long to hold the device back, if queueing takes the host so long."""
    return min(HIDDEN * queue_s + HIDDEN_LEAST_S, HIDDEN_MOST_S)


def kernels(work: Callable[[], Any]) -> Counter[str]:
    """How often each kernel ran; empty where the profiler cannot see the device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    names = (event.name for event in profiler.events() if event.device_type.name == "CUDA")
    return Counter(name for name in names if not name.startswith(("Memcpy", "Memset")))


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding; what is not finite (the lse of a row that sees no key) is so in both."""
    one, other = one.detach().float(), other.detach().float()
    finite = other.isfinite()
    if not torch.equal(one.isfinite(), finite):
        return False
    return bool((one[finite] - other[finite]).norm() <= GRAPH_ERROR * other[finite].norm())


def _capture(call: Call, calls: int) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph, and the output of its last call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), None
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                kept = call()
    except RuntimeError as error:
        raise RuntimeError(f"cannot be captured in a CUDA graph: {error}") from error
    return graph, kept


def _driver() -> Any:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return driver if hasattr(driver, "cuCtxResetPersistingL2Cache") else None
    except OSError:
        return None
