"""The weights that dropout keeps: a pure function of (seed, batch, head, query, key).

The numbers are Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
https://doi.org/10.1145/2063384.2063405): key = seed, counter = (key index, query index, head, batch).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def keep_mask(rate: float, seed: int, b: ArrayLike, h: ArrayLike, i: ArrayLike, j: ArrayLike) -> NDArray[np.bool_]:
    """Whether dropout keeps the weight of query `i` and key `j` of head `h` in sequence `b`, by broadcasting.

    A share of `rate` is dropped; the caller multiplies the weights that remain by 1 / (1 - rate).
    """
    first = philox((j, i, h, b), (seed & 0xFFFFFFFF, seed >> 32))[0]
    return (first >> np.uint32(1)) >= np.uint32(round(rate * 2**31))


def philox(
    counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[int, int], rounds: int = 10
) -> tuple[Words, ...]:
    """Four words of 32 random bits for every counter of four words, under a key of two."""
    words = [np.asarray(word).astype(np.uint64) for word in np.broadcast_arrays(*counter)]
    for number in range(rounds):
        first, second = (
            np.uint64((start + number * step) & 0xFFFFFFFF) for start, step in zip(key, _STEPS, strict=True)
        )
        low, high = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        shift = np.uint64(32)
        words = [(high >> shift) ^ words[1] ^ first, high & _LOW, (low >> shift) ^ words[3] ^ second, low & _LOW]
    return tuple(word.astype(np.uint32) for word in words)
