"""How a kernel is cut: plain values in, a `Tiling` out. No torch, no GPU; which path serves is decided here too.

The tables are chosen by what compiles: the largest tiles whose shared memory fits and that spill fewest registers. No
search runs at call time: it would need the GPU for itself, and a bad configuration can crash the compiler.
"""

from __future__ import annotations

import re

import msgspec

HEAD_DIM_MOST = 256
INTERPRETER = "interpreter"  # the arch of a CPU

# Keys and values of the heads that run side by side are to stay in the L2 cache; FlashAttention-3 allows them as much.
# https://github.com/Dao-AILab/flash-attention/blob/main/hopper/tile_scheduler.hpp
RESIDENT_BYTES = 32 * 2**20

# Shared memory of one block: the CUDA programming guide, table of compute capabilities; the LDS of CDNA 3 and 4.
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
SHARED_BYTES = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "gfx942": 65536,
}


class Tiling(msgspec.Struct, frozen=True, kw_only=True):
    """One way to cut a forward pass."""

    path: str = "portable"  # the file that holds the kernel
    block_q: int
    block_kv: int
    warps: int
    stages: int  # tiles of keys and values in flight
    resident: int = 1  # (batch, head) pairs whose tiles run side by side
    long_first: bool = False  # the tiles of the last rows before those of the first


# (family, bytes of a number, padded head_dim): block_q, block_kv, warps, stages
TABLE: dict[tuple[str, int, int], tuple[int, int, int, int]] = {
    ("sm_80", 2, 64): (128, 64, 8, 3),
    ("sm_80", 2, 128): (128, 32, 8, 3),
    ("sm_80", 2, 256): (64, 32, 8, 2),
    ("sm_86", 2, 64): (128, 64, 8, 2),
    ("sm_86", 2, 128): (128, 32, 8, 2),
    ("sm_86", 2, 256): (64, 32, 8, 2),
    ("sm_90", 2, 64): (128, 128, 8, 3),
    ("sm_90", 2, 128): (128, 64, 8, 3),
    ("sm_90", 2, 256): (128, 32, 8, 2),
    ("sm_100", 2, 64): (128, 64, 4, 3),
    ("sm_100", 2, 128): (128, 64, 8, 3),
    ("sm_100", 2, 256): (128, 32, 8, 2),
    ("gfx942", 2, 64): (128, 64, 4, 1),
    ("gfx942", 2, 128): (128, 64, 4, 1),
    ("gfx942", 2, 256): (64, 32, 4, 1),
}
# IEEE float32 runs on no tensor core and keeps its operands in registers: small tiles, whatever the GPU.
TABLE |= {
    (family, 4, width): cut
    for family in SHARED_BYTES
    for width, cut in {64: (64, 32, 8, 2), 128: (64, 16, 8, 2), 256: (32, 16, 8, 1)}.items()
}


def tiling(
    *,
    arch: str,
    dtype_bytes: int,
    head_dim: int,
    head_dim_v: int,
    batch: int,
    heads: int,
    kv_heads: int,
    seq_q: int,
    seq_kv: int,
    growing: bool,
) -> Tiling:
    """The cut for a shape on an arch: `sm_90`, `gfx942`, `interpreter`. `growing`: later rows see more keys."""
    width = max(64, padded(max(head_dim, head_dim_v)))
    small = (32, 32, 1, 1)
    block_q, block_kv, warps, stages = small if arch == INTERPRETER else TABLE[family(arch), dtype_bytes, width]
    block_q = min(block_q, padded(seq_q))
    return Tiling(
        block_q=block_q,
        block_kv=min(block_kv, padded(seq_kv)),
        # Below 64 rows eight warps would have no rows of their own.
        warps=warps if block_q >= 64 else min(warps, 4),
        stages=stages,
        resident=_resident(seq_kv * (head_dim + head_dim_v) * dtype_bytes, batch, heads, kv_heads) if growing else 1,
        long_first=growing,
    )


def family(arch: str) -> str:
    """The arch of the tables that serves this one."""
    if arch in SHARED_BYTES:
        return arch
    if (nvidia := re.fullmatch(r"sm_(\d+)", arch)) and int(nvidia[1]) > 80:
        # 10x and 11x are Blackwell with much shared memory; 8x and 12x are consumer GPUs with little.
        return "sm_100" if 100 <= int(nvidia[1]) < 120 else "sm_86"
    if arch.startswith("gfx9"):
        return "gfx942"
    raise ValueError(f"arch={arch!r}: no kernel configuration; there are sm_80 and newer, and gfx9")


def padded(length: int) -> int:
    """The power of two that holds it, at least 16: the smallest side of a matrix product on tensor cores."""
    return max(16, 1 << (length - 1).bit_length())


def _resident(pair_bytes: int, batch: int, heads: int, kv_heads: int) -> int:
    """How many (batch, head) pairs run side by side; the heads of a group share one K and V."""
    groups = max(1, RESIDENT_BYTES // max(1, pair_bytes))
    return min(batch * heads, groups * (heads // kv_heads))
