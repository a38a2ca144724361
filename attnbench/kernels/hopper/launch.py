"""Launches of the kernels for Hopper."""

import triton
from torch import Tensor

from attnbench.kernels.call import Call, CallOptions, Saved, chip_of, listed
from attnbench.kernels.hopper import backward, forward
from attnbench.kernels.hopper.gluon import TensorDescriptor, gl
from attnbench.kernels.hopper.warps import ROWS
from attnbench.kernels.tiling import Tiling, padded

WARPGROUP = 4  # warps; a launch begins with one, the others join where the kernel divides
MAX_PINGPONG_WIDTH = 128  # wider heads leave no registers for it to win anything


def described(tensor: Tensor, rows: int, width: int = 0) -> TensorDescriptor:
    """A tensor [batch, heads, rows, width] to be copied by so many rows; columns beyond its width read 0."""
    width = width or tile_width(tensor.shape[3])
    size = tensor.element_size()
    layout = gl.NVMMASharedLayout(swizzle_byte_width=min(128, width * size), element_bitwidth=8 * size, rank=4)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, 1, rows, width], layout)


def tile_width(head_dim: int) -> int:
    """Columns of a tile."""
    return max(64, padded(head_dim))


def across(v: Tensor) -> Tensor:
    """[batch, heads, head_dim, rows]: a product of 8 bits reads values along the rows. Zeros fill up 16 bytes."""
    batch, heads, rows, width = v.shape
    turned = v.new_zeros(batch, heads, width, -rows % 16 + rows)
    turned[..., :rows] = v.transpose(2, 3)
    return turned


def forward_call(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, options: CallOptions, tiling: Tiling
) -> Call:
    """The launch of a forward pass: as many programs as there are processors, or fewer where there is less to do."""
    batch, heads, seq_q, _ = q.shape
    seq_kv = k.shape[2]
    rows, eight = ROWS.value, q.element_size() == 1
    values = described(across(v), tile_width(v.shape[3]), tiling.block_kv) if eight else described(v, tiling.block_kv)
    arguments = {
        "q": described(q, rows), "k": described(k, tiling.block_kv), "v": values, "EIGHT": eight,
        "out": described(out, rows), "lse_ptr": lse, "descale_ptr": options.descale, "listed": listed(options.keys),
        "pairs": batch * heads, "heads": heads, "seq_q": seq_q, "seq_kv": seq_kv,
        "left": options.keys.left, "right": options.keys.right, "resident": tiling.resident,
        "scale": float(options.scale), "GROUP": heads // k.shape[1], "BLOCK_KV": tiling.block_kv,
        "CONSUMERS": tiling.warps // WARPGROUP,
        "STAGES": tiling.stages, "LONG_FIRST": tiling.long_first,
        "EDGES": options.keys.hides(seq_q, seq_kv) or seq_kv % tiling.block_kv != 0,
        "PINGPONG": padded(q.shape[3]) <= MAX_PINGPONG_WIDTH,
    }  # fmt: skip
    tiles = triton.cdiv(seq_q, tiling.block_q) * batch * heads
    return Call(forward.forward_kernel, min(tiles, chip_of(q).processors), arguments, tiling, warps=WARPGROUP)


def _of_backward(saved: Saved, options: CallOptions, tiling: Tiling) -> dict[str, object]:
    seq_q, seq_kv = saved.q.shape[2], saved.k.shape[2]
    return {
        "lse_ptr": saved.lse, "delta_ptr": saved.delta, "heads": saved.q.shape[1], "seq_q": seq_q, "seq_kv": seq_kv,
        "left": options.keys.left, "right": options.keys.right, "resident": tiling.resident,
        "scale": float(options.scale), "CONSUMERS": tiling.warps // WARPGROUP,
        "STAGES": tiling.stages, "EDGES": options.keys.hides(seq_q, seq_kv),
    }  # fmt: skip


def key_call(saved: Saved, dk: Tensor, dv: Tensor, options: CallOptions, tiling: Tiling) -> Call:
    """dk and dv: as k and v."""
    batch, kv_heads, seq_kv = saved.k.shape[:3]
    rows = ROWS.value
    arguments = _of_backward(saved, options, tiling) | {
        "q": described(saved.q, tiling.block_q), "k": described(saved.k, rows), "v": described(saved.v, rows),
        "dout": described(saved.dout, tiling.block_q), "dk": described(dk, rows), "dv": described(dv, rows),
        "pairs": batch * kv_heads, "GROUP": saved.q.shape[1] // kv_heads, "BLOCK_Q": tiling.block_q,
    }  # fmt: skip
    tiles = triton.cdiv(seq_kv, tiling.block_kv) * batch * kv_heads
    return Call(backward.key_kernel, min(tiles, chip_of(saved.q).processors), arguments, tiling, warps=WARPGROUP)


def query_call(saved: Saved, dq: Tensor, options: CallOptions, tiling: Tiling) -> Call:
    """dq: as q."""
    batch, heads, seq_q = saved.q.shape[:3]
    seq_kv, rows = saved.k.shape[2], ROWS.value
    arguments = _of_backward(saved, options, tiling) | {
        "q": described(saved.q, rows), "k": described(saved.k, tiling.block_kv),
        "v": described(saved.v, tiling.block_kv), "dout": described(saved.dout, rows), "dq": described(dq, rows),
        "pairs": batch * heads,
        "GROUP": heads // saved.k.shape[1], "BLOCK_KV": tiling.block_kv, "LONG_FIRST": tiling.long_first,
        "EDGES": options.keys.hides(seq_q, seq_kv) or seq_kv % tiling.block_kv != 0,
    }  # fmt: skip
    tiles = triton.cdiv(seq_q, tiling.block_q) * batch * heads
    return Call(backward.query_kernel, min(tiles, chip_of(saved.q).processors), arguments, tiling, warps=WARPGROUP)
