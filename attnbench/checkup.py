"""The state of a machine before it measures: facts, noise, backends installed and missing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import attnbench
from attnbench import backends, host, plan, sweep
from attnbench.units import percent, size

SPIN_S = 1.0
SLICE = 200_000  # additions in one reading of the noise check: a few milliseconds
QUIET_SPREAD = 0.05


def examine(noise: bool = True) -> dict[str, Any]:
    """Everything as plain values; `noise` runs a fixed piece of arithmetic for a second."""
    return {
        "attnbench": attnbench.__version__,
        "machine": host.machine_card(),
        "packages": host.packages(),
        "gpu": host.gpu_objection() or "ok",
        "ceilings": {device.text: _calibrated(device.text) for device in sweep.devices_of("")},
        "noise": _noise() if noise else None,
        "backends": [_backend(name) for name in backends.names()],
    }


def text(report: dict[str, Any]) -> Iterator[str]:
    """Lines of at most a screen's width, so that they survive pasting."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    yield f"attnbench {report['attnbench']}"
    yield f"cpu      {machine['cpu']}, {machine['cores']} cores, {', '.join(machine['isa']) or 'no AVX2'}"
    yield f"memory   {size(machine['memory_free_bytes'])} free of {machine['memory_gib']} GiB"
    yield f"gpu      {', '.join(machine['gpus']) or report['gpu']}"
    yield f"system   {machine['system']} {machine['kernel']}, Python {machine['python']}, {machine['allocator']}"
    yield f"packages {versions}"
    for device, said in report["ceilings"].items():
        yield f"ceilings {device}: {said}"
    load = machine["load"]
    advice = ", busy: wait until others are done" if host.busy() else ""
    yield f"load     {'unknown' if load is None else f'{load:.2f}'}{advice}"
    if report["noise"]:
        spread, longest = percent(report["noise"]["spread"]), report["noise"]["longest"]
        quiet = report["noise"]["spread"] < QUIET_SPREAD
        yield f"noise    equal work: middle half spreads over {spread}, the worst took {longest:.2f} x the median"
        yield "         quiet" if quiet else "         noisy: compare backends only within one run, with --launches 6"
    for one in report["backends"]:
        missing = f"missing {', '.join(one['missing'])}; install: {one['install']}" if one["missing"] else ""
        here = "not on this machine" if not one["here"] else "ready"
        yield f"  {one['backend']:<18} {missing or here}"


def _calibrated(device: str) -> str:
    found = sweep.calibrated([device], host.fingerprint()[0]).get(device)
    return f"calibrated {found.measured_at[:10]}" if found else "not calibrated: attnbench calibrate"


def _backend(name: str) -> dict[str, Any]:
    backend = backends.load(name)
    kinds = {"cpu", *(["cuda"] if host.gpus() else [])}
    return {
        "backend": name,
        "missing": plan.missing(backend),
        "install": backend.install,
        "here": bool(kinds & set(backend.limits)),
    }


def _noise() -> dict[str, float]:
    """Equal pieces of pure Python arithmetic: their spread is the machine's, not a kernel's."""
    readings = []
    until = time.monotonic() + SPIN_S
    while time.monotonic() < until:
        start = time.perf_counter()
        sum(range(SLICE))
        readings.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(readings, n=4)
    return {"spread": (high - low) / middle, "longest": max(readings) / middle, "readings": len(readings)}
