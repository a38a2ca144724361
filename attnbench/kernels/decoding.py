"""Decoding: a few new queries against many cached keys, paged or not; the keys are split among programs.

The query heads that share a key head are packed into the rows of one tile, so that K and V are read once. Each split
has a separate output and log-sum-exp; a second kernel combines them: sum_i exp(lse_i - lse) out_i.

The requests of a packed batch have their own numbers of queries and keys. One launch covers them all: `starts_q` and
`starts_kv` (cu_seqlens) say where the queries and the keys of each begin.

The cache of multi-head latent attention holds one tensor of 512 + 64 numbers: V is the first 512 columns of K. Its tile
is read once and serves both products; the other columns, the tail, add a product of their own to the logits. Suffix T:
the columns of the tail, padded.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from attnbench.kernels.forward import fold
from attnbench.kernels.tile import LN2, LOG2E, LOWEST, UPCAST, Intervals, LogitRule, down, logits


class Packed(NamedTuple):
    """The rows of a tile: (head, query) pairs of the heads that share a key head."""

    head: tl.tensor
    query: tl.tensor  # of its sequence
    at: tl.tensor  # index in q and out
    inside: tl.tensor  # whether the row exists


@triton.jit
def _cached(cache, base, table, keys_K, wanted_K, columns, WIDTH: tl.constexpr, PAGE: tl.constexpr):
    """A tile of cached rows, zeros where not wanted; with a table, the stride `batch` is that between pages."""
    if table is not None:
        page_K = tl.load(table + keys_K // PAGE, mask=wanted_K, other=0)
        rows_K = tl.cast(page_K, tl.int64) * cache.batch + (keys_K % PAGE) * cache.row
    else:
        rows_K = tl.cast(keys_K, tl.int64) * cache.row
    pointers = base + rows_K[:, None] + columns[None, :]
    return tl.load(pointers, mask=wanted_K[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def _cache_start(cache, table, starts_ptr, batch, head):
    """The pointer of a batch and head of a cache, of the first key of a request, or of a head of the first page."""
    base = cache.pointer + head * cache.head
    if starts_ptr is not None:
        base = base + tl.cast(tl.load(starts_ptr + batch), tl.int64) * cache.row
    elif table is None:
        base = base + batch * cache.batch
    return base


@triton.jit
def _first_tile(starts_ptr, request, GROUP: tl.constexpr, BLOCK_R: tl.constexpr):
    """The first tile of rows of a request; each has at least the tiles that it needs, and at most one more."""
    return tl.cast(tl.load(starts_ptr + request), tl.int64) * GROUP // BLOCK_R + request


@triton.jit
def _request_of(starts_ptr, requests, tile, GROUP: tl.constexpr, BLOCK_R: tl.constexpr):
    """The request that a tile of rows belongs to, by binary search, and which of its tiles that is."""
    low = tile * 0
    high = tile * 0 + requests
    while high - low > 1:
        middle = (low + high) // 2
        before = _first_tile(starts_ptr, middle, GROUP, BLOCK_R) <= tile
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low, tile - tl.cast(_first_tile(starts_ptr, low, GROUP, BLOCK_R), tl.int32)


@triton.jit
def _rows_of(kv_head, row_tile, first, queries, GROUP: tl.constexpr, BLOCK_R: tl.constexpr):
    """The rows of a tile of a sequence whose queries begin at `first`."""
    packed_R = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    each = tl.maximum(queries, 1)
    query_R = packed_R % each
    return Packed(kv_head * GROUP + packed_R // each, query_R, first + query_R, packed_R < GROUP * queries)


@triton.jit
def _visible_keys(rows, length, seq_q, left, right):
    """The intervals of the rows, their ends in the cache aligned to the last query, and the keys [first, last)."""
    diagonal_R = length - seq_q + rows.query
    low_R = tl.where(rows.inside, tl.maximum(diagonal_R - left, 0), length)
    high_R = tl.where(rows.inside, tl.minimum(diagonal_R + right + 1, length), 0)
    seeing_R = high_R > low_R
    first = tl.min(tl.where(seeing_R, low_R, length), 0)
    last = tl.max(tl.where(seeing_R, high_R, 0), 0)
    return Intervals(low_R, high_R, diagonal_R), first, last


@triton.jit
def _widened(tile):
    """Numbers of 8 bits as bfloat16, which holds every one of them; float32 in the interpreter."""
    if tile.dtype.primitive_bitwidth == 8:
        tile = tile.to(tl.bfloat16)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _attend(
    acc_RE, total_R, peak_R, q_RD, q_RT, k, v, k_base, v_base, table, rows, seen, first, last, split, splits, descale_R,
    rule, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, TAIL: tl.constexpr, BLOCK_KV: tl.constexpr,
    PAGE: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in the tiles of keys of one split."""
    precise: tl.constexpr = PRECISION == "ieee" and q_RD.dtype == tl.float32
    keys_in_K = tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, q_RD.shape[1])
    columns_E = tl.arange(0, acc_RE.shape[1])
    begin = first // BLOCK_KV
    share = tl.cdiv(tl.maximum(tl.cdiv(last, BLOCK_KV) - begin, 0), splits)
    begin += split * share
    for tile in tl.range(begin, tl.minimum(begin + share, tl.cdiv(last, BLOCK_KV))):
        key = tile * BLOCK_KV
        keys_K = key + keys_in_K
        wanted_K = (keys_K >= first) & (keys_K < last)
        k_KD = _cached(k, k_base, table, keys_K, wanted_K, columns_D, HEAD_DIM, PAGE)
        k_KD = _widened(k_KD)
        v_KE = k_KD
        if TAIL == 0:
            v_KE = _widened(_cached(v, v_base, table, keys_K, wanted_K, columns_E, HEAD_DIM_V, PAGE))
        s_RK = tl.dot(q_RD, tl.trans(k_KD), input_precision=PRECISION)
        if TAIL > 0:
            columns_T = tl.arange(0, q_RT.shape[1])
            k_KT = _widened(_cached(k, k_base + HEAD_DIM, table, keys_K, wanted_K, columns_T, TAIL, PAGE))
            s_RK = tl.dot(q_RT, tl.trans(k_KT), s_RK, input_precision=PRECISION)
        if descale_R is not None:
            s_RK *= descale_R[:, None]
        s_RK, _ = logits(s_RK, 0, key, rows.query[:, None], keys_in_K[None, :], down(seen), rule, True, FUSED, precise)
        factor = rule.scale * LOG2E if FUSED else 1.0
        acc_RE, total_R, peak_R = fold(acc_RE, total_R, peak_R, s_RK, factor, v_KE, None, PRECISION)
    return acc_RE, total_R, peak_R


@triton.jit
def split_kernel(
    q, k, v, out, lse_ptr, lengths_ptr, table_ptr, slopes_ptr, sinks_ptr, descale_ptr,
    starts_q_ptr, starts_kv_ptr, slopes_batch, table_batch, out_split, lse_split, heads, requests, row_tiles, splits,
    seq_q, seq_kv, left, right,
    scale, softcap,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, TAIL: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_KV: tl.constexpr, PAGE: tl.constexpr,
    FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of the keys of one key head, for a tile of the rows that share it."""
    split = tl.program_id(0) % splits
    kv_heads = heads // GROUP
    if starts_q_ptr is not None:
        kv_head = tl.program_id(0) // splits % kv_heads
        tile = tl.program_id(0) // (splits * kv_heads)
        batch, row_tile = _request_of(starts_q_ptr, requests, tile, GROUP, BLOCK_R)
        first_query = tl.cast(tl.load(starts_q_ptr + batch), tl.int64)
        queries = tl.cast(tl.load(starts_q_ptr + batch + 1) - first_query, tl.int32)
        place = tl.cast(batch * 0, tl.int64)  # in q and out, which hold all requests one behind the other
    else:
        row_tile = tl.program_id(0) // splits % row_tiles
        pair = tl.program_id(0) // (splits * row_tiles)
        batch = pair // kv_heads
        kv_head = pair % kv_heads
        first_query = 0
        queries = seq_q
        place = tl.cast(batch, tl.int64)
    batch_64 = tl.cast(batch, tl.int64)
    rows = _rows_of(kv_head, row_tile, first_query, queries, GROUP, BLOCK_R)
    columns_D = tl.arange(0, BLOCK_D)
    q_rows_R = tl.cast(rows.head, tl.int64) * q.head + rows.at * q.row
    q_pointers = q.pointer + place * q.batch + q_rows_R[:, None] + columns_D[None, :]
    q_RD = _widened(tl.load(q_pointers, mask=rows.inside[:, None] & (columns_D < HEAD_DIM)[None, :], other=0.0))
    q_RT = None
    if TAIL > 0:
        columns_T = tl.arange(0, BLOCK_T)
        tail_pointers = q.pointer + place * q.batch + q_rows_R[:, None] + (HEAD_DIM + columns_T)[None, :]
        q_RT = _widened(tl.load(tail_pointers, mask=rows.inside[:, None] & (columns_T < TAIL)[None, :], other=0.0))
    length = seq_kv
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + batch)
    elif starts_kv_ptr is not None:
        length = tl.cast(tl.load(starts_kv_ptr + batch + 1) - tl.load(starts_kv_ptr + batch), tl.int32)
    seen, first, last = _visible_keys(rows, length, queries, left, right)
    slope_R = None
    if slopes_ptr is not None:
        slope_R = tl.load(slopes_ptr + batch * slopes_batch + rows.head, mask=rows.inside, other=0.0)[:, None]
    descale_R = None
    if descale_ptr is not None:
        # The heads of a group may have different scales.
        descale_R = tl.load(descale_ptr + rows.head, mask=rows.inside, other=0.0)
    peak_R = tl.full([BLOCK_R], LOWEST, tl.float32)
    total_R = tl.zeros([BLOCK_R], tl.float32)
    if sinks_ptr is not None:
        # The sink counts in the sum once: in the first split.
        sink_R = tl.load(sinks_ptr + rows.head, mask=rows.inside, other=0.0)
        peak_R = tl.where(split == 0, sink_R * LOG2E, peak_R)
        total_R = tl.where(split == 0, 1.0, total_R)
    acc_RE = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)
    table = None
    if table_ptr is not None:
        table = table_ptr + batch_64 * table_batch
    k_base = _cache_start(k, table, starts_kv_ptr, batch_64, tl.cast(kv_head, tl.int64))
    v_base = k_base
    if TAIL == 0:
        v_base = _cache_start(v, table, starts_kv_ptr, batch_64, tl.cast(kv_head, tl.int64))
    rule = LogitRule(batch, 0, slope_R, None, None, None, queries, length, scale, softcap, 0, None, 1.0)
    acc_RE, total_R, peak_R = _attend(
        acc_RE, total_R, peak_R, q_RD, q_RT, k, v, k_base, v_base, table, rows, seen, first, last, split, splits,
        descale_R, rule, HEAD_DIM, HEAD_DIM_V, TAIL, BLOCK_KV, PAGE, FUSED, PRECISION,
    )  # fmt: skip
    if descale_ptr is not None:
        acc_RE *= tl.load(descale_ptr + heads + rows.head, mask=rows.inside, other=0.0)[:, None]
    _store_split(
        out, lse_ptr, acc_RE, total_R, peak_R, rows, place, heads, seq_q, split, out_split, lse_split, HEAD_DIM_V
    )


@triton.jit
def _store_split(
    out, lse_ptr, acc_RE, total_R, peak_R, rows, batch, heads, seq_q, split, out_split, lse_split,
    HEAD_DIM_V: tl.constexpr,
):  # fmt: skip
    """Write the output of a split and its log-sum-exp, -inf where it saw no key."""
    columns_E = tl.arange(0, acc_RE.shape[1])
    filled_R = total_R > 0.0
    out_RE = acc_RE / tl.where(filled_R, total_R, 1.0)[:, None]
    out_rows_R = batch * out.batch + tl.cast(rows.head, tl.int64) * out.head + rows.at * out.row
    out_pointers = out.pointer + split * out_split + out_rows_R[:, None] + columns_E[None, :]
    stored_RE = rows.inside[:, None] & (columns_E < HEAD_DIM_V)[None, :]
    tl.store(out_pointers, out_RE.to(out.pointer.dtype.element_ty), mask=stored_RE)
    if lse_ptr is not None:
        lse_R = tl.where(filled_R, (peak_R + tl.log2(total_R)) * LN2, float("-inf"))
        at_R = (batch * heads + rows.head) * seq_q + rows.at
        tl.store(lse_ptr + split * lse_split + at_R, lse_R, mask=rows.inside)


@triton.jit
def combine_kernel(
    parts, lse_parts_ptr, out, lse_ptr, part_split, lse_split, heads, seq_q, splits,
    HEAD_DIM_V: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One row of the output from its splits; a split that saw no key has -inf and weighs nothing."""
    row = tl.cast(tl.program_id(0), tl.int64)
    query = row % seq_q
    head = row // seq_q % heads
    batch = row // seq_q // heads
    splits_S = tl.arange(0, BLOCK_S)
    columns_E = tl.arange(0, BLOCK_E)
    lse_S = tl.load(lse_parts_ptr + splits_S * lse_split + row, mask=splits_S < splits, other=float("-inf"))
    peak = tl.max(lse_S, 0)
    pivot = tl.where(peak == float("-inf"), 0.0, peak)
    weight_S = tl.exp2((lse_S - pivot) * LOG2E)
    total = tl.sum(weight_S, 0)
    seen = total > 0.0
    share_S = weight_S / tl.where(seen, total, 1.0)
    base = parts.pointer + batch * parts.batch + head * parts.head + query * parts.row
    part_SE = tl.load(
        base + splits_S[:, None] * part_split + columns_E[None, :],
        mask=(splits_S < splits)[:, None] & (columns_E < HEAD_DIM_V)[None, :], other=0.0,
    )  # fmt: skip
    out_E = tl.sum(part_SE * share_S[:, None], 0)
    pointers = out.pointer + batch * out.batch + head * out.head + query * out.row + columns_E
    tl.store(pointers, out_E.to(out.pointer.dtype.element_ty), mask=columns_E < HEAD_DIM_V)
    if lse_ptr is not None:
        tl.store(lse_ptr + row, tl.where(seen, pivot + tl.log2(total) * LN2, float("-inf")))
