"""Data sheets of devices: dense FLOP/s by dtype, bandwidth, power; and the FLOP of a CPU core in a clock cycle.

They are shown beside measured figures and never replace them. Sparse rates are left out: attention does not have that
sparsity.
"""

import re
from collections.abc import Mapping
from functools import cache

import msgspec


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """The data sheet of one device: dense rates at the boost clock in FLOP/s and B/s, bytes of memory, power in W."""

    name: str
    pattern: str  # regular expression for the name that NVML or the driver reports
    flop_per_s: dict[str, float]
    bytes_per_s: float
    memory_bytes: float
    power_w: float
    source: str


_AMPERE = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_HOPPER = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_H200 = "https://resources.nvidia.com/en-us-data-center-overview-mc/en-us-data-center-overview/hpc-datasheet-sc23-h200"
_BLACKWELL = "https://resources.nvidia.com/en-us-blackwell-architecture"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_L4 = "https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet"
_L40S = "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"
_MI300X = (
    "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf"
)


def _sheet(
    name: str, pattern: str, teraflops: tuple[float, ...], gigabytes: tuple[float, float], power_w: float, source: str
) -> Sheet:
    """A sheet with TFLOP/s of fp32, tf32, half precision and, if the device has it, fp8; GB and GB/s; W."""
    fp32, tf32, half, *fp8 = (1e12 * rate for rate in teraflops)
    rates = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half} | ({"fp8_e4m3": fp8[0]} if fp8 else {})
    return Sheet(
        name=name, pattern=pattern, flop_per_s=rates, memory_bytes=1e9 * gigabytes[0], bytes_per_s=1e9 * gigabytes[1],
        power_w=power_w, source=source,
    )  # fmt: skip


# The first sheet whose pattern matches is used.
SHEETS = (
    _sheet("A100 SXM 40GB", r"A100-SXM.*40", (19.5, 156, 312), (40, 1555), 400, _AMPERE),
    _sheet("A100 SXM 80GB", r"A100-SXM", (19.5, 156, 312), (80, 2039), 400, _AMPERE),
    _sheet("A100 PCIe 40GB", r"A100.*PCI.*40", (19.5, 156, 312), (40, 1555), 250, _AMPERE),
    _sheet("A100 PCIe 80GB", r"A100", (19.5, 156, 312), (80, 1935), 300, _AMPERE),
    _sheet("H100 PCIe", r"H100 PCIe", (51, 378, 756, 1513), (80, 2000), 350, _HOPPER),
    _sheet("H100 SXM", r"H100", (67, 494.7, 989.4, 1978.9), (80, 3350), 700, _HOPPER),
    _sheet("H200 SXM", r"H200", (67, 494.7, 989.4, 1978.9), (141, 4800), 700, _H200),
    _sheet("B200 SXM", r"B200", (75, 1125, 2250, 4500), (180, 8000), 1000, _BLACKWELL),
    _sheet("L40S", r"L40S", (91.6, 183, 362, 733), (48, 864), 350, _L40S),
    _sheet("L4", r"\bL4\b", (30.3, 60, 121, 242.5), (24, 300), 72, _L4),
    _sheet("RTX 4090", r"RTX 4090", (82.6, 82.6, 165.2, 330.3), (24, 1008), 450, _ADA),
    _sheet("MI300X", r"MI300X", (163.4, 653.7, 1307.4, 2614.9), (192, 5300), 750, _MI300X),
)

# FLOP of one core in one clock cycle: two fused multiply-adds of the full width; for AMX bf16 a tile product of
# 16 x 16 x 32 in 16 cycles. Cores with one 512-bit unit, or two of 256 bits, have half of that.
# Intel 64 and IA-32 Architectures Optimization Reference Manual, chapters 18 and 20, and https://uops.info
CPU_FLOP_PER_CLOCK = {"avx2": {"fp32": 32}, "avx512": {"fp32": 64}, "amx": {"fp32": 64, "bf16": 1024}}
CPU_SOURCE = "two fused multiply-adds of the full width a core and clock (Intel optimization manual; uops.info)"

# exp2 results of the special function units of one SM in a clock cycle. CUDA programming guide, table of the throughput
# of native arithmetic instructions. https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions
GPU_EXP_PER_CLOCK = 16


# No CPU has a higher clock, and no GPU runs further above the boost clock of its data sheet.
MAX_CPU_CLOCK_HZ = 6.5e9
MAX_BOOST = 1.15


def silicon(device_name: str, dtype: str, facts: Mapping[str, object]) -> float | None:
    """FLOP/s that no program on this device can reach; `facts` are those of its Environment."""
    if data_sheet := sheet(device_name):
        rate = data_sheet.flop_per_s.get(dtype)
        return MAX_BOOST * rate if rate else None
    per_clock = CPU_FLOP_PER_CLOCK.get(str(facts.get("isa", "")).lower(), {}).get(dtype)
    threads = facts.get("threads")
    return per_clock * MAX_CPU_CLOCK_HZ * threads if per_clock and isinstance(threads, int) else None


@cache
def sheet(device_name: str) -> Sheet | None:
    """The data sheet of a GPU, by the name that its driver reports; None if there is none."""
    return next((candidate for candidate in SHEETS if re.search(candidate.pattern, device_name)), None)


def sheets_named(text: str) -> list[Sheet]:
    """The data sheets whose names begin with these words, in any case: `h100`, `A100 SXM`."""
    return [each for each in SHEETS if f"{each.name} ".upper().startswith(f"{text} ".upper())]
