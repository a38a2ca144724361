"""Second definitions of masks, row by row, which the predicates are compared with; without torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from functools import cache

import numpy as np


@cache
def table(word: str, text: str, seq_q: int, seq_kv: int) -> np.ndarray:
    """[seq_q, seq_kv] of a term of KEYS."""
    seen = np.zeros((seq_q, seq_kv), bool)
    for i in range(seq_q):
        seen[i, [*KEYS[word](text, seq_q, seq_kv, i)]] = True
    return seen


def tree(text: str, seq_q: int, seq_kv: int, i: int) -> Iterable[int]:
    """The prefix, then the path from a draft token to its root."""
    (parents,) = values(text, "parents")
    path = [i]
    while parents[path[-1]] != path[-1]:
        path.append(parents[path[-1]])
    prefix = seq_kv - seq_q
    return [*range(prefix), *(prefix + token for token in path)]


def blockdiffusion(text: str, seq_q: int, seq_kv: int, i: int) -> Iterable[int]:
    """The three parts of the paper: block diagonal and offset block causal if noised, block causal if clean."""
    half = seq_q // 2
    row = i % half // int(text)
    noised, clean = (([*range(start, start + half)]) for start in (0, half))
    if i >= half:
        return [j for j in clean if (j - half) // int(text) <= row]
    return [j for j in noised if j // int(text) == row] + [j for j in clean if (j - half) // int(text) < row]


def natten(text: str, seq_q: int, seq_kv: int, i: int) -> Iterable[int]:
    """The product of the windows along the axes."""
    kernel, stride, dilation, shape = values(text, "kernel", "stride", "dilation", "shape")
    shape = shape or [seq_q]
    axes = zip(
        np.unravel_index(i, shape), *(spread(each, shape) for each in (kernel, stride, dilation)), shape, strict=True
    )
    return [int(np.ravel_multi_index(keys, shape)) for keys in itertools.product(*itertools.starmap(window, axes))]


def window(query: int, kernel: int, stride: int, dilation: int, length: int) -> list[int]:
    """Of the tokens of one remainder those about the middle of the stride group, moved inwards at the ends."""
    line = [*range(query % dilation, length, dilation)]
    group = line[line.index(query) // stride * stride :][:stride]
    first = line.index(group[min(stride // 2, len(group) - 1)]) - kernel // 2
    while first < 0:
        first += 1
    while first + kernel > len(line):
        first -= 1
    return line[first : first + kernel]


def sta(text: str, seq_q: int, seq_kv: int, i: int) -> Iterable[int]:
    """Neighborhood attention of tiles, whose tokens are consecutive."""
    size, tile, shape = values(text, "window", "tile", "shape")
    shape = shape or [seq_q]
    tile = spread(tile, shape)
    tiles = [length // each for length, each in zip(shape, tile, strict=True)]
    places = zip(np.unravel_index(i // math.prod(tile), tiles), spread(size, shape), tiles, strict=True)
    windows = [window(place, kernel, 1, 1, count) for place, kernel, count in places]
    numbers = [int(np.ravel_multi_index(each, tiles)) for each in itertools.product(*windows)]
    return [number * math.prod(tile) + token for number in numbers for token in range(math.prod(tile))]


def values(text: str, *names: str) -> list[list[int]]:
    """The numbers of a term by name, none if it is absent: `7x9:dilation=2` and kernel, stride, dilation."""
    found = {}
    for place, item in enumerate(text.split(":")):
        key, _, value = item.rpartition("=")
        found[key or names[place]] = [int(number) for number in re.split("[x-]", value)]
    return [found.get(name, []) for name in names]


def spread(numbers: list[int], shape: list[int]) -> list[int]:
    """One number for each axis."""
    return numbers if len(numbers) > 1 else (numbers or [1]) * len(shape)


# The keys that row i sees, from the text of a term after its word.
KEYS = {"tree": tree, "blockdiffusion": blockdiffusion, "natten": natten, "sta": sta}
