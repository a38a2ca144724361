"""The processor and the NVIDIA GPUs of this machine, and which devices an arm can name.

GPUs are listed by NVML: no CUDA context is created.
"""

import contextlib
import hashlib
import os
import platform
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import msgspec

from attnbench.machine.resources import ROOT, available_cores, default_threads, first_line, lines, number
from attnbench.records.arm import Device
from attnbench.records.result import Record

# The flag of /proc/cpuinfo that each instruction set of a device needs.
ISA_FLAG = {"default": "", "avx2": "avx2", "avx512": "avx512f", "amx": "amx_tile"}


@lru_cache(maxsize=1)
def cpu_model() -> str | None:
    """The name of the CPU."""
    return _cpuinfo("model name") or platform.processor() or None


def cpu_isas() -> list[str]:
    """The instruction sets that this CPU has, of those that a device can name."""
    return [isa for isa, flag in ISA_FLAG.items() if flag and flag in cpu_flags()]


def cpu_clock_hz() -> float | None:
    """The highest clock that the system reports; in a virtual machine, the nominal clock."""
    if (khz := number(ROOT / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")) is not None:
        return 1e3 * khz
    with contextlib.suppress(ValueError):
        return 1e6 * float(_cpuinfo("cpu MHz"))
    return None


def cache_bytes() -> dict[str, int]:
    """Size of each data cache of the first core: L1, L2, L3."""
    sizes = {}
    for folder in sorted((ROOT / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KM])", first_line(folder / "size") or "")
        if size and first_line(folder / "type") != "Instruction":
            sizes[f"L{first_line(folder / 'level')}"] = int(size[1]) * {"K": 1024, "M": 1024**2}[size[2]]
    return sizes


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets and features, as Linux lists them."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """The value of the first line of /proc/cpuinfo with that key; empty without one."""
    values = (line.partition(":")[2] for line in lines(ROOT / "proc/cpuinfo") if line.startswith(key))
    return next(values, "").strip()


class Gpu(Record, frozen=True, kw_only=True):
    """One NVIDIA GPU, as NVML reports it."""

    index: int
    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str
    uuid_hash: str  # of the UUID, which is not stored


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, in the order of CUDA's numbers."""
    return visible(_query()[0], os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(installed: tuple[Gpu, ...], variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that this value of CUDA_VISIBLE_DEVICES names, renumbered. CUDA stops at the first unknown name.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars
    """
    if variable is None:
        return installed
    chosen: list[Gpu] = []
    for name in (part.strip() for part in variable.split(",")):
        match = next((gpu for gpu in installed if name == str(gpu.index) or _hash(name) == gpu.uuid_hash), None)
        if match is None:
            break
        chosen.append(msgspec.structs.replace(match, index=len(chosen)))
    return tuple(chosen)


def gpu_objection() -> str:
    """Why there is no usable GPU; empty if there is one."""
    if gpus():
        return ""
    return _query()[1] or "CUDA_VISIBLE_DEVICES names none of the GPUs here"


@lru_cache(maxsize=1)
def _query() -> tuple[tuple[Gpu, ...], str]:
    try:
        import pynvml
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        result = tuple(_gpu(pynvml, index, driver) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    return result, "" if result else "NVML sees no GPU"


def _gpu(nvml: ModuleType, index: int, driver: str) -> Gpu:
    import psutil

    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability, memory_bytes = (0, 0), int(psutil.virtual_memory().total)
    with contextlib.suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = int(major), int(minor)
    with contextlib.suppress(nvml.NVMLError):  # a chip that shares the host's memory reports none
        memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=memory_bytes,
        capability=capability,
        driver=driver,
        uuid_hash=_hash(str(nvml.nvmlDeviceGetUUID(handle))),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_GPU_NODES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")


def check_device(device: Device) -> str | None:
    """Why this machine does not have that device, and what it has; None if it has it."""
    if device.kind == "cuda":
        return _check_gpu(device.index)
    cores = available_cores()
    if device.threads > len(cores):
        return f"{device.threads} threads, and {len(cores)} cores to run them on"
    if absent := set(device.cores).difference(cores):
        return f"no core {min(absent)} for attnbench to use; there are {', '.join(map(str, cores))}"
    if device.isa and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"instruction sets are a choice of x86 CPUs; this one is {platform.machine()}"
    flag = ISA_FLAG.get(device.isa, "")
    if flag and flag not in cpu_flags():
        return f"this CPU has no {device.isa}; it has {', '.join(['default', *cpu_isas()])}"
    return None


def _check_gpu(index: int) -> str | None:
    usable = gpus()
    if index < len(usable):
        return None
    if usable:
        return f"no such GPU; there are {', '.join(f'cuda:{gpu.index} ({gpu.name})' for gpu in usable)}"
    if _query()[0]:
        part = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[index : index + 1]
        if part and part[0].strip().startswith(("MIG-", "GPU-")):
            return None  # a slice or a shortened UUID, which torch in the worker resolves
    elif any(Path(node).exists() for node in _GPU_NODES):
        return None  # a GPU without NVML, as with ROCm or in some containers
    return f"no GPU: {gpu_objection()}"


def devices() -> list[str]:
    """The values that `--device` can have here."""
    return [
        f"cpu:threads={default_threads()}",
        *(f"cpu:isa={isa}" for isa in cpu_isas()),
        *(f"cuda:{gpu.index}" for gpu in gpus()),
    ]
