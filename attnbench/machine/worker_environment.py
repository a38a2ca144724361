"""Environment variables of a worker: threads, allocator, instruction set, visible GPU."""

import os

from attnbench.machine.resources import default_threads
from attnbench.records.arm import Device

# Limits of ATen, oneDNN and MKL, which read them when they are imported.
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
_ISA = {
    "default": ("default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE_FP16", "AVX512"),
    "amx": ("avx512", "AVX512_CORE_AMX", ""),  # MKL's default is the best instruction set that it knows
}
_ISA_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def arm_environment(device: Device) -> dict[str, str]:
    """The variables of a worker on that device, set before it starts.

    The allocator keeps freed memory: with glibc's dynamic thresholds, two equal processes settle in two states, and one
    of them takes page faults at every call (docs/method.md). Threads of idle workers must not spin.
    """
    threads = str(device.threads or default_threads()) if device.kind == "cpu" else str(default_threads())
    variables = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PJRT_NPROC": threads,  # jax
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "MALLOC_MMAP_MAX_": "0",  # instead of a threshold: glibc before 2.36 caps MALLOC_MMAP_THRESHOLD_ at 32 MiB
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 * 1024**2),
        "MALLOC_ARENA_MAX": "1",  # other arenas live in heaps of 64 MiB, too small for what attention allocates
        "PYTHONHASHSEED": "0",
        # No library sends usage statistics or contacts a model hub.
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if device.isa:
        variables |= {name: value for name, value in zip(_ISA_VARIABLES, _ISA[device.isa], strict=True) if value}
    if device.kind == "cuda":
        variables |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": _cuda_name(device.index)}
    return variables


def _cuda_name(index: int) -> str:
    """The name of this GPU for a worker's CUDA_VISIBLE_DEVICES: its entry in our own list, which renumbers the GPUs."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)
