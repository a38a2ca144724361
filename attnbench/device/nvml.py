"""Clocks, power and temperature of a GPU round a block, by NVML. What NVML does not tell is left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

# Bits of nvmlDeviceGetCurrentClocksEventReasons, as nvml.h names them
# (https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html).
SW_POWER_CAP = 0x04
HW_SLOWDOWN = 0x08
SW_THERMAL = 0x20
HW_THERMAL = 0x40
HW_POWER_BRAKE = 0x80
_THROTTLED = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | HW_POWER_BRAKE

CLOCKS, CLOCKS_WITHIN = 5, 0.01


def tags(reasons: int) -> tuple[str, ...]:
    """What the bits mean for a reading: slowed by heat or hardware, or held by the power limit."""
    found = ("throttled",) if reasons & _THROTTLED else ()
    return (*found, "power_capped") if reasons & SW_POWER_CAP else found


def steady(clocks: list[float]) -> bool:
    """Whether the last readings of a clock are near one another."""
    last = clocks[-CLOCKS:]
    return len(last) == CLOCKS and max(last) <= (1 + CLOCKS_WITHIN) * min(last)


class Gauge:
    """NVML's figures of one GPU, found by its UUID. Without NVML, or where it does not know the UUID, all are empty."""

    def __init__(self, uuid: str) -> None:
        self._nvml: Any = None
        with contextlib.suppress(ImportError):
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = _handle(pynvml, uuid.removeprefix("GPU-"))
                self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """Figures in base units, and the clock-event reasons as bits."""
        nvml = self._nvml
        readings: dict[str, Callable[[], Any]] = {
            "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM) * 1e6,
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU),
            # The name that drivers before 535 know too.
            "clock_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle),
            "processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)),
        }
        return {name: float(value) for name, value in self._answers(readings).items()}

    def sm_clock_hz(self) -> float | None:
        """The clock alone."""
        nvml = self._nvml
        read = {"it": lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM) * 1e6}
        return self._answers(read).get("it")

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        """The counter of the whole GPU in joules, since the driver was loaded; or why there is none."""
        nvml = self._nvml
        if nvml is None:
            return "NVML: not there, so no energy counter"

        def joules() -> float:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

        try:
            joules()
        except nvml.NVMLError as error:
            return f"NVML: no energy counter: {error}"
        return "NVML, total energy of the GPU", joules

    def process_bytes(self) -> int | None:
        """Memory of this process on the GPU; of all processes where a container hides their numbers."""
        nvml = self._nvml

        def own() -> int | None:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            return next((one.usedGpuMemory for one in running if one.pid == os.getpid()), None)

        found = self._answers({"own": own, "all": lambda: nvml.nvmlDeviceGetMemoryInfo(self._handle).used})
        return found.get("own") or found.get("all")

    def about(self) -> dict[str, Any]:
        """What does not change: driver, power limit, VBIOS, MIG mode, the highest clock."""
        nvml = self._nvml
        return self._answers(
            {
                "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
                "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1e3,
                "vbios": lambda: str(nvml.nvmlDeviceGetVbiosVersion(self._handle)),
                "mig_mode": lambda: nvml.nvmlDeviceGetMigMode(self._handle)[0],
                "sm_clock_most_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(self._handle, nvml.NVML_CLOCK_SM) * 1e6,
            }
        )

    def _answers(self, readings: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._nvml is not None:
            for name, read in readings.items():
                with contextlib.suppress(self._nvml.NVMLError, AttributeError):
                    found[name] = read()
        return found


def _handle(nvml: Any, uuid: str) -> Any:
    """A whole GPU, or a MIG slice of one."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
