"""Random numbers that are the same on every machine: a hash for patterns, and stand-ins for learned parameters."""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

MAX_CACHED = 2**20  # numbers of a cached tensor; the matrices of a large model would fill the memory


def splitmix64(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers that broadcast, one part after another, to 64 bits.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (https://doi.org/10.1145/2660193.2660195).
    """
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = state ^ np.asarray(part).astype(np.uint64)  # a new array; the steps below work in place
            state += np.uint64(0x9E3779B97F4A7C15)
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
                state ^= state >> np.uint64(shift)
                state *= np.uint64(factor)
    return state.reshape(np.broadcast_shapes(*map(np.shape, parts)))


def normal(name: str, *shape: int, deviation: float = 1.0) -> Tensor:
    """Normal numbers, fixed by name and shape, drawn in float32, as float64. Cached if small: do not change them."""
    return (_cached if math.prod(shape) <= MAX_CACHED else _drawn)(name, shape, deviation)


def _drawn(name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
    import torch

    generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
    return (drawn * deviation).double()


_cached = lru_cache(maxsize=64)(_drawn)


def projection(name: str, width: int, out: int) -> Tensor:
    """A random matrix [width, out] that preserves the variance of its input."""
    return normal(f"{name} {width} {out}", width, out, deviation=width**-0.5)


def sinusoids(distances: Tensor, width: int) -> Tensor:
    """Sinusoidal embeddings of positions: [..., width] in float64 (https://arxiv.org/abs/1706.03762, section 3.5).

    Even entries are sines, odd entries cosines.
    """
    import torch

    pairs = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
    angles = distances.double()[..., None] * torch.exp(pairs * (-math.log(10_000.0) / width))
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return waves[..., :width]
