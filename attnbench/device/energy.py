"""Energy of a call: the counter of the whole device, read before and after seconds of calls on end.

NVML's counter moves every 20 to 100 ms (https://petsc.org/main/manualpages/Log/PetscLogGpuEnergyMeter), and the sensor
of A100 and H100 sees a quarter of the time (https://arxiv.org/abs/2312.02741): hence the length, and the random start.
RAPL counts a whole package (https://www.kernel.org/doc/html/latest/power/powercap/powercap.html); often only root reads
it. Absent is said with its reason, and is never zero.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnbench.device import Call, Instrument

STEADY_S, IDLE_S, OFFSET_MOST_S = 2.0, 1.0, 0.1
POWERCAP = Path("/sys/class/powercap")

Meter = Callable[[], float]  # joules so far


def measure(instrument: Instrument, call: Call, call_s: float) -> dict[str, Any] | str:
    """The fields of `protocol.Energized`, or why there are none."""
    found = instrument.energy_meter()
    if isinstance(found, str):
        return found
    source, joules = found
    instrument.synchronize()
    idle_w = _power(joules, IDLE_S)
    time.sleep(random.uniform(0, OFFSET_MOST_S))
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
    return {
        "joules": used / calls,
        "above_idle": (used - idle_w * seconds) / calls,
        "seconds": seconds,
        "calls": calls,
        "source": source,
    }


def _power(joules: Meter, seconds: float) -> float:
    before, started = joules(), time.monotonic()
    time.sleep(seconds)
    return (joules() - before) / (time.monotonic() - started)


class Rapl:
    """The packages of a CPU, added up; their counters start again from zero when they are full."""

    def __init__(self, root: Path = POWERCAP) -> None:
        packages = [zone for zone in sorted(root.glob("intel-rapl:*")) if _name(zone).startswith("package")]
        if not packages:
            raise OSError(f"RAPL: no package under {root}")
        self._zones = [(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in packages]
        self._last = [int(path.read_text()) for path, _ in self._zones]
        self._total_uj = 0

    def __call__(self) -> float:
        """Joules since the start."""
        now = [int(path.read_text()) for path, _ in self._zones]
        for value, last, (_, most) in zip(now, self._last, self._zones, strict=True):
            self._total_uj += value - last if value >= last else value + most - last
        self._last = now
        return self._total_uj / 1e6


def rapl(root: Path = POWERCAP) -> tuple[str, Meter] | str:
    """The meter of this machine's CPUs, or why there is none."""
    try:
        return "RAPL, all packages", Rapl(root)
    except PermissionError as error:
        return f"RAPL: {error.filename} can be read by root alone"
    except (OSError, ValueError) as error:
        return str(error)


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text()
    except OSError:
        return ""
