"""What a model would have learned: biases, sinks, projections. Fixed by name and shape, the same on every machine."""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


KEPT_MOST = 2**20  # numbers of a tensor that is kept: the matrices of a large model would fill the memory


def normal(name: str, *shape: int, deviation: float = 1.0) -> Tensor:
    """Independent normal numbers in float64, drawn in float32. Small ones are the same tensor: not to be changed."""
    return (_kept if math.prod(shape) <= KEPT_MOST else _drawn)(name, shape, deviation)


def _drawn(name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (torch.randn(*shape, generator=generator) * deviation).double()


_kept = lru_cache(maxsize=64)(_drawn)


def projection(name: str, width: int, out: int) -> Tensor:
    """A matrix [width, out] that keeps the size of what it is given."""
    return normal(f"{name} {width} {out}", width, out, deviation=width**-0.5)


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """Sines and cosines of a position, [..., width] in float64 (https://arxiv.org/abs/1706.03762, section 3.5).

    Sines stand in the even places. An odd width has one sine more.
    """
    import torch

    pairs = torch.arange(0, width, 2, dtype=torch.float64)
    angles = distances.double()[..., None] * torch.exp(pairs * (-math.log(10_000.0) / width))
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return waves[..., :width]
