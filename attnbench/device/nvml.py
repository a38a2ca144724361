"""Clocks, power and temperature of a GPU round a block, by NVML. What NVML does not tell is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from attnbench import host

# Bits of nvmlDeviceGetCurrentClocksEventReasons, as nvml.h names them
# (https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html).
SW_POWER_CAP = 0x04
HW_SLOWDOWN = 0x08
SW_THERMAL = 0x20
HW_THERMAL = 0x40
HW_POWER_BRAKE = 0x80
_THROTTLED = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | HW_POWER_BRAKE


def tags(reasons: int) -> tuple[str, ...]:
    """What the bits mean for a reading: slowed by heat or hardware, or held by the power limit."""
    found = ("throttled",) if reasons & _THROTTLED else ()
    return (*found, "power_capped") if reasons & SW_POWER_CAP else found


class Gauge:
    """NVML's figures of one GPU. Without NVML every reading is empty."""

    def __init__(self, index: int) -> None:
        self._nvml: Any = None
        if index < len(host.gpus()):
            import pynvml

            self._nvml = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def read(self) -> dict[str, float]:
        """Figures in base units, and the clock-event reasons as bits."""
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml, self._handle
        readings: dict[str, Callable[[], Any]] = {
            "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6,
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "clock_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        found = {}
        for name, read in readings.items():
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                found[name] = float(read())
        return found

    def about(self) -> dict[str, Any]:
        """What does not change: power limit, VBIOS, MIG mode."""
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml, self._handle
        readings: dict[str, Callable[[], Any]] = {
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "vbios": lambda: nvml.nvmlDeviceGetVbiosVersion(handle),
            "mig_mode": lambda: nvml.nvmlDeviceGetMigMode(handle)[0],
        }
        found = {}
        for name, read in readings.items():
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                found[name] = read()
        return found
