"""Measure the peak rates of devices, and the noise floor between equal arms.

Each device is measured in a separate worker with the environment of its arms: threads, pinning, allocator.
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from attnbench.analysis import noise_floor
from attnbench.analysis.noise_floor import ControlPair
from attnbench.analysis.restarts import join
from attnbench.engine import sweep
from attnbench.engine.runner import Observer, Runner
from attnbench.engine.sweep import Request
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.machine import hardware, identity, resources
from attnbench.records import ceilings
from attnbench.records.arm import Arm, Device
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Result
from attnbench.worker.protocol import CalibrateDevice

PARTS = ("matmul", "bandwidth", "exp", "launch")
OF_ISAS = ("matmul", "exp")  # bandwidth does not depend on the instruction set
PHASE_S = 300.0

# Cases of equal arms, from a tenth of a millisecond to a tenth of a second on one core.
FLOOR_SEQ = "64,128,256,512,1024,2048"
FLOOR_BACKEND = "sdpa:flash"
FLOOR_RESTARTS = 6


def devices(text: str) -> list[tuple[Device, tuple[str, ...]]]:
    """Devices and what to measure of each; by default those of `run`, and its CPU with each instruction set."""
    chosen = sweep.devices_of(text)
    isas = hardware.cpu_isas() if not text and chosen[0].kind == "cpu" else ()
    of_isas = [(msgspec.structs.replace(chosen[0], isa=isa), OF_ISAS) for isa in isas]
    return [*((device, PARTS) for device in chosen), *of_isas]


def measure(device: Device, parts: Sequence[str]) -> Ceilings | str:
    """The peak rates of one device, or why they cannot be measured."""
    started = time.monotonic()
    worker = Worker(Arm(backend="", device=device.text), resources.cores_for(device), 0)
    try:
        opened = worker.open(PHASE_S)
        reply = worker.ask(CalibrateDevice(parts=tuple(parts)), PHASE_S)
    except WorkerFailedError as failure:
        return failure.reason
    finally:
        worker.terminate()
    facts = opened.environment.facts
    if device.kind == "cpu":
        facts = facts | {"caches": hardware.cache_bytes(), "clock_hz": hardware.cpu_clock_hz()}
    return Ceilings(
        version=ceilings.VERSION,
        device=device.text,
        name=opened.environment.device,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        torch=opened.environment.packages.get("torch", ""),
        facts=facts,
        timer_s=facts.get("timer_resolution_s"),
        **msgspec.structs.asdict(reply),
    )


def floor_cases(device: Device) -> int:
    """The number of results that `equal_arms` measures."""
    return _floor_sweep(device, "").plan.cases * FLOOR_RESTARTS


def equal_arms(device: Device, budget: str, observer: Observer, watch: Callable[[Runner], None]) -> list[ControlPair]:
    """The differences between two equal arms over restarted workers, case by case."""
    ready = _floor_sweep(device, budget)
    results: list[Result] = []
    runner = Runner(ready.plan, ready.settings, results.extend, observer)
    watch(runner)
    runner.run()
    return list(noise_floor.of_run(join(results), identity.packages().get("torch", "")))


def _floor_sweep(device: Device, budget: str) -> sweep.Sweep:
    request = Request(
        axes={"seq": FLOOR_SEQ, "mask": "none,causal"},
        backend=f"{FLOOR_BACKEND},{FLOOR_BACKEND}",
        device=device.text,
        reference=FLOOR_BACKEND,
        restarts=FLOOR_RESTARTS,
        budget=budget,
    )
    return sweep.prepare(request)
