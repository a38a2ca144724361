"""The noise floor between equal arms."""

from collections.abc import Callable

from attnbench.analysis import noise_floor
from attnbench.analysis.noise_floor import ControlPair
from attnbench.analysis.restarts import join
from attnbench.engine import sweep
from attnbench.engine.runner import Observer, Runner
from attnbench.engine.sweep import Request
from attnbench.machine import identity
from attnbench.records.arm import Device
from attnbench.records.result import Result

# Cases of equal arms, from a tenth of a millisecond to a tenth of a second on one core.
FLOOR_SEQ = "64,128,256,512,1024,2048"
FLOOR_BACKEND = "sdpa:flash"
FLOOR_RESTARTS = 6


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
