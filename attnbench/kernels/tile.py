"""What all kernels do with a tile of rows and keys: which pairs are visible, their logits, which weights dropout keeps.

Shape suffixes in this package, all of one tile: Q rows of queries, K keys, D head_dim and E head_dim_v, both padded to
a power of two, R packed rows of a decode step. A mask is an interval [low, high) of keys for each row: causal, windows,
prefixes, documents, padding and ragged lengths are all of this form. A list of blocks or single booleans can hide more.

The tuples below bundle the parameters of functions. A field that is None stays None while a kernel is compiled; Triton
turns a constant into a tensor where a tuple is assigned, so constants are separate parameters. Functions return no None
in a tuple: Triton 3.6 fails on it.
"""

# Triton reads annotations as marks of constants, so kernels cannot carry types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

if TYPE_CHECKING:
    from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# The highest logit of a row that has seen no key: finite, as -inf - (-inf) would be NaN, and below any logit.
LOWEST = tl.constexpr(-(2.0**126))


class Operand(NamedTuple):
    """A tensor [batch, heads, rows, columns] and its strides; columns are contiguous."""

    pointer: Tensor
    batch: int
    head: int
    row: int


class Listed(NamedTuple):
    """Low, high and diagonal key of every row, int32 [3, batch or 1, rows]; `plane` is the stride between the three."""

    pointer: Tensor
    plane: int
    batch: int


class Pairs(NamedTuple):
    """A tensor [batch, heads, rows, keys] with one number for every pair; a stride of 0 shares it."""

    pointer: Tensor
    batch: int
    head: int
    row: int
    key: int


class BlockList(NamedTuple):
    """The blocks of a block-sparse mask: counts [batch, heads, tiles] and indices [batch, heads, tiles, width]."""

    counts: Tensor
    indices: Tensor
    batch: int
    head: int
    width: int


class HeadOperand(NamedTuple):
    """An operand at one batch and head, as `read` takes it."""

    operand: Operand  # or a tensor descriptor
    base: tl.tensor | None  # from `start_of`
    batch: tl.tensor
    head: tl.tensor
    columns: tl.tensor  # indices up to the padded width


class LogitRule(NamedTuple):
    """How the raw products of one batch and head become logits, and which weights dropout keeps."""

    batch: tl.tensor
    head: tl.tensor
    slope: tl.tensor | None  # ALiBi
    bias: Pairs | None
    distance_bias: Pairs | None  # a bias with one number for every distance
    visible: Pairs | None
    seq_q: tl.tensor
    seq_kv: tl.tensor
    scale: tl.tensor
    softcap: tl.tensor | None
    seed: tl.tensor
    threshold: tl.tensor | None  # of dropout
    amplify: tl.tensor


class Tiles(NamedTuple):
    """The tiles of a loop: two runs, of which the first has `first_run` tiles, or those of a list of blocks."""

    count: tl.tensor
    first_run: tl.tensor
    start: tl.tensor  # first row or key of the first run
    second_start: tl.tensor  # and of the second, less the length of the first run
    listing: tl.tensor | None  # indices of blocks


class Intervals(NamedTuple):
    """The keys [low, high) that each row sees, and the key on its diagonal."""

    low: tl.tensor
    high: tl.tensor
    diagonal: tl.tensor


class Extent(NamedTuple):
    """The keys [first, last) that some row of a tile sees, and the tiles [full, full_end) that every row sees."""

    first: tl.tensor
    last: tl.tensor
    full: tl.tensor
    full_end: tl.tensor


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
def start_in(tiles, tile, BLOCK: tl.constexpr, LIST: tl.constexpr, TWO_RUNS: tl.constexpr):
    """The first row or key of a tile of a loop; LIST is the length of a block of a list."""
    if tiles.listing is not None:
        at = tl.load(tiles.listing + tile // (LIST // BLOCK)) * LIST + tile % (LIST // BLOCK) * BLOCK
    elif TWO_RUNS:
        at = tile * BLOCK + tl.where(tile < tiles.first_run, tiles.start, tiles.second_start)
    else:
        at = tile * BLOCK + tiles.start
    return tl.multiple_of(at, BLOCK)


@triton.jit
def intervals(rows_Q, listed, batch, seq_q, seq_kv, left, right):
    """The intervals of some rows; rows beyond the sequence see no key."""
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
    return Intervals(low_Q, high_Q, diagonal_Q)


@triton.jit
def extent_of(seen, seq_kv, BLOCK_KV: tl.constexpr):
    """The extent of a tile of rows; a row that sees no key does not count: its output is 0 whatever it takes in."""
    seeing_Q = seen.high > seen.low
    first = tl.min(tl.where(seeing_Q, seen.low, seq_kv), 0)
    last = tl.max(tl.where(seeing_Q, seen.high, 0), 0)
    full = tl.cdiv(tl.max(tl.where(seeing_Q, seen.low, 0), 0), BLOCK_KV)
    full_end = tl.maximum(full, tl.min(tl.where(seeing_Q, seen.high, last), 0) // BLOCK_KV)
    return Extent(first, last, full, full_end)


@triton.jit
def start_of(operand, batch, head, DESCRIPTORS: tl.constexpr):
    """The pointer of a batch and head of an operand; None for a descriptor, which is read by indices."""
    if DESCRIPTORS:
        base = None
    else:
        base = operand.pointer + tl.cast(batch, tl.int64) * operand.batch + tl.cast(head, tl.int64) * operand.head
    return base


@triton.jit
def read(source, at, wanted, SOME: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr):
    """Rows [at, at + LENGTH) of a source: zeros beyond its width and, with SOME, where not `wanted`."""
    # Triton compiles what follows a return in an `if` too: one return, at the end.
    if source.base is None:
        tile = source.operand.load([source.batch, source.head, at, 0]).reshape([LENGTH, source.columns.shape[0]])
        if SOME:
            tile = tl.where(wanted[:, None], tile, 0.0)
    else:
        # 64 bits: a long sequence of wide rows passes 2^31 numbers.
        pointers = source.base + tl.cast(at, tl.int64) * source.operand.row
        pointers = pointers + (tl.arange(0, LENGTH)[:, None] * source.operand.row + source.columns[None, :])
        if SOME and source.columns.shape[0] != WIDTH:
            tile = tl.load(pointers, mask=wanted[:, None] & (source.columns < WIDTH)[None, :], other=0.0)
        elif SOME:
            tile = tl.load(pointers, mask=wanted[:, None], other=0.0)
        elif source.columns.shape[0] != WIDTH:
            tile = tl.load(pointers, mask=(source.columns < WIDTH)[None, :], other=0.0)
        else:
            tile = tl.load(pointers)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store(target, tile, batch, head, at, inside, columns, WIDTH: tl.constexpr):
    """Write a tile to the rows [at, ...) of an operand that are `inside`; batch and head in 64 bits."""
    pointers = target.pointer + batch * target.batch + head * target.head + tl.cast(at, tl.int64) * target.row
    pointers = pointers + (tl.arange(0, tile.shape[0])[:, None] * target.row + columns[None, :])
    tl.store(pointers, tile.to(target.pointer.dtype.element_ty), mask=inside[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def of_pairs(source, batch, head, row, key, row_in, key_in, inside):
    """What `source` holds for pairs of rows `row + row_in` and keys `key + key_in`, 0 where not `inside`."""
    base = source.pointer + tl.cast(batch, tl.int64) * source.batch + tl.cast(head, tl.int64) * source.head
    base += tl.cast(row, tl.int64) * source.row + tl.cast(key, tl.int64) * source.key
    return tl.load(base + row_in * source.row + key_in * source.key, mask=inside, other=0)


@triton.jit
def tanh(x, PRECISE: tl.constexpr):
    """tanh by exp2 alone: 1 - 2 / (1 + e^2x) cancels near 0, where PRECISE uses a series."""
    y = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))
    if PRECISE:
        x2 = x * x
        series = x + x * x2 * (-1 / 3 + x2 * (2 / 15 + x2 * (-17 / 315 + x2 * (62 / 2835))))
        y = tl.where(x2 < 0.0625, series, y)
    return y


@triton.jit
def down(seen):
    """Intervals of the rows of a tile [Q, K]."""
    return Intervals(seen.low[:, None], seen.high[:, None], seen.diagonal[:, None])


@triton.jit
def across(seen):
    """Intervals of the rows of a transposed tile [K, Q]."""
    return Intervals(seen.low[None, :], seen.high[None, :], seen.diagonal[None, :])


@triton.jit
def logits(
    s, row, key, row_in, key_in, seen, rule, MASKED: tl.constexpr, FUSED: tl.constexpr, PRECISE: tl.constexpr
):  # fmt: skip
    """Logits in base 2 of raw products `s`, -inf where a key is hidden, and the tanh of the soft cap.

    `row_in` and `key_in` count from `row` and `key`; they and `seen` broadcast to `s`, a tile [Q, K] or [K, Q]. FUSED
    leaves the raw products, which the caller scales within its exponent.
    """
    capped = s
    if rule.softcap is not None:
        capped = tanh(s * (rule.scale / rule.softcap), PRECISE)
        s = capped * (rule.softcap * LOG2E)
    elif not FUSED:
        s = s * (rule.scale * LOG2E)
    keys = key + key_in
    if rule.slope is not None:
        s -= rule.slope * LOG2E * tl.abs(keys - seen.diagonal)
    if rule.distance_bias is not None:
        inside = (row + row_in < rule.seq_q) & (keys < rule.seq_kv)
        # From the furthest key before the diagonal to the furthest behind it.
        step = keys - seen.diagonal + rule.seq_kv - 1
        pointers = rule.distance_bias.pointer + rule.head * rule.distance_bias.head + step * rule.distance_bias.key
        s += tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * LOG2E
    if rule.bias is not None:
        inside = (row + row_in < rule.seq_q) & (keys < rule.seq_kv)
        biases = of_pairs(rule.bias, rule.batch, rule.head, row, key, row_in, key_in, inside)
        s += biases.to(tl.float32) * LOG2E
    if MASKED:
        s = tl.where((keys >= seen.low) & (keys < seen.high), s, float("-inf"))
    if rule.visible is not None:
        inside = (row + row_in < rule.seq_q) & (keys < rule.seq_kv)
        visible = of_pairs(rule.visible, rule.batch, rule.head, row, key, row_in, key_in, inside)
        s = tl.where(visible != 0, s, float("-inf"))
    return s, capped


@triton.jit
def survives(rule, row, key):
    """Whether dropout keeps a pair: a function of these indices and the seed alone (see attention/dropout.py)."""
    bits, _, _, _ = tl.philox(rule.seed, key, row, tl.cast(rule.head, tl.int32), tl.cast(rule.batch, tl.int32))
    return (bits >> 1).to(tl.int32) >= rule.threshold


INTERPRETED = not isinstance(place, JITFunction)  # decided when Triton was imported, by TRITON_INTERPRET
UPCAST = tl.constexpr(INTERPRETED)  # to float32, in the interpreter, whose products of bfloat16 are wrong
