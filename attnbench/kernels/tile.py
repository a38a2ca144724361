"""What all kernels do with a tile of rows and keys: which pairs see each other, their logits, what dropout keeps.

Shape suffixes in this package, all of one tile: Q rows of queries, K keys, D head_dim and E head_dim_v, both padded to
a power of two, R packed rows of a decode step. A mask is an interval [low, high) of keys for each row: causal, windows,
prefixes, documents, padding and ragged lengths are all that. A list of blocks or single booleans can hide more.
"""

# Triton reads annotations as marks of constants, so kernels cannot carry types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# The highest logit of a row that has seen no key: finite, as -inf - (-inf) would be NaN, and below any logit.
LOWEST = tl.constexpr(-(2.0**126))


class Operand(NamedTuple):
    """A tensor [batch, heads, rows, columns] and its strides; columns adjoin."""

    pointer: Any
    batch: int
    head: int
    row: int


class Listed(NamedTuple):
    """Low, high and diagonal key of every row, int32 [3, batch or 1, rows]; `plane` lies between the three."""

    pointer: Any
    plane: int
    batch: int


class Pairs(NamedTuple):
    """A tensor [batch, heads, rows, keys] of a number for every pair; a stride of 0 shares it."""

    pointer: Any
    batch: int
    head: int
    row: int
    key: int


class BlockList(NamedTuple):
    """How many blocks every tile of a list meets [batch, heads, tiles], and which [batch, heads, tiles, most]."""

    counts: Any
    indices: Any
    batch: int
    head: int
    most: int


@triton.jit
def place(tiles, pairs, resident, LAST_FIRST: tl.constexpr):
    """The tile and the (batch, head) pair of this program.

    Pairs are taken `resident` at a time, so that their K and V stay in the L2 cache; within such a section one tile of
    every pair comes before the next tile. Where later tiles take longer they start first, and short ones fill the end.
    """
    program = tl.program_id(0)
    section = program // (resident * tiles)
    inside = program % (resident * tiles)
    width = tl.minimum(resident, pairs - section * resident)
    tile = inside // width
    if LAST_FIRST:
        tile = tiles - 1 - tile
    return tile, section * resident + inside % width


@triton.jit
def intervals(rows_Q, listed, batch, seq_q, seq_kv, left, right):
    """The keys [low, high) that each row sees, and the key on its diagonal; rows beyond the sequence see none."""
    if listed is not None:
        inside_Q = rows_Q < seq_q
        pointer = listed.pointer + batch * listed.batch
        low_Q = tl.load(pointer + rows_Q, mask=inside_Q, other=0)
        high_Q = tl.load(pointer + listed.plane + rows_Q, mask=inside_Q, other=0)
        diagonal_Q = tl.load(pointer + 2 * listed.plane + rows_Q, mask=inside_Q, other=0)
    else:
        diagonal_Q = rows_Q + (seq_kv - seq_q)
        low_Q = tl.maximum(diagonal_Q - left, 0)
        high_Q = tl.where(rows_Q < seq_q, tl.minimum(diagonal_Q + right + 1, seq_kv), 0)
    return low_Q, high_Q, diagonal_Q


@triton.jit
def extent(low_Q, high_Q, seq_kv, BLOCK_KV: tl.constexpr):
    """The keys [first, last) that some row sees, and the tiles [whole, whole_end) that every row sees.

    A row that sees no key does not count: its output is 0 whatever it takes in.
    """
    seeing_Q = high_Q > low_Q
    first = tl.min(tl.where(seeing_Q, low_Q, seq_kv), 0)
    last = tl.max(tl.where(seeing_Q, high_Q, 0), 0)
    whole = tl.cdiv(tl.max(tl.where(seeing_Q, low_Q, 0), 0), BLOCK_KV)
    whole_end = tl.maximum(whole, tl.min(tl.where(seeing_Q, high_Q, last), 0) // BLOCK_KV)
    return first, last, whole, whole_end


@triton.jit
def start_of(source, batch, head, DESCRIPTORS: tl.constexpr):
    """The pointer of a batch and head of an operand; None where a descriptor is asked by indices instead."""
    if DESCRIPTORS:
        base = None
    else:
        base = source.pointer + tl.cast(batch, tl.int64) * source.batch + tl.cast(head, tl.int64) * source.head
    return base


@triton.jit
def read(source, base, batch, head, at, wanted, columns, SOME: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr):
    """Rows [at, at + LENGTH) of an operand: zeros beyond its width, and where not `wanted` if SOME says there are such.

    `base` is that of `start_of`.
    """
    # Triton compiles what follows a return in an `if` too: one return, at the end.
    if base is None:
        tile = source.load([batch, head, at, 0]).reshape([LENGTH, columns.shape[0]])
        if SOME:
            tile = tl.where(wanted[:, None], tile, 0.0)
    else:
        # 64 bits: a long sequence of wide rows passes 2^31 numbers.
        pointers = base + tl.cast(at, tl.int64) * source.row
        pointers = pointers + (tl.arange(0, LENGTH)[:, None] * source.row + columns[None, :])
        if SOME and columns.shape[0] != WIDTH:
            tile = tl.load(pointers, mask=wanted[:, None] & (columns < WIDTH)[None, :], other=0.0)
        elif SOME:
            tile = tl.load(pointers, mask=wanted[:, None], other=0.0)
        elif columns.shape[0] != WIDTH:
            tile = tl.load(pointers, mask=(columns < WIDTH)[None, :], other=0.0)
        else:
            tile = tl.load(pointers)
    return tile


@triton.jit
def of_pairs(source, batch, head, row, key, row_in, key_in, inside):
    """What `source` holds for pairs of rows `row + row_in` and keys `key + key_in`, 0 where not `inside`."""
    base = source.pointer + tl.cast(batch, tl.int64) * source.batch + tl.cast(head, tl.int64) * source.head
    base += tl.cast(row, tl.int64) * source.row + tl.cast(key, tl.int64) * source.key
    return tl.load(base + row_in * source.row + key_in * source.key, mask=inside, other=0)


@triton.jit
def tanh(x, PRECISE: tl.constexpr):
    """tanh by exp2 alone: 1 - 2 / (1 + e^2x) cancels near 0, where a series takes over if precision is asked for."""
    y = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))
    if PRECISE:
        x2 = x * x
        series = x + x * x2 * (-1 / 3 + x2 * (2 / 15 + x2 * (-17 / 315 + x2 * (62 / 2835))))
        y = tl.where(x2 < 0.0625, series, y)
    return y


@triton.jit
def logits(
    s, row, key, row_in, key_in, low, high, diagonal, batch, head, slope, bias, shown, seq_q, seq_kv, scale, softcap,
    MASKED: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISE: tl.constexpr, BY_DISTANCE: tl.constexpr,
):  # fmt: skip
    """Logits in base 2 of raw products `s`, -inf where a key is hidden, and the tanh of the soft cap.

    `row_in` and `key_in` count from `row` and `key`, and they, `low`, `high` and `diagonal` broadcast to `s`: [Q, K]
    and [K, Q] tiles are both served. FUSED leaves the raw products, which the caller scales within its exponent.
    """
    bent = s
    if SOFTCAP:
        bent = tanh(s * (scale / softcap), PRECISE)
        s = bent * (softcap * LOG2E)
    elif not FUSED:
        s = s * (scale * LOG2E)
    keys = key + key_in
    if slope is not None:
        s -= slope * LOG2E * tl.abs(keys - diagonal)
    if bias is not None:
        inside = (row + row_in < seq_q) & (keys < seq_kv)
        if BY_DISTANCE:
            # From the furthest key before the diagonal to the furthest behind it.
            steps = bias.pointer + head * bias.head + (keys - diagonal + seq_kv - 1) * bias.key
            s += tl.load(steps, mask=inside, other=0.0).to(tl.float32) * LOG2E
        else:
            s += of_pairs(bias, batch, head, row, key, row_in, key_in, inside).to(tl.float32) * LOG2E
    if MASKED:
        s = tl.where((keys >= low) & (keys < high), s, float("-inf"))
    if shown is not None:
        inside = (row + row_in < seq_q) & (keys < seq_kv)
        s = tl.where(of_pairs(shown, batch, head, row, key, row_in, key_in, inside) != 0, s, float("-inf"))
    return s, bent


@triton.jit
def kept(batch, head, row, key, seed, threshold):
    """Whether dropout keeps a pair: a function of these indices and the seed alone (see attention/dropout.py)."""
    bits, _, _, _ = tl.philox(seed, key, row, tl.cast(head, tl.int32), tl.cast(batch, tl.int32))
    return (bits >> 1).to(tl.int32) >= threshold


INTERPRETED = not isinstance(place, JITFunction)  # decided when Triton was imported, by TRITON_INTERPRET
