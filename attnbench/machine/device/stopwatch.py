"""Timing modes of a CUDA call: events, a CUDA graph, the wall clock, CUPTI.

A stopwatch starts every reading from the same state of the device: idle, and with a cold L2 if the procedure says so.
"""

import ctypes
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple, Protocol

import torch

from attnbench.machine.device.instrument import Call, tensors
from attnbench.records.result import Procedure, Timing

FLUSHED = 2  # times the L2
# The start event must not fire before the host has queued the work: a delay kernel lasts this many times as long.
DELAY_FACTOR = 2.0
MIN_DELAY_S, MAX_DELAY_S = 50e-6, 20e-3
MAX_MISSES = 5  # after so many, the call itself waits for the device, and no delay can hide the host
MIN_BESIDE_S, BESIDE_SHARE = 100e-6, 0.1
GRAPH_ERROR = 0.02  # of the norm; a stale output is off by its whole size
# NVIDIA's cupti-python: https://docs.nvidia.com/cupti-python
CUPTI_INSTALL = "pip install 'cupti-python>=13'"
CUPTI_MIN_VERSION = 13
CUPTI_BUFFER_BYTES = 8 * 1024**2


class SingleReading(NamedTuple):
    """The time of one call, from one reading, and its tags."""

    seconds: float
    tags: tuple[str, ...] = ()


class StartState:
    """The state of the device when a reading starts: idle, and with `cold` an L2 without the inputs."""

    def __init__(self, l2_bytes: int, torch_device: str) -> None:
        self._l2_bytes, self._torch_device = l2_bytes, torch_device
        self._flusher: torch.Tensor | None = None
        self._driver = _driver()
        self.cold = False
        self.cycles_per_s = 0.0

    def calibrate(self) -> None:
        """Measure the cycles of the delay kernel in a second, at the current clock."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(100_000)
        start.record()
        torch.cuda._sleep(2_000_000)
        end.record()
        torch.cuda.synchronize()
        self.cycles_per_s = 2_000_000 / (start.elapsed_time(end) / 1e3)

    def reset(self) -> None:
        """Wait until the device is idle; with `cold`, queue a write of twice the L2 size."""
        torch.cuda.synchronize()
        if not self.cold:
            return
        if self._driver is not None:
            self._driver.cuCtxResetPersistingL2Cache()  # persisting lines survive a flush
        if self._flusher is None:
            size = FLUSHED * self._l2_bytes
            self._flusher = torch.empty(size, dtype=torch.int8, device=self._torch_device)
        self._flusher.zero_()

    def queue_delay(self, seconds: float) -> None:
        """Queue a kernel that waits so many seconds."""
        torch.cuda._sleep(int(seconds * self.cycles_per_s))

    def release(self) -> None:
        self._flusher = None


class Stopwatch(ABC):
    """Takes readings of one call in one timing mode."""

    def __init__(self, start_state: StartState) -> None:
        self._start_state = start_state

    @abstractmethod
    def take(self, call: Call, calls: int) -> SingleReading:
        """The mean time of `calls` calls in a row."""

    def check(self, call: Call) -> None:  # noqa: B027 (most stopwatches time the calls themselves)
        """Raise RuntimeError if the timed work differs from the call."""


class EventsStopwatch(Stopwatch):
    """CUDA events on the current stream, around calls that are queued while a delay kernel holds the device."""

    def __init__(self, start_state: StartState) -> None:
        super().__init__(start_state)
        self._queue_s = 0.0  # in which the host queued the last reading
        self._misses = 0

    def take(self, call: Call, calls: int) -> SingleReading:
        def work() -> None:
            output = None  # lives until the next call has returned
            for _ in range(calls):
                output = call()
            del output

        seconds, tags = self.time_work(work)
        return SingleReading(seconds / calls, tags)

    def time_work(self, work: Callable[[], object]) -> SingleReading:
        """Seconds of the whole work on the device."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._start_state.reset()
        if self._misses < MAX_MISSES:
            self._start_state.queue_delay(delay_s(self._queue_s))
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
        # Events time one stream; if the device is not idle after it, the call also uses another stream.
        beside = beside_s > MIN_BESIDE_S + BESIDE_SHARE * seconds
        return SingleReading(seconds, (*tags, "side_stream") if beside else tags)

    def _learn(self, queued_s: float, hidden: bool) -> None:
        self._queue_s = queued_s if hidden else max(queued_s, 2 * self._queue_s)
        self._misses = 0 if hidden else self._misses + 1


class GraphStopwatch(Stopwatch):
    """Unrolled calls in one CUDA graph. Only the first is cold, unless the call itself rotates its buffers."""

    def __init__(self, start_state: StartState, call: Call, calls: int) -> None:
        super().__init__(start_state)
        self._events, self._calls = EventsStopwatch(start_state), calls
        outside = kernels(call).total()
        self._graph, self._outputs = _capture(call, calls)
        inside = kernels(self._graph.replay).total()
        # A capture can miss a kernel and leave the output of an earlier call in place.
        if inside < calls * outside:
            raise RuntimeError(f"the CUDA graph holds {inside} kernels; {calls} calls launch {calls * outside}")

    def take(self, call: Call, calls: int) -> SingleReading:
        seconds, tags = self._events.time_work(self._graph.replay)
        return SingleReading(seconds / self._calls, tags)

    def check(self, call: Call) -> None:
        """Call once outside the graph, and compare the outputs."""
        if not all(map(_near, tensors(self._outputs), tensors(call()))):
            raise RuntimeError("the CUDA graph gives another output than the call outside it")


class WallStopwatch(Stopwatch):
    """The host's clock, from an idle device to an idle device."""

    def take(self, call: Call, calls: int) -> SingleReading:
        self._start_state.reset()
        torch.cuda.synchronize()
        output = None
        start = time.perf_counter_ns()
        for _ in range(calls):
            output = call()
        torch.cuda.synchronize()
        elapsed = time.perf_counter_ns() - start
        del output
        return SingleReading(elapsed / calls / 1e9)


class Activity(Protocol):
    """A record of CUPTI: the span of a kernel, copy or fill, in ns."""

    start: int
    end: int


class CuptiStopwatch(Stopwatch):
    """The sum of the times of the kernels."""

    def take(self, call: Call, calls: int) -> SingleReading:
        def work() -> None:
            for _ in range(calls):
                call()

        self._start_state.reset()
        torch.cuda.synchronize()
        return SingleReading(cupti_seconds(work) / calls)


def stopwatch(start_state: StartState, procedure: Procedure, call: Call, calls: int) -> Stopwatch:
    """The stopwatch of the procedure's timing mode. A CUDA graph is captured here; RuntimeError if it cannot be."""
    if procedure.timing is Timing.GRAPH:
        return GraphStopwatch(start_state, call, calls)
    if procedure.timing is Timing.EVENTS:
        return EventsStopwatch(start_state)
    return WallStopwatch(start_state) if procedure.timing is Timing.WALL else CuptiStopwatch(start_state)


def cupti_objection() -> str | None:
    """Why CUPTI cannot time kernels here, and what to install; None if it can."""
    try:
        version = metadata.version("cupti-python")
    except metadata.PackageNotFoundError:
        return f"timing mode cupti needs cupti-python: {CUPTI_INSTALL}"
    if int(version.partition(".")[0]) < CUPTI_MIN_VERSION:
        return f"timing mode cupti needs cupti-python {CUPTI_MIN_VERSION}, and {version} is installed: {CUPTI_INSTALL}"
    try:
        from cupti import cupti  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"timing mode cupti: cupti-python {version} does not import: {error}"
    return None


def cupti_seconds(work: Callable[[], object]) -> float:
    """The sum of the seconds of all kernels, copies and fills of `work`, without the gaps between them.

    Raises RuntimeError if CUPTI reports none.
    """
    from cupti import cupti

    spans_ns: list[int] = []

    def buffer() -> tuple[int, int]:
        return CUPTI_BUFFER_BYTES, 0  # 0: as many records as fit

    def collect(activities: list[Activity]) -> None:
        spans_ns.extend(activity.end - activity.start for activity in activities)

    kinds = (cupti.ActivityKind.CONCURRENT_KERNEL, cupti.ActivityKind.MEMCPY, cupti.ActivityKind.MEMSET)
    # Registered again for every reading, because torch's profiler replaces them.
    cupti.activity_register_callbacks(buffer, collect)
    enabled = []
    try:
        for kind in kinds:
            cupti.activity_enable(kind)
            enabled.append(kind)
        work()
        torch.cuda.synchronize()
        cupti.activity_flush_all(1)
    finally:
        for kind in enabled:
            cupti.activity_disable(kind)
    if not spans_ns:
        raise RuntimeError("CUPTI saw no kernel of this call: another profiler may be attached")
    return sum(spans_ns) / 1e9


def delay_s(queue_s: float) -> float:
    """Seconds of the delay kernel, if the host needs `queue_s` to queue the work."""
    return min(DELAY_FACTOR * queue_s + MIN_DELAY_S, MAX_DELAY_S)


def kernels(work: Callable[[], object]) -> Counter[str]:
    """How often each kernel ran; empty if the profiler cannot see the device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    names = (event.name for event in profiler.events() if event.device_type.name == "CUDA")
    return Counter(name for name in names if not name.startswith(("Memcpy", "Memset")))


def _near(output: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether outputs are equal but for rounding. Each element must be finite in both or in neither."""
    output, other = output.detach().float(), other.detach().float()
    finite = other.isfinite()
    if not torch.equal(output.isfinite(), finite):
        return False
    return bool((output[finite] - other[finite]).norm() <= GRAPH_ERROR * other[finite].norm())


def _capture(call: Call, calls: int) -> tuple[torch.cuda.CUDAGraph, object]:
    """The graph, and the output of its last call. Raises RuntimeError if the call cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph, output = torch.cuda.CUDAGraph(), None
    try:
        with torch.cuda.graph(graph):
            for _ in range(calls):
                output = call()
    except RuntimeError as error:
        raise RuntimeError(f"cannot be captured in a CUDA graph: {error}") from error
    return graph, output


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        return driver if hasattr(driver, "cuCtxResetPersistingL2Cache") else None
    except OSError:
        return None
