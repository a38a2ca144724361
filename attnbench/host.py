"""What there is without torch: cores, memory, GPUs by NVML, a worker's environment, the machine's fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from attnbench.arm import Device
from attnbench.result import Record

BUSY_SHARE = 0.5  # of all cores: above it the load average calls the machine busy
PACKAGES = ("attnbench", "torch", "triton", "numpy", "msgspec", "xformers", "flash-attn", "flash-attn-4")
MIB = 1024**2

# ATen and oneDNN read these before their import: an instruction set is a fact of an arm's environment.
_ISA = {
    "default": ("default", "SSE41"),
    "avx2": ("avx2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE"),
    "amx": ("avx512", "AVX512_CORE_AMX"),
}
_ISA_FLAG = {"default": "", "avx2": "avx2", "avx512": "avx512f", "amx": "amx_tile"}


class Gpu(Record, frozen=True, kw_only=True):
    """One NVIDIA GPU, as NVML tells it."""

    index: int
    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str
    uuid_hash: str  # of the UUID, which itself is not stored


def available_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Physical cores that this process may use, hyper-threads and container quotas counted out."""
    import psutil

    cores = min(psutil.cpu_count(logical=False) or 1, len(available_cores()))
    quota = _cpu_quota()
    return max(1, min(cores, int(quota)) if quota else cores)


def default_threads() -> int:
    """All physical cores less one, which the main process and the system need; at least one."""
    return max(1, physical_cores() - 1)


def cores_for(device: Device) -> tuple[int, ...]:
    """The cores to pin a worker to: the last ones, so that the main process keeps the first. Empty for a GPU: any."""
    if device.kind != "cpu":
        return ()
    return available_cores()[-(device.threads or default_threads()) :]


def memory_free_bytes() -> int:
    """What can still be had, the limit of a container counted."""
    import psutil

    free = int(psutil.virtual_memory().available)
    pairs = (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    )
    for limit, used in pairs:
        bound, current = _number(limit), _number(used)
        if bound is not None and current is not None:
            free = min(free, max(bound - current, 0))
    return free


def load() -> float | None:
    """Runnable processes, averaged over a minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy() -> bool:
    """Whether others use over half of the cores."""
    now = load()
    return now is not None and now > BUSY_SHARE * len(available_cores())


def gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU that NVML sees; none where there is no driver."""
    return _gpus()[0]


def gpu_objection() -> str:
    """Why NVML sees no GPU; empty if it does."""
    return _gpus()[1]


@lru_cache(maxsize=1)
def _gpus() -> tuple[tuple[Gpu, ...], str]:
    try:
        import pynvml
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = tuple(_gpu(pynvml, index, driver) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    return found, "" if found else "NVML sees no GPU"


def _gpu(nvml: Any, index: int, driver: str) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        capability=(int(major), int(minor)),
        driver=str(driver),
        uuid_hash=_hash(str(nvml.nvmlDeviceGetUUID(handle))),
    )


def check_device(device: Device) -> str | None:
    """Why this machine does not have that device, and what it has; None if it does."""
    if device.kind == "cuda":
        count = len(gpus())
        if device.index < count:
            return None
        return f"no such GPU: {gpu_objection() or f'there are {count}: ' + ', '.join(gpu.name for gpu in gpus())}"
    cores = len(available_cores())
    if device.threads > cores:
        return f"{device.threads} threads, and {cores} cores to run them on"
    flag = _ISA_FLAG.get(device.isa, "")
    flags = cpu_flags()
    if flag and flags and flag not in flags:
        have = ", ".join(isa for isa, needed in _ISA_FLAG.items() if not needed or needed in flags)
        return f"this CPU has no {device.isa}; it has {have}"
    return None


def devices() -> list[str]:
    """What `--device` can be here."""
    isas = [isa for isa, flag in _ISA_FLAG.items() if flag and flag in cpu_flags()]
    return [
        f"cpu:threads={default_threads()}",
        *(f"cpu:isa={isa}" for isa in isas),
        *(f"cuda:{gpu.index}" for gpu in gpus()),
    ]


def arm_environment(device: Device) -> dict[str, str]:
    """The variables of a worker, to be set before it starts.

    The allocator keeps what it frees: with glibc's moving thresholds two equal processes settle in two states, and one
    of them pays page faults at every call (docs/method.md). Idle workers must not spin.
    """
    threads = str(device.threads or default_threads()) if device.kind == "cpu" else str(default_threads())
    chosen = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "MALLOC_MMAP_MAX_": "0",  # no threshold to move: glibc before 2.36 caps MALLOC_MMAP_THRESHOLD_ at 32 MiB
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 * MIB),
        "MALLOC_ARENA_MAX": "1",  # other arenas live in heaps of 64 MiB, too small for what attention allocates
        "PYTHONHASHSEED": "0",
    }
    if device.isa:
        chosen["ATEN_CPU_CAPABILITY"], chosen["ONEDNN_MAX_CPU_ISA"] = _ISA[device.isa]
    if device.kind == "cuda":
        chosen |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": _visible(device.index)}
    return chosen


def _visible(index: int) -> str:
    """NVML numbers all GPUs; a list that is set already renumbers them for CUDA."""
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return given[index] if index < len(given) else str(index)


def allocator() -> str:
    """The C library's allocator by name; two of them are not comparable."""
    if preload := os.environ.get("LD_PRELOAD", ""):
        for name in ("jemalloc", "tcmalloc", "mimalloc"):
            if name in preload:
                return name
    name, version = platform.libc_ver()
    return f"{name} {version}".strip() or platform.system()


@lru_cache(maxsize=1)
def cpu_model() -> str | None:
    """The name that the CPU gives itself."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets and features, as Linux lists them."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def packages() -> dict[str, str]:
    """Versions of what matters, read from package metadata; nothing is imported."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def fingerprint() -> tuple[str, dict[str, Any]]:
    """A hash of stable facts of the machine, and the facts; neither host nor user name is among them."""
    import psutil

    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": physical_cores(),
        "isa": sorted(isa for isa, flag in _ISA_FLAG.items() if flag and flag in cpu_flags()),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3),
        "gpus": [gpu.name for gpu in gpus()],
        "system": platform.system(),
    }
    return _hash(msgspec.json.encode(facts, order="sorted").decode()), facts


def machine_card() -> dict[str, Any]:
    """Everything worth a line in `doctor` and in a manifest."""
    governor = next(iter(_lines("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")), None)
    return {
        **fingerprint()[1],
        "memory_free_bytes": memory_free_bytes(),
        "load": load(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "allocator": allocator(),
        "governor": governor,
        "cpu_quota": _cpu_quota(),
        "gpu_details": [msgspec.to_builtins(gpu) for gpu in gpus()],
    }


def commit(path: Path) -> dict[str, Any] | None:
    """The git commit of a folder and whether it has changes; None outside a repository."""
    try:
        head = _git(path, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git(path, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def platform_objection() -> str | None:
    """Why nothing can be measured on this operating system, or None."""
    if sys.platform.startswith("win"):
        return "Windows is not supported: use Linux, or Linux in WSL 2"
    return None


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(path), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _cpu_quota() -> float | None:
    """Cores that the container may use in the mean; None without a limit."""
    for line in _lines("/sys/fs/cgroup/cpu.max"):
        quota, _, period = line.partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            return int(quota) / int(period)
    return None


def _number(path: str) -> int | None:
    text = next(iter(_lines(path)), "").strip()
    return int(text) if text.isdigit() else None


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace").splitlines()
    return []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
