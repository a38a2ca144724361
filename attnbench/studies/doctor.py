"""The state of a machine before measurements: facts, noise, installed and missing backends."""

import statistics
import time
from collections.abc import Iterator

import msgspec

from attnbench import backends
from attnbench._version import __version__
from attnbench.engine import interpreters, plan, sweep
from attnbench.machine import hardware, identity, resources
from attnbench.units import percent, size

SPIN_S = 1.0
SLICE = 200_000  # additions in one reading of the noise check: a few milliseconds
QUIET_SPREAD = 0.05
EXTRAS = "pip install -c constraints.txt '.[cpu]' (ort, openvino, ggml) or '.[cpu-all]' (jax, zentorch too)"


class NoiseCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Times of equal pieces of work, relative to their median."""

    spread: float  # interquartile range
    longest: float
    readings: int


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one backend can run here."""

    backend: str
    missing: list[str]
    install: str
    here: bool  # it has a kernel for a device of this machine


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `doctor` prints."""

    attnbench: str
    machine: dict[str, object]
    packages: dict[str, str]
    gpu: str
    ceilings: dict[str, str]
    noise: NoiseCheck | None
    backends: list[Installation]


def examine(noise: bool = True) -> Report:
    """Examine this machine; `noise` runs a fixed piece of arithmetic for a second."""
    return Report(
        attnbench=__version__,
        machine=identity.machine_card(),
        packages=identity.packages(),
        gpu=hardware.gpu_objection() or "ok",
        ceilings={device.text: calibration_state(device.text) for device in sweep.devices_of("")},
        noise=_noise() if noise else None,
        backends=[_installation(name) for name in backends.names()],
    )


def text(report: Report) -> Iterator[str]:
    """The report as short lines, so that it can be pasted."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.packages.items())
    yield f"attnbench {report.attnbench}"
    yield f"cpu      {machine['cpu']}, {machine['cores']} cores, {_listed(machine['isa']) or 'no AVX2'}"
    yield f"memory   {size(resources.memory_free_bytes())} free of {machine['memory_gib']} GiB"
    yield f"gpu      {_listed(machine['gpus']) or report.gpu}"
    yield f"system   {machine['system']} {machine['kernel']}, Python {machine['python']}, {machine['allocator']}"
    yield f"packages {versions}"
    for device, state in report.ceilings.items():
        yield f"ceilings {device}: {state}"
    load = machine["load"]
    advice = ", busy: wait until other processes are done" if resources.busy() else ""
    yield f"load     {f'{load:.2f}' if isinstance(load, float) else 'unknown'}{advice}"
    if report.noise:
        spread, longest = percent(report.noise.spread), report.noise.longest
        quiet = report.noise.spread < QUIET_SPREAD
        yield f"noise    equal work: middle half spreads over {spread}, the worst took {longest:.2f} x the median"
        yield "         quiet" if quiet else "         noisy: compare backends only within one run, with --restarts 6"
    for backend in report.backends:
        missing = f"missing {', '.join(backend.missing)}; install: {backend.install}" if backend.missing else ""
        yield f"  {backend.backend:<18} {missing or ('ready' if backend.here else 'not on this machine')}"
    if any(each.missing and each.backend in plan.all_libraries("cpu") for each in report.backends):
        yield f"libraries for CPUs together, in a clone: {EXTRAS}"


def _listed(names: object) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else ""


def calibration_state(device: str) -> str:
    """When the device was calibrated, and what disturbed it."""
    ceilings = sweep.calibrated([device], identity.fingerprint()[0]).get(device)
    if not ceilings:
        return "not calibrated: attnbench calibrate"
    disturbance = f", {ceilings.disturbance}: attnbench calibrate" if ceilings.disturbed else ""
    return f"calibrated {ceilings.measured_at[:10]}{disturbance}"


def _installation(name: str) -> Installation:
    backend = backends.load(name)
    kinds = {"cpu", *(["cuda"] if hardware.gpus() else [])}
    missing = list(interpreters.missing(backend))
    return Installation(backend=name, missing=missing, install=backend.install, here=bool(kinds & set(backend.limits)))


def _noise() -> NoiseCheck:
    """Time equal pieces of pure Python arithmetic: their spread is that of the machine, not of a kernel."""
    readings = []
    until = time.monotonic() + SPIN_S
    while time.monotonic() < until:
        start = time.perf_counter()
        sum(range(SLICE))
        readings.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(readings, n=4)
    return NoiseCheck(spread=(high - low) / middle, longest=max(readings) / middle, readings=len(readings))
