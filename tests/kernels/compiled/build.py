"""Compile a launch of the Triton kernels ahead of time, for a GPU that is not here, and say what came of it.

Launches are made from tensors without data, so that what is compiled is what would run. A change of this file makes all
stored results (`results.py`) out of date.
"""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from attnbench.kernels.call import Call
from attnbench.kernels.hopper import gluon

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Matrix products on tensor cores. On Hopper and data centre Blackwell small ones still go by mma.sync.
PRODUCTS = {
    "sm_80": r"\bmma\.sync\.\S+",
    "sm_89": r"\bmma\.sync\.\S+",
    "sm_90": r"\b(?:wgmma\.mma_async|mma\.sync)\.\S+",
    "sm_100": r"\b(?:tcgen05\.mma|mma\.sync)\.\S+",
    "sm_120": r"\bmma\.sync\.\S+",
    "gfx942": r"\bv_mfma_\S+",
}
DTYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Built(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the compiler made of a launch."""

    shared_bytes: int
    registers: int
    threads: int
    spilled_bytes: int = 0
    serialized: bool = False  # whether ptxas waits after each asynchronous product
    products: dict[str, int] = {}  # instructions, and how many of each stand in the code
    copies: int = 0  # bulk copies of the tensor memory accelerator
    beside: int = 0  # exponentials of a kernel for Hopper where a product is under way
    alone: int = 0  # and where none is


def build(call: Call, arch: str) -> Built:
    """Compile a launch for an architecture."""
    threads = call.tiling.warps * TARGETS[arch].warp_size
    remarks = io.StringIO()  # what ptxas says, which Triton calls with options of its own
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), redirect_stdout(remarks):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # what is in the cache of Triton has no remarks
        compiled = triton.compile(source(call), target=TARGETS[arch], options=options(call))
    if TARGETS[arch].backend == "hip":
        assembly = compiled.asm["amdgcn"]
        registers, spilled = (_number(rf"\.{name}: *(\d+)", assembly) for name in ("vgpr_count", "vgpr_spill_count"))
        spilled_bytes = 4 * spilled
    else:
        assembly, text = compiled.asm["ptx"], remarks.getvalue()
        threads = _number(r"\.reqntid (\d+)", assembly)
        registers, spilled_bytes = _number(r"Used (\d+) registers", text), _number(r"(\d+) bytes spill st", text)
    found = re.findall(PRODUCTS[arch], assembly)
    beside, alone = _exponentials(compiled.asm["cubin"]) if call.kernel.is_gluon() else (0, 0)
    return Built(
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        threads=threads,
        spilled_bytes=spilled_bytes,
        serialized="serialized" in remarks.getvalue(),
        products={name: found.count(name) for name in sorted(set(found))},
        copies=len(re.findall(r"cp\.async\.bulk\.tensor", assembly)),
        beside=beside,
        alone=alone,
    )


def _exponentials(cubin: bytes) -> tuple[int, int]:
    """How many stand, in machine code, behind a wait that leaves a product under way, and behind others."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([BINARIES / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True)
    parts = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", done.stdout)
    behind = [(int(left), text.count("MUFU.EX2")) for left, text in zip(parts[1::2], parts[2::2], strict=True)]
    return sum(count for left, count in behind if left), sum(count for left, count in behind if not left)


def options(call: Call) -> dict[str, int]:
    """What the launcher passes to the compiler."""
    return {"num_warps": call.warps or call.tiling.warps, "num_stages": call.tiling.stages}


def source(call: Call) -> ASTSource:
    """The launch as the compiler takes it, specialised as the launcher would."""
    names = call.kernel.arg_names
    kinds, constants, aligned = {}, {}, []
    for index, (name, parameter) in enumerate(zip(names, call.kernel.params, strict=True)):
        value = call.arguments[name]
        free = not parameter.do_not_specialize
        kinds[name] = _kind(value, parameter.is_constexpr, free)
        for place, leaf, kind in _leaves((index,), value, kinds[name]):
            if kind == "constexpr":
                constants[place] = leaf
            elif isinstance(leaf, torch.Tensor) or (isinstance(leaf, int) and free and leaf % 16 == 0):
                aligned.append(place)
    divisible = {place: [["tt.divisibility", 16]] for place in aligned}
    language = gluon.GluonASTSource if call.kernel.is_gluon() else ASTSource
    return language(call.kernel, kinds, constexprs=constants, attrs=divisible)


def _kind(value: Any, constant: bool, free: bool) -> Any:
    if constant or value is None:
        return "constexpr"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{DTYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, gluon.TensorDescriptor):
        return f"tensordesc<{DTYPES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
    if isinstance(value, torch.Tensor):
        return f"*{DTYPES[value.dtype]}"
    if isinstance(value, tuple):
        return type(value)(*(_kind(item, False, free) for item in value))
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value == 1 and free else "i32" if abs(value) < 2**31 else "i64"


def _leaves(place: tuple[int, ...], value: Any, kind: Any) -> Iterator[tuple[tuple[int, ...], Any, str]]:
    if isinstance(kind, tuple):
        for number, (item, item_kind) in enumerate(zip(value, kind, strict=True)):
            yield from _leaves((*place, number), item, item_kind)
    else:
        yield place, value, kind


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
