"""What `attnbench calibrate` does: the ceilings of devices, and the noise floor of equal arms.

Each device is measured in a worker of its own, in the environment that its arms have: threads, pinning, allocator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from attnbench import ceilings, floor, frame, host, sweep
from attnbench.arm import Arm, Device
from attnbench.ceilings import Ceilings
from attnbench.floor import Twins
from attnbench.pool import BuriedError, Worker
from attnbench.protocol import Calibrate
from attnbench.result import Result
from attnbench.runner import Observer, Runner
from attnbench.sweep import Request

PARTS = ("matmul", "bandwidth", "exp", "launch")
OF_ISAS = ("matmul", "exp")  # memory is the same whatever instructions read it
PHASE_S = 300.0

# Cases of equal arms, from a tenth of a millisecond to a tenth of a second on one core.
FLOOR_SEQ = "64,128,256,512,1024,2048"
FLOOR_BACKEND = {"cpu": "sdpa:flash", "cuda": "sdpa:flash"}
FLOOR_LAUNCHES = 6


def devices(text: str) -> list[tuple[Device, tuple[str, ...]]]:
    """Those named; by default what `run` takes, and its CPU once more by each instruction set. With what to measure."""
    chosen = sweep.devices_of(text)
    found: list[tuple[Device, tuple[str, ...]]] = [(device, PARTS) for device in chosen]
    if not text and chosen[0].kind == "cpu":
        for isa in host.cpu_isas():
            found.append((msgspec.structs.replace(chosen[0], isa=isa), OF_ISAS))
    return found


def measure(device: Device, parts: Sequence[str]) -> Ceilings | str:
    """The ceilings of one device, or why they cannot be measured."""
    started = time.monotonic()
    worker = Worker(Arm(backend="", device=device.text), host.cores_for(device), 0)
    try:
        opened = worker.open(PHASE_S)
        if opened.unavailable:
            return opened.unavailable
        reply = worker.ask(Calibrate(parts=tuple(parts)), PHASE_S)
    except BuriedError as buried:
        return buried.reason
    finally:
        worker.bury()
    facts = opened.environment.facts
    return Ceilings(
        version=ceilings.VERSION,
        device=device.text,
        name=opened.environment.device,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        torch=opened.environment.packages.get("torch", ""),
        facts=facts | ({"caches": host.cache_bytes(), "clock_hz": host.cpu_clock_hz()} if device.kind == "cpu" else {}),
        matmul=reply.matmul,
        refused=reply.refused,
        bandwidth=reply.bandwidth,
        exp_per_s=reply.exp_per_s,
        exp_derived=reply.exp_derived,
        launch_s=reply.launch_s,
        timer_s=facts.get("timer_resolution_s"),
    )


def floor_cases(device: Device) -> int:
    """How many results `equal_arms` asks for."""
    return _floor_sweep(device, "").plan.cases * FLOOR_LAUNCHES


def equal_arms(device: Device, budget: str, observer: Observer, watch: Callable[[Runner], None]) -> list[Twins]:
    """How two equal arms differ over relaunched workers, case by case."""
    ready = _floor_sweep(device, budget)
    results: list[Result] = []
    runner = Runner(ready.plan, ready.terms, results.extend, observer)
    watch(runner)
    runner.run()
    return list(floor.of_run(frame.join(results), host.packages().get("torch", "")))


def _floor_sweep(device: Device, budget: str) -> sweep.Sweep:
    backend = FLOOR_BACKEND[device.kind]
    request = Request(
        axes={"seq": FLOOR_SEQ, "mask": "none,causal"},
        backend=f"{backend},{backend}",
        device=device.text,
        reference=backend,
        launches=FLOOR_LAUNCHES,
        budget=budget,
    )
    return sweep.ready(request)
