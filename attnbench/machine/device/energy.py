"""Energy of a call: the counter of the whole device, read before and after seconds of uninterrupted calls.

NVML's counter moves every 20 to 100 ms (https://petsc.org/main/manualpages/Log/PetscLogGpuEnergyMeter), and the sensor
of A100 and H100 samples a quarter of the time (https://arxiv.org/abs/2312.02741). So the calls take seconds and start
at a random time. RAPL counts a whole package (https://www.kernel.org/doc/html/latest/power/powercap/powercap.html), and
often only root can read it. A missing figure has a reason, and is never zero.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from attnbench.machine.device.instrument import Call, Instrument
from attnbench.machine.resources import first_line

STEADY_S, IDLE_S, MAX_OFFSET_S = 2.0, 1.0, 0.1
POWERCAP = Path("/sys/class/powercap")

Meter = Callable[[], float]  # joules so far


class CallEnergy(NamedTuple):
    """Energy of one call, measured over many."""

    joules: float
    above_idle: float  # joules, less what the idle device uses in the same time
    seconds: float
    calls: int
    source: str


def measure(instrument: Instrument, call: Call, call_s: float) -> CallEnergy | str:
    """The energy of a call that takes `call_s` seconds, or why there is no figure."""
    meter = instrument.energy_meter()
    if isinstance(meter, str):
        return meter
    source, joules = meter
    instrument.synchronize()
    idle_w = _power(joules, IDLE_S)
    time.sleep(random.Random().uniform(0, MAX_OFFSET_S))
    batch = max(1, round(0.01 / max(call_s, 1e-6)))
    before, started, calls = joules(), time.monotonic(), 0
    while (seconds := time.monotonic() - started) < STEADY_S:
        for _ in range(batch):
            call()
        instrument.synchronize()
        calls += batch
    used = joules() - before
    seconds = time.monotonic() - started
    if used <= 0:
        return f"{source}: the counter did not move in {seconds:.1f} s"
    return CallEnergy(used / calls, (used - idle_w * seconds) / calls, seconds, calls, source)


def _power(joules: Meter, seconds: float) -> float:
    before, started = joules(), time.monotonic()
    time.sleep(seconds)
    return (joules() - before) / (time.monotonic() - started)


class Rapl:
    """The sum of the packages of a CPU. Their counters wrap around to zero."""

    def __init__(self, root: Path = POWERCAP) -> None:
        packages = [
            zone
            for zone in sorted(root.glob("intel-rapl:*"))
            if (first_line(zone / "name") or "").startswith("package")
        ]
        if not packages:
            raise OSError(f"RAPL: no package under {root}")
        self._zones = [(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in packages]
        self._last = [int(path.read_text()) for path, _ in self._zones]
        self._total_uj = 0

    def __call__(self) -> float:
        now = [int(path.read_text()) for path, _ in self._zones]
        for value, last, (_, limit) in zip(now, self._last, self._zones, strict=True):
            self._total_uj += value - last if value >= last else value + limit - last
        self._last = now
        return self._total_uj / 1e6


def rapl(root: Path = POWERCAP) -> tuple[str, Meter] | str:
    """The energy meter of this machine's CPUs, or why there is none."""
    try:
        return "RAPL, all packages", Rapl(root)
    except PermissionError as error:
        return f"RAPL: {error.filename} can only be read by root"
    except (OSError, ValueError) as error:
        return str(error)
