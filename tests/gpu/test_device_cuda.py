from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import pytest

from attnbench.machine.device.instrument import BlockReading, Call
from attnbench.records.arm import parse_device
from attnbench.records.result import Cache, Procedure, Timing

torch = pytest.importorskip("torch")

from attnbench.machine.device.cuda import CudaInstrument  # noqa: E402
from attnbench.machine.device.stopwatch import EventsStopwatch, GraphStopwatch, StartState, cupti_objection, kernels  # noqa: E402

pytestmark = pytest.mark.gpu

SIZE = 2048


def procedure(timing: Timing, cache: Cache = Cache.COLD) -> Procedure:
    return Procedure(timing=timing, cache=cache)


@pytest.fixture(scope="module")
def gpu() -> Iterator[CudaInstrument]:
    instrument = CudaInstrument(parse_device("cuda:0"))
    instrument.warm()
    yield instrument
    instrument.release()


@pytest.fixture(scope="module")
def product(gpu: CudaInstrument) -> Call:
    one, other = (torch.randn(SIZE, SIZE, device=gpu.torch_device, dtype=torch.float16) for _ in range(2))
    return lambda: one @ other


def read(gpu: CudaInstrument, call: Call, how: Procedure) -> BlockReading:
    return gpu.block(call, gpu.settle(call, how), how)


def asleep(gpu: CudaInstrument, seconds: float) -> Call:
    """A kernel whose length is known beforehand."""
    start_state = StartState(gpu.l2_bytes, gpu.torch_device)
    for _ in range(20):
        start_state.calibrate()  # the first ones raise the clock
    return lambda: start_state.queue_delay(seconds)


@pytest.mark.parametrize("timing", [Timing.EVENTS, Timing.WALL])
def test_a_kernel_of_a_known_length_takes_that_long(gpu: CudaInstrument, timing: Timing) -> None:
    reading = read(gpu, asleep(gpu, 2e-3), procedure(timing))
    assert statistics.median(reading.values) == pytest.approx(2e-3, rel=0.15)


def test_events_agree_with_the_benchmark_of_torch(gpu: CudaInstrument, product: Call) -> None:
    from torch.utils.benchmark import Timer

    ours = statistics.median(read(gpu, product, procedure(Timing.EVENTS, Cache.WARM)).values)
    theirs = Timer("call()", globals={"call": product}).blocked_autorange(min_run_time=0.5).median
    assert ours == pytest.approx(theirs, rel=0.15)


def test_a_short_kernel_is_not_charged_for_its_launch(gpu: CudaInstrument) -> None:
    numbers = torch.zeros(1024, device=gpu.torch_device)
    reading = read(gpu, lambda: numbers.add_(1), procedure(Timing.EVENTS))
    assert "host_bound" not in reading.tags
    assert statistics.median(reading.values) < 20e-6


def test_a_call_that_waits_for_the_device_is_told(gpu: CudaInstrument) -> None:
    numbers = torch.ones(1024, device=gpu.torch_device)
    assert "host_bound" in read(gpu, lambda: numbers.sum().item(), procedure(Timing.EVENTS)).tags


def test_work_on_another_stream_is_told(gpu: CudaInstrument) -> None:
    side, sleep = torch.cuda.Stream(), asleep(gpu, 5e-3)

    def call() -> None:
        with torch.cuda.stream(side):
            sleep()

    assert "side_stream" in read(gpu, call, procedure(Timing.EVENTS)).tags


def test_a_cold_cache_is_slower_than_a_warm_one(gpu: CudaInstrument) -> None:
    quarter = torch.empty(gpu.l2_bytes // 4, dtype=torch.int8, device=gpu.torch_device)
    warm, cold = (
        statistics.median(read(gpu, quarter.sum, procedure(Timing.EVENTS, cache)).values) for cache in ("warm", "cold")
    )
    assert cold > warm


def test_a_graph_takes_as_long_as_the_kernels_in_it(gpu: CudaInstrument, product: Call) -> None:
    events, graph = (
        statistics.median(read(gpu, product, procedure(timing, Cache.WARM)).values)
        for timing in (Timing.EVENTS, Timing.GRAPH)
    )
    assert graph == pytest.approx(events, rel=0.15)


def test_a_graph_follows_inputs_that_are_rewritten_in_place(gpu: CudaInstrument) -> None:
    numbers = torch.randn(1000, device=gpu.torch_device)
    how = procedure(Timing.GRAPH)

    def call() -> torch.Tensor:
        return numbers * 2

    pace = gpu.settle(call, how)
    numbers.neg_()
    assert len(gpu.block(call, pace, how).values) == pace.readings


def test_a_graph_that_holds_an_old_output_is_refused(gpu: CudaInstrument) -> None:
    numbers, turn = torch.ones(1000, device=gpu.torch_device), iter(range(10**6))
    how = procedure(Timing.GRAPH)

    def call() -> torch.Tensor:
        return numbers * float(next(turn))  # a graph keeps the factor that it was captured with

    pace = gpu.settle(call, how)
    with pytest.raises(RuntimeError, match="another output"):
        gpu.block(call, pace, how)


def test_a_call_that_launches_nothing_when_captured_is_refused(gpu: CudaInstrument) -> None:
    numbers = torch.ones(1000, device=gpu.torch_device)
    if not kernels(lambda: numbers * 2):
        pytest.skip("the profiler sees no kernels on this machine")
    cached: list[torch.Tensor] = []

    def call() -> torch.Tensor:
        if not torch.cuda.is_current_stream_capturing() or not cached:
            cached[:] = [numbers * 2]
        return cached[0]

    with pytest.raises(RuntimeError, match="kernels"):
        GraphStopwatch(StartState(gpu.l2_bytes, gpu.torch_device), call, 4)


def test_what_cannot_be_captured_is_refused_with_the_reason(gpu: CudaInstrument) -> None:
    numbers = torch.ones(1000, device=gpu.torch_device)
    with pytest.raises(RuntimeError, match="captured"):
        GraphStopwatch(StartState(gpu.l2_bytes, gpu.torch_device), lambda: numbers.sum().item(), 2)
    torch.cuda.synchronize()


def test_cupti_sees_the_kernels_alone(gpu: CudaInstrument, product: Call) -> None:
    if objection := cupti_objection():
        pytest.skip(objection)
    events, kernel = (
        statistics.median(read(gpu, product, procedure(timing)).values) for timing in (Timing.EVENTS, Timing.CUPTI)
    )
    assert kernel == pytest.approx(events, rel=0.2)


def test_settling_takes_a_fifth_of_a_second_and_ends(gpu: CudaInstrument, product: Call) -> None:
    pace = gpu.settle(product, procedure(Timing.EVENTS))
    assert 0.2 <= pace.settle_s < 5


def test_the_host_learns_how_long_to_hold_the_device(gpu: CudaInstrument) -> None:
    numbers = torch.zeros(1024, device=gpu.torch_device)
    start_state = StartState(gpu.l2_bytes, gpu.torch_device)
    start_state.calibrate()
    events = EventsStopwatch(start_state)

    def call() -> None:
        time.sleep(200e-6)
        numbers.add_(1)

    for _ in range(10):
        reading = events.take(call, 1)
    assert "host_bound" not in reading.tags
    assert reading.seconds < 150e-6


def test_memory_of_tensors_counted_by_hand(gpu: CudaInstrument) -> None:
    mega = 1024**2  # a multiple of what the allocator rounds to

    def call() -> torch.Tensor:
        first = torch.empty(mega, dtype=torch.int8, device=gpu.torch_device)
        second = torch.empty(2 * mega, dtype=torch.int8, device=gpu.torch_device)
        del first
        third = torch.empty(mega // 2, dtype=torch.int8, device=gpu.torch_device)
        del second
        return third

    call()
    memory = gpu.memory(call)
    assert (memory.total, memory.peak) == (3 * mega, 3 * mega - mega // 2)
    assert (memory.facts["outputs"], memory.facts["saved"]) == (mega // 2, 0)


def test_memory_of_plain_attention_counted_by_hand(gpu: CudaInstrument) -> None:
    q, k, v = (torch.randn(2, 4, 256, 64, device=gpu.torch_device) for _ in range(3))

    def attend() -> torch.Tensor:
        scores = q @ k.transpose(-2, -1)
        weights = scores.softmax(-1)
        return weights @ v

    attend()
    square, out = 4 * 2 * 4 * 256 * 256, 4 * 2 * 4 * 256 * 64
    memory = gpu.memory(attend)
    assert (memory.total, memory.peak) == (2 * square + out, 2 * square)


def test_a_product_of_fp32_is_exact(gpu: CudaInstrument) -> None:
    one, other = (torch.randn(512, 512, device=gpu.torch_device) for _ in range(2))
    right = one.double() @ other.double()
    error = ((one @ other).double() - right).norm() / right.norm()
    assert error < 1e-5  # TF32 would give about 3e-4


def test_what_nvml_tells_round_a_block_is_plausible(gpu: CudaInstrument, product: Call) -> None:
    facts = read(gpu, product, procedure(Timing.EVENTS)).facts
    if not facts:
        pytest.skip("NVML tells nothing of this GPU")
    assert 1e8 < facts["sm_clock_hz"] < 5e9
    assert 0 < facts["temperature_c"] < 120


def test_the_environment_names_the_device_and_its_cache(gpu: CudaInstrument) -> None:
    environment = gpu.environment()
    assert environment.device == torch.cuda.get_device_name(0)
    assert environment.facts["l2_bytes"] >= 1024**2
