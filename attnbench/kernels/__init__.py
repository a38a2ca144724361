"""In-house attention kernels in Triton, behind one function.

On a CPU they run in Triton's interpreter, for tests alone: TRITON_INTERPRET=1 must be set before Triton is imported.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from attnbench.kernels.tiling import HEAD_DIM_MOST, INTERPRETER, Tiling, tiling

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Tiling", "attention", "tiling"]

PRECISIONS = ("ieee", "tf32")
LENGTH_MOST = 2**30  # indices are 32 bits wide, and a window adds to them


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    intervals: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    precision: str = "ieee",
    return_lse: bool = False,
    cut: Tiling | None = None,
    facts: dict[str, Any] | None = None,
) -> Any:
    """Exact attention, forward only: out [batch, heads, seq_q, head_dim_v], or (out, lse [batch, heads, seq_q]).

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]; float32, float16 or bfloat16, with any strides.
    Causal is aligned to the last query and the last key. `window` counts the keys before and after that diagonal, -1
    for all of them. `intervals` are the keys [low, high) that each row sees, two int32 tensors [batch or 1, seq_q].
    All conditions hold together; a row that sees no key gives 0, and -inf as lse. `precision` is that of products of
    float32, ieee or tf32. `cut` replaces the tiles of the tables; `facts` is filled with what ran.
    """
    from attnbench.kernels import portable

    _check_tensors(q, k, v)
    _check_options(q, intervals, scale, softcap, precision)
    seq_q, seq_kv = q.shape[2], k.shape[2]
    left, right = _band(causal, window, seq_q, seq_kv)
    _check_device(q, k, v, precision, portable.INTERPRETED)
    cut = cut or _choose(q, k, v, growing=right < seq_q - 1 and left >= seq_kv - 1)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    out, lse, compiled = portable.forward(
        q, k, v, left=left, right=right, intervals=intervals, scale=scale, softcap=softcap, precision=precision,
        with_lse=return_lse, cut=cut,
    )  # fmt: skip
    if facts is not None:
        facts.update(portable.describe(cut, compiled))
    return (out, lse) if return_lse else out


def _band(causal: bool, window: int | tuple[int, int] | None, seq_q: int, seq_kv: int) -> tuple[int, int]:
    """Keys that a row sees before and after its diagonal; no more than there can be."""
    most = seq_q + seq_kv
    sides = (-1, -1) if window is None else window if isinstance(window, tuple) else (window, window)
    if len(sides) != 2 or any(not isinstance(side, int) or side < -1 for side in sides):
        raise ValueError(f"window={window!r}: a number of keys, or two (before, after), each at least 0, or -1 for all")
    left, right = (most if side == -1 else min(side, most) for side in sides)
    return left, 0 if causal else right


def _choose(q: Tensor, k: Tensor, v: Tensor, growing: bool) -> Tiling:
    arch = _arch(q.device.index or 0) if q.device.type == "cuda" else INTERPRETER
    batch, heads, seq_q, head_dim = q.shape
    return _cached_tiling(
        arch=arch, dtype_bytes=q.element_size(), head_dim=head_dim, head_dim_v=v.shape[3], batch=batch, heads=heads,
        kv_heads=k.shape[1], seq_q=seq_q, seq_kv=k.shape[2], growing=growing,
    )  # fmt: skip


_cached_tiling = lru_cache(maxsize=4096)(tiling)


@lru_cache(maxsize=64)
def _arch(index: int) -> str:
    """`sm_90`, or `gfx942` on ROCm."""
    import torch

    if torch.version.hip:
        name: str = torch.cuda.get_device_properties(index).gcnArchName
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    import torch

    for name, tensor in {"q": q, "k": k, "v": v}.items():
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: must be [batch, heads, seq, head_dim]")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"{name} is {tensor.dtype}: must be float32, float16 or bfloat16")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            here, there = f"{tensor.dtype} on {tensor.device}", f"{q.dtype} on {q.device}"
            raise ValueError(f"{name} is {here}: must be as q, {there}")
        if not 1 <= tensor.shape[3] <= HEAD_DIM_MOST:
            raise ValueError(f"{name} has head_dim {tensor.shape[3]}: must be 1 to {HEAD_DIM_MOST}")
        if tensor.shape[2] > LENGTH_MOST:
            raise ValueError(f"{name} has {tensor.shape[2]} rows: at most {LENGTH_MOST}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"v has shape {list(v.shape)}: batch, heads and rows must be those of k, {list(k.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k has shape {list(k.shape)}: batch and head_dim must be those of q, {list(q.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"k has {k.shape[1]} heads: the {q.shape[1]} heads of q must be a multiple of them")


def _check_options(
    q: Tensor, intervals: tuple[Tensor, Tensor] | None, scale: float | None, softcap: float | None, precision: str
) -> None:
    import torch

    for name, tensor in zip(("low", "high"), intervals or (), strict=False):
        shapes = [[rows, q.shape[2]] for rows in dict.fromkeys((q.shape[0], 1))]
        if tensor.dtype is not torch.int32 or tensor.device != q.device or list(tensor.shape) not in shapes:
            have = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(
                f"intervals: {name} is {have}: must be int32 {' or '.join(map(str, shapes))} on {q.device}"
            )
    if intervals and (
        intervals[0].shape != intervals[1].shape or not all(bound.is_contiguous() for bound in intervals)
    ):
        have = ", ".join(f"{list(bound.shape)} with strides {bound.stride()}" for bound in intervals)
        raise ValueError(f"intervals: {have}: must be of one shape, and contiguous")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale={scale!r}: must be a finite number")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap={softcap!r}: must be a positive number, or None")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: must be one of {', '.join(PRECISIONS)}")


def _check_device(q: Tensor, k: Tensor, v: Tensor, precision: str, interpreted: bool) -> None:
    import torch

    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        raise RuntimeError("attnbench.kernels has no backward pass: call it under torch.no_grad()")
    if q.device.type == "cuda" and not interpreted:
        return
    if q.device.type != "cpu":
        hint = "unset TRITON_INTERPRET" if q.device.type == "cuda" else "kernels run on cuda"
        raise RuntimeError(f"q is on {q.device}: {hint}, or move it to the CPU for the interpreter")
    if not interpreted:
        raise RuntimeError("q is on the CPU: set TRITON_INTERPRET=1 before Triton is imported to interpret the kernels")
    if precision != "ieee":
        raise ValueError(f"precision={precision!r}: the interpreter computes in ieee float32")
