"""Neighborhood attention (https://arxiv.org/abs/2204.07143): a window along each axis, moved inwards at the ends.

With dilation (https://arxiv.org/abs/2209.15001) a window has every `dilation`-th token; with a stride
(https://arxiv.org/abs/2504.16922) as many queries share the window of their middle one. Even windows have one token
more before the middle, as in NATTEN (https://github.com/SHI-Labs/NATTEN). n x n: n times the product of `kernel` pairs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from attnbench.attention.grammar import Spec
from attnbench.attention.terms import Array, Grid, Indices, Pattern, Predicate, Table, scaled

Numbers = tuple[int, ...]  # one for each axis, or one for all


class Natten(Pattern, frozen=True):
    """The `kernel` nearest keys along each axis of a sequence, image or video; `stride` queries share a window."""

    word = "natten"
    example = "natten:7:shape=32x32"
    summary = "neighborhood attention (NATTEN)"
    is_square = True
    joint = "x"

    kernel: Numbers  # keys
    stride: Numbers = (1,)  # queries that share a window
    dilation: Numbers = (1,)  # tokens from one key to the next
    shape: Numbers = ()  # tokens along each axis, as height x width; empty: one axis

    def __post_init__(self) -> None:
        check_axes(self, self.shape, "kernel", "stride", "dilation")
        axes = len(self.shape) or 1
        if any(
            stride > kernel for stride, kernel in zip(along(self.stride, axes), along(self.kernel, axes), strict=True)
        ):
            raise self.error(f"{self.assigned('stride')} is above {self.assigned('kernel')}: use a stride up to it")

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        axes = [(len(axis.first), table(axis.first), int(axis.size[0]), axis.step) for axis in self._keys(grid)]

        def visible(_b: Array, i: Array, j: Array) -> Array:
            seen: Array = True
            for length, first, kernel, dilation in reversed(axes):
                distance = j % length - first[i % length]
                seen = seen & (distance >= 0) & (distance < kernel * dilation) & (distance % dilation == 0)
                i, j = i // length, j // length
            return seen

        return visible

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        keys = self._keys(grid)
        return _below(keys, i, high) - _below(keys, i, low)

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        queries = [_queries(*axis) for axis in self._axes(grid)]
        return _below(queries, j, high) - _below(queries, j, low)

    def check(self, grid: Grid) -> None:
        super().check(grid)
        check_shape(self, self.shape, grid)
        for kernel, _, dilation, length in self._axes(grid):
            if kernel * dilation > length:
                spans = f"{kernel} keys with dilation {dilation} span {kernel * dilation} tokens"
                raise self.error(f"{spans}, an axis has {length}; use a smaller kernel or dilation")

    def shrunk(self, share: float) -> Natten:
        """The first axis shrinks, so that the product of the axes does as the sequence; rounded down, a kernel fits."""
        axes = len(self.shape) or 1
        (kernel, *kernels), (stride, *strides) = along(self.kernel, axes), along(self.stride, axes)
        return Natten(
            (max(1, int(kernel * share)), *kernels),
            (max(1, int(stride * share)), *strides),
            self.dilation,
            shrunk_first(self.shape, share),
        )

    def _axes(self, grid: Grid) -> list[tuple[int, int, int, int]]:
        """Kernel, stride, dilation and length of each axis."""
        shape = self.shape or (grid.seq_q,)
        numbers = (along(values, len(shape)) for values in (self.kernel, self.stride, self.dilation))
        return list(zip(*numbers, shape, strict=True))

    def _keys(self, grid: Grid) -> list[Neighbors]:
        return [_keys(*axis) for axis in self._axes(grid)]


class Neighbors(NamedTuple):
    """For each coordinate along an axis those that it sees, or is seen by: first, first + step ..., `size` of them."""

    first: Indices
    size: Indices
    step: int


@lru_cache(maxsize=64)
def _keys(kernel: int, stride: int, dilation: int, length: int) -> Neighbors:
    """The keys of each query along an axis. The tokens of one remainder by `dilation` see each other alone."""
    place, remainder = np.divmod(np.arange(length), dilation)
    size = -(-(length - remainder) // dilation)
    middle = np.minimum(place // stride * stride + stride // 2, size - 1)
    start = np.clip(middle - kernel // 2, 0, size - kernel)
    return Neighbors(start * dilation + remainder, np.full(length, kernel), dilation)


@lru_cache(maxsize=64)
def _queries(kernel: int, stride: int, dilation: int, length: int) -> Neighbors:
    """The queries of each key along an axis: windows start in the order of their queries, so they are a run too."""
    first, count = np.zeros(length, np.int64), np.zeros(length, np.int64)
    starts = _keys(kernel, stride, dilation, length).first
    for remainder in range(dilation):
        of_remainder, key = starts[remainder::dilation], np.arange(remainder, length, dilation)
        run = [np.searchsorted(of_remainder, bound, side="right") for bound in (key - kernel * dilation, key)]
        first[key], count[key] = run[0] * dilation + remainder, run[1] - run[0]
    return Neighbors(first, count, dilation)


def _below(axes: list[Neighbors], i: Indices, bound: Indices) -> Indices:
    """How many of the tokens that token `i` sees, or is seen by, lie below `bound`, in row-major order."""
    below, whole = np.zeros((), np.int64), np.ones((), np.int64)  # along the axes after this one
    for number in reversed(range(len(axes))):
        first, size, step = axes[number]
        if number:
            (i, coordinate), (bound, end) = np.divmod(i, len(first)), np.divmod(bound, len(first))
        else:
            coordinate, end = i, bound  # `bound` may be the end of the sequence
        before = np.clip(-(-(end - first[coordinate]) // step), 0, size[coordinate])
        at_end = (before < size[coordinate]) & (first[coordinate] + before * step == end)
        below, whole = before * whole + at_end * below, whole * size[coordinate]
    return below


def along(values: Numbers, axes: int) -> Numbers:
    """One number for each axis."""
    return values * axes if len(values) == 1 else values


def shrunk_first(values: Numbers, share: float) -> Numbers:
    """`share` of the first number, and the others."""
    return (scaled(values[0], share), *values[1:]) if values else ()


def check_axes(term: Spec, shape: Numbers, *names: str) -> None:
    """Write equal numbers as one. Raises ProblemError if fields do not fit the number of axes, or are below 1."""
    term.check_at_least(**dict.fromkeys((*names, "shape"), 1))
    if len(shape) == 1:
        raise term.error(f"{term.assigned('shape')} is one axis, the sequence itself: leave it out")
    for name in names:
        values = getattr(term, name)
        if len(values) not in (1, len(shape) or 1):
            axes = f"{term.assigned('shape')} has {len(shape)} axes"
            axes = axes if shape else "the sequence is one axis: add a shape, as in shape=32x32"
            raise term.error(f"{term.assigned(name)} has {len(values)} numbers, but {axes}")
        if len(set(values)) == 1:
            msgspec.structs.force_setattr(term, name, values[:1])


def check_shape(term: Spec, shape: Numbers, grid: Grid) -> None:
    """Raise ProblemError unless the axes multiply to the sequence."""
    if shape and math.prod(shape) != grid.seq_q:
        tokens = f"{term.assigned('shape')} is {math.prod(shape)} tokens, but the sequence has {grid.seq_q}"
        raise term.error(f"{tokens}; use seq={math.prod(shape)} or another shape")
