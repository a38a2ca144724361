"""The devices to calibrate, what is stored of their peak rates, and the noise floor between equal arms."""

from collections.abc import Callable

import msgspec

from attnbench.analysis import noise_floor
from attnbench.analysis.noise_floor import ControlPair
from attnbench.analysis.restarts import join
from attnbench.engine import sweep
from attnbench.engine.calibration import PARTS
from attnbench.engine.runner import Observer, Runner
from attnbench.engine.sweep import Request
from attnbench.machine import hardware, identity
from attnbench.records import ceilings
from attnbench.records.arm import Device
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Result

OF_ISAS = ("matmul", "exp")  # bandwidth does not depend on the instruction set

# Cases of equal arms, from a tenth of a millisecond to a tenth of a second on one core.
FLOOR_SEQ = "64,128,256,512,1024,2048"
FLOOR_BACKEND = "sdpa:flash"
FLOOR_RESTARTS = 6


def devices(text: str) -> list[tuple[Device, tuple[str, ...]]]:
    """Devices and what to measure of each; by default those of `run`, and its CPU with each instruction set."""
    chosen = sweep.devices_of(text)
    isas = hardware.cpu_isas() if not text and chosen[0].kind == "cpu" else ()
    of_isas = [(msgspec.structs.replace(chosen[0], isa=isa), OF_ISAS) for isa in isas]
    return [*((device, tuple(PARTS)) for device in chosen), *of_isas]


def save(fingerprint: str, result: Ceilings, force: bool) -> str:
    """Store the ceilings, unless they are disturbed and the stored ones are not; return what was done."""
    if path := ceilings.save(fingerprint, result, force):
        return f"saved: {path}"
    return f"not saved: {result.device}: {result.disturbance}; those stored were not disturbed (--force replaces them)"


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
