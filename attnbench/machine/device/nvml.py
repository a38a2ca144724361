"""Clocks, power and temperature of a GPU before and after a block, by NVML. What NVML does not report is left out."""

import contextlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeAlias, TypeVar

# Bits of nvmlDeviceGetCurrentClocksEventReasons, as nvml.h names them
# (https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html).
SW_POWER_CAP = 0x04
HW_SLOWDOWN = 0x08
SW_THERMAL = 0x20
HW_THERMAL = 0x40
HW_POWER_BRAKE = 0x80
_THROTTLED = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | HW_POWER_BRAKE

CLOCKS, CLOCKS_WITHIN = 5, 0.01

T = TypeVar("T")
Reader: TypeAlias = Callable[[ModuleType, object], T]  # NVML and the handle of a GPU -> a value of it


def tags(reasons: int) -> tuple[str, ...]:
    """Tags of a block from the bits: slowed by heat or hardware, or held by the power limit."""
    throttled = ("throttled",) if reasons & _THROTTLED else ()
    return (*throttled, "power_capped") if reasons & SW_POWER_CAP else throttled


def steady(clocks: list[float]) -> bool:
    """Whether the last CLOCKS readings of a clock are within CLOCKS_WITHIN of each other."""
    last = clocks[-CLOCKS:]
    return len(last) == CLOCKS and max(last) <= (1 + CLOCKS_WITHIN) * min(last)


class Gauge:
    """NVML's figures of the GPU with a UUID. All are empty without NVML, or if it does not know the UUID."""

    def __init__(self, uuid: str) -> None:
        self._nvml: ModuleType | None = None
        with contextlib.suppress(ImportError):
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = _handle(pynvml, uuid.removeprefix("GPU-"))
                self._nvml = pynvml

    def read(self) -> dict[str, float]:
        """Figures in base units, and the clock-event reasons as bits."""
        readings: dict[str, Reader[float]] = {
            "sm_clock_hz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6,
            "memory_clock_hz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM) * 1e6,
            "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            # The old name of "clocks event reasons", which drivers before 535 know too.
            "clock_reasons": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
            "processes": lambda nvml, gpu: len(nvml.nvmlDeviceGetComputeRunningProcesses(gpu)),
        }
        return {name: float(value) for name, value in self._query(readings).items()}

    def sm_clock_hz(self) -> float | None:
        clock = self._query({"hz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6})
        return clock.get("hz")

    def energy_meter(self) -> tuple[str, Callable[[], float]] | str:
        """The counter of the whole GPU in joules, since the driver was loaded; or why there is none."""
        nvml = self._nvml
        if nvml is None:
            return "NVML: not available, so there is no energy counter"

        def joules() -> float:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

        try:
            joules()
        except nvml.NVMLError as error:
            return f"NVML: no energy counter: {error}"
        return "NVML, total energy of the GPU", joules

    def process_bytes(self) -> int | None:
        """Memory of this process on the GPU; of all processes if a container hides their ids."""
        used = self._query(
            {"process": _process_bytes, "device": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used}
        )
        return used.get("process") or used.get("device")

    def about(self) -> dict[str, str | float]:
        """Constant facts: driver, power limit, VBIOS, MIG mode, the highest clock."""
        return self._query(
            {
                "driver": lambda nvml, _: str(nvml.nvmlSystemGetDriverVersion()),
                "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
                "vbios": lambda nvml, gpu: str(nvml.nvmlDeviceGetVbiosVersion(gpu)),
                "mig_mode": lambda nvml, gpu: nvml.nvmlDeviceGetMigMode(gpu)[0],
                "sm_clock_most_hz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM) * 1e6,
            }
        )

    def _query(self, readings: Mapping[str, Reader[T]]) -> dict[str, T]:
        values: dict[str, T] = {}
        if self._nvml is not None:
            for name, read in readings.items():
                with contextlib.suppress(self._nvml.NVMLError, AttributeError):
                    values[name] = read(self._nvml, self._handle)
        return values


def _process_bytes(nvml: ModuleType, handle: object) -> int | None:
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)


def _handle(nvml: ModuleType, uuid: str) -> object:
    """The handle of a whole GPU, or of a MIG slice."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")
