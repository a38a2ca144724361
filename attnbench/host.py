"""What there is without torch: cores, memory, GPUs by NVML, a worker's environment, the machine's fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator
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
ROOT = Path("/")

# What ATen, oneDNN and MKL may use, read before their import: an instruction set is a fact of an arm's environment.
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
_ISA = {
    "default": ("default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE_FP16", "AVX512"),
    "amx": ("avx512", "AVX512_CORE_AMX", ""),  # the best that MKL knows is its default
}
_ISA_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_GPU_NODES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")
_UNLIMITED = 1 << 60  # version 1 says "no limit" by a number near 2**63
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
    """One CPU of every physical core that this process may run on, no more than a container's quota pays for."""
    cores = whole_cores(_allowed_cpus())
    quota = cpu_quota()
    return cores if quota is None else cores[: max(1, int(quota))]


def whole_cores(cpus: tuple[int, ...], root: Path = ROOT) -> tuple[int, ...]:
    """The first CPU of every physical core among these; the other hyper-threads of a core are left out."""
    first: dict[str, int] = {}
    for cpu in cpus:
        siblings = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        first.setdefault(siblings, cpu)
    return tuple(sorted(first.values()))


def _allowed_cpus() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    import psutil

    return tuple(range(psutil.cpu_count(logical=False) or 1))


def physical_cores() -> int:
    """How many physical cores this process may use."""
    return len(available_cores())


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
    container = container_memory()
    return free if container is None else min(free, container[1])


def container_memory(root: Path = ROOT) -> tuple[int, int] | None:
    """Limit and what is free of it, in bytes, of the container that leaves least; None without a limit."""
    files = ("memory.max", "memory.current", "inactive_file")
    files_v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    found = []
    for folder in cgroups("memory", root):
        for limit_file, used_file, idle in (files, files_v1):
            limit, used = _number(folder / limit_file), _number(folder / used_file)
            if limit is not None and used is not None and limit < _UNLIMITED:
                # The page cache counts as used, and goes when memory is asked for.
                free = limit - used + int(_table(folder / "memory.stat").get(idle, "0"))
                found.append((max(free, 0), limit))
    free, limit = min(found, default=(0, 0))
    return (limit, free) if limit else None


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores that the container may use in the mean; None without a limit."""
    shares = []
    for folder in cgroups("cpu", root):
        quota, _, period = (_text(folder / "cpu.max") or "").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us") or "", _text(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit():
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def cgroups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, nearest first; version 1 or 2."""
    paths = dict(line.split(":", 2)[1:] for line in _lines(root / "proc/self/cgroup") if line.count(":") > 1)
    for line in _lines(root / "proc/self/mountinfo"):
        # proc_pid_mountinfo(5): id parent device root mount_point options ... - type source super_options
        before, _, after = line.partition(" - ")
        kind, options = after.partition(" ")[0], after.rpartition(" ")[2]
        if kind == "cgroup2":
            path = paths.get("", "/")
        elif kind == "cgroup" and controller in options.split(","):
            path = next((path for names, path in paths.items() if controller in names.split(",")), "/")
        else:
            continue
        top, mount = before.split()[3], root / before.split()[4].lstrip("/")
        # Seen from a namespace of its own, a container's path may lie outside of what is mounted.
        inside = Path(path).relative_to(top) if Path(path).is_relative_to(top) and ".." not in path else Path()
        yield from (mount / folder for folder in (inside, *inside.parents))


def load() -> float | None:
    """Runnable processes, averaged over a minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy() -> bool:
    """Whether others use over half of the cores."""
    now = load()
    return now is not None and now > BUSY_SHARE * len(available_cores())


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that NVML sees and CUDA_VISIBLE_DEVICES leaves, in the order in which CUDA numbers them."""
    return visible(_gpus()[0], os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: tuple[Gpu, ...], variable: str | None) -> tuple[Gpu, ...]:
    """Those that this value of CUDA_VISIBLE_DEVICES names, renumbered; CUDA stops at the first name that is not there.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars
    """
    if variable is None:
        return found
    chosen: list[Gpu] = []
    for name in (part.strip() for part in variable.split(",")):
        match = next((gpu for gpu in found if name == str(gpu.index) or _hash(name) == gpu.uuid_hash), None)
        if match is None:
            break
        chosen.append(msgspec.structs.replace(match, index=len(chosen)))
    return tuple(chosen)


def gpu_objection() -> str:
    """Why there is no GPU to use; empty if there is one."""
    if gpus():
        return ""
    return _gpus()[1] or "CUDA_VISIBLE_DEVICES names none of the GPUs here"


@lru_cache(maxsize=1)
def _gpus() -> tuple[tuple[Gpu, ...], str]:
    try:
        import pynvml
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        found = tuple(_gpu(pynvml, index, driver) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return (), f"NVML: {error}"
    return found, "" if found else "NVML sees no GPU"


def _gpu(nvml: Any, index: int, driver: str) -> Gpu:
    import psutil

    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    capability, memory_bytes = (0, 0), int(psutil.virtual_memory().total)
    with contextlib.suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = int(major), int(minor)
    with contextlib.suppress(nvml.NVMLError):  # a chip that shares the host's memory has none of its own to tell
        memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    uuid = str(nvml.nvmlDeviceGetUUID(handle))
    return Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=memory_bytes,
        capability=capability,
        driver=driver,
        uuid_hash=_hash(uuid),
    )


def check_device(device: Device) -> str | None:
    """Why this machine does not have that device, and what it has; None if it does."""
    if device.kind == "cuda":
        return _check_gpu(device.index)
    cores = len(available_cores())
    if device.threads > cores:
        return f"{device.threads} threads, and {cores} cores to run them on"
    if device.isa and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"instruction sets are a choice of x86 CPUs; this one is {platform.machine()}"
    flag = _ISA_FLAG.get(device.isa, "")
    if flag and flag not in cpu_flags():
        have = ", ".join(isa for isa, needed in _ISA_FLAG.items() if not needed or needed in cpu_flags())
        return f"this CPU has no {device.isa}; it has {have}"
    return None


def _check_gpu(index: int) -> str | None:
    found = gpus()
    if index < len(found):
        return None
    if found:
        return f"no such GPU; there are {', '.join(f'cuda:{gpu.index} ({gpu.name})' for gpu in found)}"
    if _gpus()[0]:
        part = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[index : index + 1]
        if part and part[0].strip().startswith(("MIG-", "GPU-")):
            return None  # a slice or a shortened UUID: the worker's torch will tell
    elif any(Path(node).exists() for node in _GPU_NODES):
        return None  # a GPU without NVML, as under ROCm or in some containers
    return f"no GPU: {gpu_objection()}"


def devices() -> list[str]:
    """What `--device` can be here."""
    return [
        f"cpu:threads={default_threads()}",
        *(f"cpu:isa={isa}" for isa in cpu_isas()),
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
        chosen |= {name: value for name, value in zip(_ISA_VARIABLES, _ISA[device.isa], strict=True) if value}
    if device.kind == "cuda":
        chosen |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": _visible(device.index)}
    return chosen


def _visible(index: int) -> str:
    """The name to give CUDA, so that the worker sees this GPU alone; a list that is set already renumbers them."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given[index] if index < len(given) else str(index)


def allocator() -> str:
    """The C library's allocator by name; two of them are not comparable."""
    if preload := os.environ.get("LD_PRELOAD", ""):
        for name in ("jemalloc", "tcmalloc", "mimalloc"):
            if name in preload:
                return name
    name, version = platform.libc_ver()
    if not name and any(Path("/lib").glob("ld-musl-*")):
        return "musl"
    return f"{name} {version}".strip() or platform.system()


@lru_cache(maxsize=1)
def cpu_model() -> str | None:
    """The name that the CPU gives itself."""
    for line in _lines(ROOT / "proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def cpu_isas() -> list[str]:
    """Instruction sets that this CPU has, of those that a device can name."""
    return [isa for isa, flag in _ISA_FLAG.items() if flag and flag in cpu_flags()]


def cpu_clock_hz() -> float | None:
    """The highest clock that the system names; in a virtual machine only the nominal one is told."""
    if (khz := _number(ROOT / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")) is not None:
        return 1e3 * khz
    for line in _lines(ROOT / "proc/cpuinfo"):
        if line.startswith("cpu MHz"):
            with contextlib.suppress(ValueError):
                return 1e6 * float(line.partition(":")[2])
    return None


def cache_bytes(root: Path = ROOT) -> dict[str, int]:
    """Size of each data cache that the first core sees: L1, L2, L3."""
    found = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KM])", _text(folder / "size") or "")
        if size and _text(folder / "type") != "Instruction":
            found[f"L{_text(folder / 'level')}"] = int(size[1]) * {"K": 1024, "M": MIB}[size[2]]
    return found


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets and features, as Linux lists them."""
    for line in _lines(ROOT / "proc/cpuinfo"):
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
    container = container_memory()
    return {
        **fingerprint()[1],
        "memory_free_bytes": memory_free_bytes(),
        "load": load(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "allocator": allocator(),
        "governor": _text(ROOT / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "huge_pages": _text(ROOT / "sys/kernel/mm/transparent_hugepage/enabled"),
        "cpu_quota": cpu_quota(),
        "memory_limit_bytes": container[0] if container else None,
        "gpu_details": [msgspec.to_builtins(gpu) for gpu in gpus()],
    }


def commit(path: Path) -> dict[str, Any] | None:
    """The git commit of a folder and whether it has changes; None outside a repository."""
    try:
        head = _git(path, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git(path, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(path), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _number(path: Path) -> int | None:
    text = _text(path) or ""
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(" ") for line in _lines(path))}


def _text(path: Path) -> str | None:
    return next(iter(_lines(path)), "").strip() or None


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").splitlines()
    return []


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
