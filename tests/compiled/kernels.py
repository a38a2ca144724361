"""Every shipped configuration of the Triton kernels, compiled ahead of time for GPUs that are not here.

Compiling needs TRITON_INTERPRET to be unset, so these tests need a process of their own: `test_triton.py` starts it,
and no collection finds this file by itself.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnbench.kernels import portable
from attnbench.kernels.tiling import SHARED_BYTES, TABLE, padded

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# The matrix products of bf16 on each architecture.
PRODUCTS = {
    "sm_80": r"mma\.sync\.\S*bf16\.bf16",
    "sm_86": r"mma\.sync\.\S*bf16\.bf16",
    "sm_90": r"wgmma\.mma_async\.\S*bf16\.bf16",
    "sm_100": r"tcgen05\.mma\.\S*kind::f16",
    "gfx942": r"v_mfma_f32_\S*bf16",
}
# Bytes of spill stores that are borne. IEEE float32 keeps its operands in registers, as it uses no tensor core.
SPILLED_MOST = {2: 0, 4: 1024}
CHOSEN_WITH = "3.7"  # the tables go by what this Triton compiles
BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Variant(NamedTuple):
    """What a kernel is specialised for."""

    family: str
    dtype: str
    width: int
    mask: str = "none"  # none, causal, rows
    softcap: bool = False
    precision: str = "ieee"


def label(variant: Variant) -> str:
    return "-".join(str(value) for value in variant)


class Built(NamedTuple):
    """What the compiler made."""

    assembly: str
    shared_bytes: int
    spilled_bytes: int
    remarks: str


def constants(variant: Variant) -> dict[str, Any]:
    """As `portable.forward` gives them, with contiguous tensors."""
    block_q, block_kv, _, _ = TABLE[variant.family, size(variant), variant.width]
    fixed: dict[str, Any] = {
        "GROUP": 4,
        "HEAD_DIM": variant.width,
        "HEAD_DIM_V": variant.width,
        "BLOCK_D": padded(variant.width),
        "BLOCK_E": padded(variant.width),
        "BLOCK_Q": block_q,
        "BLOCK_KV": block_kv,
        "LONG_FIRST": variant.mask == "causal",
        "ROWS": variant.mask == "rows",
        "EDGES": variant.mask != "none",
        "FUSED": not variant.softcap,
        "SOFTCAP": variant.softcap,
        "LSE": True,
        "PRECISION": variant.precision,
        "UPCAST": False,
    }
    fixed |= dict.fromkeys(("stride_qd", "stride_kd", "stride_ve", "stride_oe"), 1)
    return fixed if variant.mask == "rows" else fixed | {"low_ptr": None, "high_ptr": None}


def size(variant: Variant) -> int:
    return 4 if variant.dtype == "fp32" else 2


def kind(name: str, dtype: str) -> str:
    kinds = {"lse_ptr": "*fp32", "low_ptr": "*i32", "high_ptr": "*i32", "scale": "fp32", "softcap": "fp32"}
    return kinds.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")


@cache
def build(variant: Variant) -> Built:
    names, fixed = portable.forward_kernel.arg_names, constants(variant)
    signature = {name: "constexpr" if name in fixed else kind(name, variant.dtype) for name in names}
    aligned = [
        index
        for index, name in enumerate(names)
        if name not in fixed and name != "stride_rows" and (name.endswith("_ptr") or name.startswith("stride_"))
    ]
    source = ASTSource(
        portable.forward_kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    _, _, warps, stages = TABLE[variant.family, size(variant), variant.width]
    target = TARGETS[variant.family]
    compiled = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    if target.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        spilled = re.findall(r"vgpr_spill_count: *(\d+)", assembly)
        return Built(assembly, compiled.metadata.shared, 4 * int(spilled[0]), "")
    remarks = assemble(compiled.asm["ptx"], variant.family)
    spilled = re.findall(r"(\d+) bytes spill stores", remarks)
    return Built(compiled.asm["ptx"], compiled.metadata.shared, int(spilled[0]), remarks)


def assemble(ptx: str, family: str) -> str:
    """What ptxas says of it."""
    number = int(family.removeprefix("sm_"))
    program = BINARIES / ("ptxas-blackwell" if number >= 100 else "ptxas")
    name = family + ("a" if number >= 90 else "")
    command = [program, "-v", "--gpu-name", name, "--output-file", "/dev/null", "/dev/stdin"]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


QUICK = [Variant("sm_90", "bf16", 128, "causal"), Variant("sm_80", "bf16", 64)]
SLOW = [
    *(Variant(family, "bf16", width, mask) for family in TARGETS for width in (64, 128) for mask in ("none", "causal")),
    *(Variant(family, "bf16", 256, "causal") for family in TARGETS),
    *(Variant(family, "bf16", 128, "rows") for family in TARGETS),
    *(Variant(family, "fp16", 128, "causal", softcap=True) for family in TARGETS),
]
IEEE = [Variant(family, "fp32", width, "causal") for family in ("sm_80", "sm_90", "gfx942") for width in (64, 128, 256)]
TF32 = [
    Variant(family, "fp32", width, "causal", precision="tf32") for family in ("sm_80", "sm_90") for width in (64, 128)
]
HALVES = [*QUICK, *(pytest.param(variant, marks=pytest.mark.slow) for variant in SLOW if variant not in QUICK)]
FLOATS = [pytest.param(variant, marks=pytest.mark.slow) for variant in (*IEEE, *TF32)]


@pytest.mark.parametrize("variant", [*HALVES, *FLOATS], ids=label)
def test_shared_memory_fits(variant: Variant) -> None:
    assert build(variant).shared_bytes <= SHARED_BYTES[variant.family]


@pytest.mark.skipif(
    not triton.__version__.startswith(CHOSEN_WITH), reason=f"the tables were chosen with Triton {CHOSEN_WITH}"
)
@pytest.mark.parametrize("variant", [*HALVES, *FLOATS], ids=label)
def test_registers_hold_what_a_kernel_needs(variant: Variant) -> None:
    assert build(variant).spilled_bytes <= SPILLED_MOST[size(variant)]


@pytest.mark.parametrize("variant", [*HALVES, *FLOATS], ids=label)
def test_asynchronous_products_are_not_serialised(variant: Variant) -> None:
    assert "serialized" not in build(variant).remarks


@pytest.mark.parametrize("variant", [variant for variant in HALVES if "bf16" in str(variant)], ids=label)
def test_products_of_bf16_run_on_tensor_cores(variant: Variant) -> None:
    found = re.findall(PRODUCTS[variant.family], build(variant).assembly)
    loops = 1 if variant.mask == "none" else 2
    assert len(found) >= 2 * loops  # q k and p v
