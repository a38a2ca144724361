"""Decoding: a few new queries against many cached keys, paged or not; the keys are split among programs.

The query heads that share a key head are packed into the rows of one tile, so that K and V are read once. Each split
gives an output of its own and its log-sum-exp; a second kernel adds them up, sum_i exp(lse_i - lse) out_i.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from attnbench.kernels.forward import fold
from attnbench.kernels.tile import LN2, LOG2E, LOWEST, logits


class Cache(NamedTuple):
    """Keys or values: [batch, kv_heads, rows, columns], or in pages, where `batch` is the stride between pages."""

    pointer: Any
    batch: int
    head: int
    row: int


@triton.jit
def _cached(cache, base, table, keys_K, wanted_K, columns, WIDTH: tl.constexpr, PAGE: tl.constexpr):
    """A tile of cached rows, zeros where not wanted."""
    if table is not None:
        page_K = tl.load(table + keys_K // PAGE, mask=wanted_K, other=0)
        rows_K = tl.cast(page_K, tl.int64) * cache.batch + (keys_K % PAGE) * cache.row
    else:
        rows_K = tl.cast(keys_K, tl.int64) * cache.row
    pointers = base + rows_K[:, None] + columns[None, :]
    return tl.load(pointers, mask=wanted_K[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def split_kernel(
    q, k, v, out, lse_ptr, lengths_ptr, table_ptr, slopes_ptr, sinks_ptr, descale_ptr,
    slopes_batch, table_batch, out_split, lse_split, heads, row_tiles, splits, seq_q, seq_kv, left, right,
    scale, softcap,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_KV: tl.constexpr, PAGE: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One split of the keys of one key head, for a tile of the rows that share it."""
    split = tl.program_id(0) % splits
    row_tile = tl.program_id(0) // splits % row_tiles
    pair = tl.program_id(0) // (splits * row_tiles)
    kv_heads = heads // GROUP
    batch = pair // kv_heads
    kv_head = pair % kv_heads
    batch_64 = tl.cast(batch, tl.int64)
    kv_head_64 = tl.cast(kv_head, tl.int64)
    packed_R = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    head_R = kv_head * GROUP + packed_R // seq_q
    query_R = packed_R % seq_q
    inside_R = packed_R < GROUP * seq_q
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    keys_in_K = tl.arange(0, BLOCK_KV)

    q_rows_R = tl.cast(head_R, tl.int64) * q.head + query_R * q.row
    q_pointers = q.pointer + batch_64 * q.batch + q_rows_R[:, None] + columns_D[None, :]
    q_RD = tl.load(q_pointers, mask=inside_R[:, None] & (columns_D < HEAD_DIM)[None, :], other=0.0)
    length = seq_kv
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + batch)
    diagonal_R = length - seq_q + query_R
    low_R = tl.where(inside_R, tl.maximum(diagonal_R - left, 0), length)
    high_R = tl.where(inside_R, tl.minimum(diagonal_R + right + 1, length), 0)
    seeing_R = high_R > low_R
    first = tl.min(tl.where(seeing_R, low_R, length), 0)
    last = tl.max(tl.where(seeing_R, high_R, 0), 0)
    slope_R = None
    if slopes_ptr is not None:
        slope_R = tl.load(slopes_ptr + batch * slopes_batch + head_R, mask=inside_R, other=0.0)[:, None]
    if descale_ptr is not None:
        # Numbers of 8 bits are whole in bfloat16; the heads of a group may have scales of their own.
        q_RD = q_RD.to(tl.bfloat16)
        descale_R = tl.load(descale_ptr + head_R, mask=inside_R, other=0.0)
    if UPCAST:
        q_RD = q_RD.to(tl.float32)
    peak_R = tl.full([BLOCK_R], LOWEST, tl.float32)
    total_R = tl.zeros([BLOCK_R], tl.float32)
    if sinks_ptr is not None:
        # The sink stands in the sum once: in the first split.
        sink_R = tl.load(sinks_ptr + head_R, mask=inside_R, other=0.0)
        peak_R = tl.where(split == 0, sink_R * LOG2E, peak_R)
        total_R = tl.where(split == 0, 1.0, total_R)
    acc_RE = tl.zeros([BLOCK_R, BLOCK_E], tl.float32)

    if table_ptr is not None:
        table = table_ptr + batch_64 * table_batch
        k_base = k.pointer + kv_head_64 * k.head
        v_base = v.pointer + kv_head_64 * v.head
    else:
        table = None
        k_base = k.pointer + batch_64 * k.batch + kv_head_64 * k.head
        v_base = v.pointer + batch_64 * v.batch + kv_head_64 * v.head
    precise: tl.constexpr = PRECISION == "ieee" and q_RD.dtype == tl.float32
    begin = first // BLOCK_KV
    tiles = tl.maximum(tl.cdiv(last, BLOCK_KV) - begin, 0)
    share = tl.cdiv(tiles, splits)
    begin += split * share
    for tile in tl.range(begin, tl.minimum(begin + share, tl.cdiv(last, BLOCK_KV))):
        key = tile * BLOCK_KV
        keys_K = key + keys_in_K
        wanted_K = (keys_K >= first) & (keys_K < last)
        k_KD = _cached(k, k_base, table, keys_K, wanted_K, columns_D, HEAD_DIM, PAGE)
        v_KE = _cached(v, v_base, table, keys_K, wanted_K, columns_E, HEAD_DIM_V, PAGE)
        if v_KE.dtype.primitive_bitwidth == 8:
            k_KD = k_KD.to(tl.bfloat16)
            v_KE = v_KE.to(tl.bfloat16)
        if UPCAST:
            k_KD = k_KD.to(tl.float32)
            v_KE = v_KE.to(tl.float32)
        s_RK = tl.dot(q_RD, tl.trans(k_KD), input_precision=PRECISION)
        if descale_ptr is not None:
            s_RK *= descale_R[:, None]
        s_RK, _ = logits(
            s_RK, 0, key, query_R[:, None], keys_in_K[None, :], low_R[:, None], high_R[:, None], diagonal_R[:, None],
            batch, 0, slope_R, None, None, seq_q, length, scale, softcap, True, FUSED, SOFTCAP, precise, False,
        )  # fmt: skip
        factor = scale * LOG2E if FUSED else 1.0
        acc_RE, total_R, peak_R = fold(acc_RE, total_R, peak_R, s_RK, factor, v_KE, None, PRECISION)

    if descale_ptr is not None:
        acc_RE *= tl.load(descale_ptr + heads + head_R, mask=inside_R, other=0.0)[:, None]
    filled_R = total_R > 0.0
    out_RE = acc_RE / tl.where(filled_R, total_R, 1.0)[:, None]
    out_rows_R = batch_64 * out.batch + tl.cast(head_R, tl.int64) * out.head + query_R * out.row
    out_pointers = out.pointer + split * out_split + out_rows_R[:, None] + columns_E[None, :]
    stored_RE = inside_R[:, None] & (columns_E < HEAD_DIM_V)[None, :]
    tl.store(out_pointers, out_RE.to(out.pointer.dtype.element_ty), mask=stored_RE)
    if lse_ptr is not None:
        lse_R = tl.where(filled_R, (peak_R + tl.log2(total_R)) * LN2, float("-inf"))
        at_R = (batch_64 * heads + head_R) * seq_q + query_R
        tl.store(lse_ptr + split * lse_split + at_R, lse_R, mask=inside_R)


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
