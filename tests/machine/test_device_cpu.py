from __future__ import annotations

import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import backends
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.machine import hardware, worker_environment
from attnbench.machine.device import open_instrument
from attnbench.machine.device.instrument import Pace, block_shape
from attnbench.records.arm import parse_device
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Timing
from attnbench.worker.prepared_case import PreparedCase

torch = pytest.importorskip("torch")

from attnbench.machine.device import cpu as device_cpu  # noqa: E402
from attnbench.machine.device.cpu import CpuInstrument, busy_threads, timer_resolution_s  # noqa: E402

PROCEDURE = Procedure()
ONCE = Pace(calls=1, readings=1, call_s=1e-3, settled=True, settle_s=0.0, settle_calls=1)
SHAPES = [  # batch, heads, kv_heads, seq_q, seq_kv, head_dim
    (1, 2, 2, 64, 64, 32),
    (2, 3, 3, 16, 48, 8),
    (1, 4, 4, 128, 32, 16),
    (1, 4, 2, 64, 64, 16),
    (1, 2, 2, 1, 100, 64),
]


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuInstrument]:
    threads = torch.get_num_threads()
    yield CpuInstrument(parse_device("cpu:threads=1"))
    torch.set_num_threads(threads)


ISA = "avx2" if "avx2" in hardware.cpu_flags() else ""
IN_A_WORKER = """
import json, os, torch
from attnbench.records.arm import parse_device
from attnbench.machine.device.cpu import CpuInstrument
cpu = CpuInstrument(parse_device({device!r}))
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
torch.ones(25_000_000)
before = resident()
cpu.release()
print(json.dumps(dict(released=before - resident(), isa=cpu.environment().facts["isa"])))
"""


@cache
def of_a_worker() -> dict[str, Any]:
    """Bytes that it returns to the system, and its instruction set, in a process with the environment of a worker."""
    device = "cpu:threads=1" + (f":isa={ISA}" if ISA else "")
    env = {**os.environ, **worker_environment.arm_environment(parse_device(device))}
    code = IN_A_WORKER.format(device=device)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


durations = st.floats(1e-9, 100.0)


@given(call_s=durations, tick_s=st.floats(1e-9, 1e-5), block_s=st.floats(1e-3, 1.0))
@settings(max_examples=200, deadline=None)
def test_a_reading_is_a_thousand_ticks_and_a_block_is_long_enough(call_s: float, tick_s: float, block_s: float) -> None:
    calls, readings = block_shape(call_s, tick_s, block_s)
    assert 1 <= readings <= 16
    assert calls * call_s >= 1000 * tick_s * (1 - 1e-9)
    assert readings * calls * call_s >= block_s * (1 - 1e-9)


def test_a_block_of_a_long_call_is_that_call() -> None:
    assert block_shape(0.5, 50e-9, 0.010) == (1, 1)


def test_a_block_of_middling_calls_has_no_more_of_them_than_it_needs() -> None:
    assert block_shape(0.003, 50e-9, 0.010) == (1, 4)


def test_the_resolution_is_the_median_step_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.accumulate(itertools.cycle([0, 0, 60, 0, 60, 0, 9000]))  # the last is a disturbance
    monkeypatch.setattr(device_cpu, "_clock", lambda: next(readings))
    assert timer_resolution_s() == pytest.approx(60e-9)


def test_the_device_decides_the_instrument(cpu: CpuInstrument) -> None:
    assert type(open_instrument(parse_device("cpu:threads=1"))) is type(cpu)


def test_threads_are_those_of_the_device(cpu: CpuInstrument) -> None:
    assert torch.get_num_threads() == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in ns that the instrument reads."""
    now = [0]
    monkeypatch.setattr(device_cpu, "_clock", lambda: now[0])
    return now


def test_a_reading_is_the_mean_time_of_its_calls(cpu: CpuInstrument, clock: list[int]) -> None:
    def call() -> None:
        clock[0] += 2_000_000

    pace = Pace(calls=5, readings=3, call_s=2e-3, settled=True, settle_s=0.0, settle_calls=1)
    reading = cpu.block(call, pace, PROCEDURE)
    assert (reading.values, reading.calls) == ([0.002] * 3, 5)


def test_freeing_the_last_output_is_not_timed(cpu: CpuInstrument, clock: list[int]) -> None:
    class Slow:
        def __del__(self) -> None:
            clock[0] += 200_000_000

    assert cpu.block(Slow, ONCE, PROCEDURE).values == [0.0]
    assert clock == [200_000_000]


def test_the_collector_rests_during_a_block_and_works_after_it(cpu: CpuInstrument) -> None:
    seen = []
    cpu.block(lambda: seen.append(gc.isenabled()), ONCE, PROCEDURE)
    assert (seen, gc.isenabled()) == ([False], True)


def test_the_collector_works_again_after_a_call_that_raises(cpu: CpuInstrument) -> None:
    def call() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        cpu.block(call, ONCE, PROCEDURE)
    assert gc.isenabled()


def test_one_long_call_settles(cpu: CpuInstrument, clock: list[int]) -> None:
    def call() -> None:
        clock[0] += 410_000_000

    pace = cpu.settle(call, PROCEDURE)
    assert (pace.settle_calls, pace.calls, pace.readings, pace.settled) == (1, 1, 1, True)


def test_a_steady_call_settles_in_two_blocks(cpu: CpuInstrument, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_cpu, "_timed", lambda _call, _calls: 0.011)
    pace = cpu.settle(lambda: None, PROCEDURE)
    assert (pace.settled, pace.call_s, pace.settle_calls) == (True, 0.011, 3)


def test_a_disturbed_call_settles_when_two_blocks_agree(cpu: CpuInstrument, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.05, 0.04, 0.011, 0.0112])
    monkeypatch.setattr(device_cpu, "_timed", lambda _call, _calls: next(times))
    pace = cpu.settle(lambda: None, PROCEDURE)
    assert (pace.settled, pace.call_s) == (True, pytest.approx(0.0111))


def test_a_time_that_an_earlier_restart_measured_settles_in_one_block(
    cpu: CpuInstrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_cpu, "_timed", lambda _call, _calls: 0.011)
    pace = cpu.settle(lambda: None, PROCEDURE, 0.0112)
    assert (pace.settled, pace.call_s, pace.settle_calls) == (True, 0.011, 2)


def test_a_known_time_that_has_changed_settles_as_an_unknown_one(
    cpu: CpuInstrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.05, 0.012, 0.011, 0.0112])
    monkeypatch.setattr(device_cpu, "_timed", lambda _call, _calls: next(times))
    pace = cpu.settle(lambda: None, PROCEDURE, 0.02)
    assert (pace.settled, pace.call_s) == (True, pytest.approx(0.0115))


def test_a_call_that_grows_slower_does_not_settle(cpu: CpuInstrument, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (0.01 * 1.15**n for n in range(1000))
    monkeypatch.setattr(device_cpu, "_timed", lambda _call, _calls: next(times))
    pace = cpu.settle(lambda: None, PROCEDURE)
    assert not pace.settled
    assert pace.settle_calls == 1 + device_cpu.MAX_SETTLE_BLOCKS


def test_settling_ends_with_its_time(cpu: CpuInstrument, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_cpu, "MAX_SETTLE_S", 0.0)
    pace = cpu.settle(lambda: None, PROCEDURE)
    assert (pace.settled, pace.settle_calls) == (False, 1)


def test_a_cpu_has_no_events(cpu: CpuInstrument) -> None:
    assert cpu.timing_objection(Timing.WALL) is None
    assert "wall" in (cpu.timing_objection(Timing.EVENTS) or "")


def test_the_environment_can_be_stored(cpu: CpuInstrument) -> None:
    environment = cpu.environment()
    again = msgspec.json.decode(msgspec.json.encode(environment), type=type(environment))
    assert (again.facts["threads"], again.packages["torch"]) == (1, torch.__version__)


def test_memory_of_tensors_counted_by_hand(cpu: CpuInstrument) -> None:
    def call() -> torch.Tensor:
        first = torch.empty(1000)  # 4000 bytes
        second = torch.empty(2000)  # 12000 held: the peak
        del first  # 8000
        third = torch.empty(100)  # 8400
        del second
        return third

    memory = cpu.memory(call)
    assert (memory.total, memory.peak) == (12000, 11600)
    assert memory.facts == {"outputs": 400, "saved": 0, "workspace": 11600}


def test_memory_from_before_the_call_does_not_count(cpu: CpuInstrument) -> None:
    older = torch.empty(5000)
    memory = cpu.memory(lambda: older)
    assert (memory.total, memory.peak, memory.facts["outputs"]) == (0, 0, 0)


def test_two_views_of_one_output_count_once(cpu: CpuInstrument) -> None:
    def call() -> tuple[torch.Tensor, list[torch.Tensor]]:
        whole = torch.empty(1000)
        return whole, [whole[:10], whole[10:]]

    assert cpu.memory(call).facts == {"outputs": 4000, "saved": 0, "workspace": 0}


def test_tensors_that_autograd_saves_are_saved_memory(cpu: CpuInstrument) -> None:
    numbers = torch.ones(1000, requires_grad=True)
    # At the peak 8000: neg, which is freed, and tanh, which saves its output. The sum is a single number.
    memory = cpu.memory(lambda: numbers.neg().tanh().sum())
    assert memory.facts == {"outputs": 4, "saved": 4000, "workspace": 8000 - 4004}


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim"), SHAPES)
def test_memory_of_plain_attention_counted_by_hand(
    cpu: CpuInstrument, batch: int, heads: int, kv_heads: int, seq_q: int, seq_kv: int, head_dim: int
) -> None:
    q = torch.randn(batch, heads, seq_q, head_dim)
    k, v = (torch.randn(batch, heads, seq_kv, head_dim) for _ in range(2))

    def attend() -> torch.Tensor:
        scores = q @ k.transpose(-2, -1)
        weights = scores.softmax(-1)
        return weights @ v

    attend()
    memory = cpu.memory(attend)
    square, out = 4 * batch * heads * seq_q * seq_kv, 4 * batch * heads * seq_q * head_dim
    assert (memory.total, memory.peak) == (2 * square + out, 2 * square)


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="counted by hand from the source of torch 2.13")
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim"), SHAPES)
def test_memory_of_the_math_path_counted_by_hand(
    cpu: CpuInstrument, batch: int, heads: int, kv_heads: int, seq_q: int, seq_kv: int, head_dim: int
) -> None:
    """q and k are scaled, each in a copy; _safe_softmax marks what is -inf, a byte each, and then whole rows."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(batch, heads, seq_q, head_dim)
    k, v = (torch.randn(batch, kv_heads, seq_kv, head_dim) for _ in range(2))
    shared = heads != kv_heads

    def attend() -> torch.Tensor:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=shared)

    attend()
    rows, out, keys = batch * heads * seq_q, 4 * q.numel(), 4 * batch * heads * seq_kv * head_dim
    square = 4 * rows * seq_kv
    repeated = 2 * keys if shared else 0
    at_product = out + keys + square
    at_softmax = out + 2 * square + square // 4 + rows + 4
    assert cpu.memory(attend).total == repeated + max(at_product, at_softmax)


@pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="counted by hand from the source of torch 2.13")
@pytest.mark.parametrize("backend", ["naive", "sdpa:math"])
@pytest.mark.parametrize(("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim"), SHAPES)
def test_memory_of_a_backward_pass_counted_by_hand(
    cpu: CpuInstrument, backend: str, batch: int, heads: int, kv_heads: int, seq_q: int, seq_kv: int, head_dim: int
) -> None:
    """What each keeps is the weights and the repeated heads; the math path also keeps q and k as it scaled them.

    At the peak of the backward pass stand dv and two gradients of score size, or else what comes after: dq, dk and dv,
    beside the last of these (plain) or beside a copy of dq or dk that is yet to be scaled (math).
    """
    shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "seq_q": seq_q, "seq_kv": seq_kv}
    case = Case(problem=Problem(**shape, head_dim=head_dim), backend=backend, mode=Mode.BWD)
    prepared = PreparedCase(case, Procedure(), backends.load(backend), cpu)
    prepared.call_once(prepared.state.backend_code())
    prepared.outputs = None
    square, dq = 4 * batch * heads * seq_q * seq_kv, 4 * batch * heads * seq_q * head_dim
    dk = dv = keys = 4 * batch * heads * seq_kv * head_dim  # of all heads: shared ones are summed up at the end
    repeated = keys if heads != kv_heads else 0
    number = 4  # a scale is a tensor of a single number
    if backend == "naive":
        saved = square + 2 * repeated + 2 * number
        peak = max(2 * square + dv + number, square + dq + dk + dv)
    else:
        saved = square + dq + keys + repeated
        peak = max(2 * square + dv, square + dq + dk + dv, max(dq, dk) + dq + dk + dv + 3 * number)
    with prepared.state.timed_calls():
        assert cpu.memory(prepared.forward).facts["saved"] == saved
        assert cpu.memory(prepared.call).total == peak


def test_an_idle_process_keeps_no_core_busy() -> None:
    assert busy_threads(0.2) < 0.2


@pytest.mark.parametrize(("in_c", "least"), [(True, 1.0), (False, 0.02)], ids=["in C", "in Python"])
def test_a_spinning_thread_is_seen(in_c: bool, least: float) -> None:
    """In C whatever else runs here; a thread that waits for Python's lock is seen by the CPU time that it gets."""
    stop = threading.Event()
    matrix = torch.ones(2048, 2048)  # so large that the thread hardly ever waits for Python's lock

    def spin() -> None:
        while not stop.is_set():
            if in_c:
                matrix @ matrix

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert busy_threads(0.2) >= least
    finally:
        stop.set()
        thread.join()


def test_warming_excludes_imports_from_later_collections(cpu: CpuInstrument) -> None:
    cpu.warm()
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    assert frozen > 10_000


@pytest.mark.skipif(not ISA, reason="this CPU has no AVX2")
def test_a_worker_uses_the_instruction_set_of_its_arm() -> None:
    assert of_a_worker()["isa"] == "AVX2"


@pytest.mark.skipif(not ISA, reason="this CPU has no AVX2")
def test_an_instruction_set_that_is_set_too_late_is_refused() -> None:
    with pytest.raises(RuntimeError, match="ATEN_CPU_CAPABILITY=DEFAULT"):
        CpuInstrument(parse_device("cpu:threads=1:isa=default"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_release_returns_the_allocators_memory() -> None:
    assert of_a_worker()["released"] > 90_000_000
