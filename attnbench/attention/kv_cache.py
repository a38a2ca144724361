"""The KV cache of a problem: quantised formats, their values simulated by a round trip, latent caches, and pages."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from attnbench.attention.choices import KvDtype
from attnbench.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

MAX_FP8 = 448.0  # largest number of float8_e4m3fn
MAX_FP4 = 6.0  # largest number of float4_e2m1
NVFP4_BLOCK = 16  # numbers that share a scale, along the width
_TINY = 1e-30  # a scale that is no zero
_SCALE_BYTES = 4  # of a float32 scale


def quantized(tensor: Tensor, kv_dtype: KvDtype) -> Tensor:
    """Quantise keys or values to the format of the cache, and dequantise them: [..., width] -> [..., width], float32.

    int8 is symmetric, from -127 to 127; the other formats use their whole range.
    """
    import torch

    if kv_dtype is KvDtype.SAME or not tensor.numel():
        return tensor
    if kv_dtype is KvDtype.NVFP4:
        return _nvfp4(tensor)
    integers = kv_dtype in (KvDtype.INT8, KvDtype.INT8_TENSOR)
    sizes = tensor.abs()
    largest = sizes.amax() if kv_dtype.scale_of_tensor else sizes.amax(-1, keepdim=True)
    scale = largest.clamp_min(_TINY) / (127.0 if integers else MAX_FP8)
    scaled = tensor / scale
    return (scaled.round() if integers else scaled.to(torch.float8_e4m3fn).float()) * scale


def stored_bytes(kv_dtype: KvDtype, rows: int, width: int) -> int:
    """Bytes of the keys, or of the values, of that many tokens and heads, with their scales; not for `same`."""
    if kv_dtype is KvDtype.NVFP4:
        return rows * (-(-width // 2) + -(-width // NVFP4_BLOCK)) + _SCALE_BYTES
    return rows * width + _SCALE_BYTES * (1 if kv_dtype.scale_of_tensor else rows)


def _nvfp4(tensor: Tensor) -> Tensor:
    """Two levels of scales, as in https://arxiv.org/abs/2509.25149, section 2.

    The float32 scale is such that the largest scale of a block is the largest number of fp8_e4m3.
    """
    import torch

    width = tensor.shape[-1]
    padded = torch.nn.functional.pad(tensor, (0, -width % NVFP4_BLOCK)).unflatten(-1, (-1, NVFP4_BLOCK))
    whole = padded.abs().amax().clamp_min(_TINY) / (MAX_FP4 * MAX_FP8)
    of_block = (padded.abs().amax(-1, keepdim=True) / (MAX_FP4 * whole)).to(torch.float8_e4m3fn).float()
    scale = of_block * whole
    rounded: Tensor = _to_fp4(padded / scale.clamp_min(_TINY)) * scale
    return rounded.flatten(-2)[..., :width]


def _to_fp4(tensor: Tensor) -> Tensor:
    """The nearest number of float4_e2m1, ties to the even mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with either sign."""
    import torch

    sizes = tensor.abs()
    step = torch.where(sizes < 2, 0.5, torch.where(sizes < 4, 1.0, 2.0))
    return ((sizes / step).round() * step).clamp_max(MAX_FP4).copysign(tensor)


class Latent(NamedTuple):
    """A latent cache, as of DeepSeek V2 (https://arxiv.org/abs/2405.04434): one vector for each token, for all heads.

    Keys and values of a head are made from the first `rank` numbers; the last `rope` numbers are a part of every key.
    """

    rank: int
    rope: int

    @property
    def text(self) -> str:
        """As a user types it."""
        return f"latent:{self.rank}+{self.rope}"


@lru_cache(maxsize=256)
def parse_latent(text: str) -> Latent | None:
    """Read `latent:512+64`; None for separate keys and values, an empty text or `none`. Raises ProblemError."""
    if text in ("", "none"):
        return None
    match = re.fullmatch(r"latent:(\d{1,6})\+(\d{1,6})", text.strip())
    if not match or not int(match[1]) or not int(match[2]):
        raise ProblemError(f"kv={text!r}: use latent:512+64, the numbers that keys and values share and those of RoPE")
    return Latent(int(match[1]), int(match[2]))
