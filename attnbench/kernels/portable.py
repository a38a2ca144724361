"""Portable Triton: pointer loads and every feature, for any GPU that Triton knows, and for its interpreter.

A mask is one interval [low, high) of keys for each row: causal, windows, prefix, documents, padding and ragged lengths
are all that, so one mechanism serves them. A tile of queries walks the keys that any of its rows sees. Tiles of keys
that every row sees whole are not masked; those before and behind them are, key by key.

Shape suffixes, all of one tile: Q rows of queries, K keys, D head_dim and E head_dim_v, both padded to a power of two.
"""

# Triton reads annotations as marks of constants, so kernels cannot carry types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from attnbench.kernels.tiling import Tiling, padded

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _place(tiles, pairs, resident, LONG_FIRST: tl.constexpr):
    """The tile of queries and the (batch, head) pair of this program.

    Pairs are taken `resident` at a time, so that their K and V stay in the L2 cache; within such a section one tile of
    every pair comes before the next tile. Under a causal mask the longest rows start first, and short ones fill the end.
    """
    program = tl.program_id(0)
    section = program // (resident * tiles)
    inside = program % (resident * tiles)
    width = tl.minimum(resident, pairs - section * resident)
    tile = inside // width
    if LONG_FIRST:
        tile = tiles - 1 - tile
    return tile, section * resident + inside % width


@triton.jit
def _intervals(rows_Q, low_ptr, high_ptr, seq_q, seq_kv, left, right, ROWS: tl.constexpr):
    """The keys [low, high) that each row sees; rows beyond the sequence see none."""
    diagonal_Q = rows_Q + (seq_kv - seq_q)
    low_Q = tl.maximum(diagonal_Q - left, 0)
    high_Q = tl.minimum(diagonal_Q + right + 1, seq_kv)
    if ROWS:
        low_Q = tl.maximum(low_Q, tl.load(low_ptr + rows_Q, mask=rows_Q < seq_q, other=0))
        high_Q = tl.minimum(high_Q, tl.load(high_ptr + rows_Q, mask=rows_Q < seq_q, other=0))
    return low_Q, tl.where(rows_Q < seq_q, high_Q, 0)


@triton.jit
def _load(base, offsets, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile; zeros where a row or a column lies outside, as far as that is looked at."""
    if ROWS and COLUMNS:
        return tl.load(base + offsets, mask=rows[:, None] & columns[None, :], other=0.0)
    if ROWS:
        return tl.load(base + offsets, mask=rows[:, None], other=0.0)
    if COLUMNS:
        return tl.load(base + offsets, mask=columns[None, :], other=0.0)
    return tl.load(base + offsets)


@triton.jit
def _tanh(x, PRECISE: tl.constexpr):
    """tanh by exp2 alone: 1 - 2 / (1 + e^2x) cancels near 0, where a series takes over if precision is asked for."""
    y = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))
    if PRECISE:
        x2 = x * x
        series = x + x * x2 * (-1 / 3 + x2 * (2 / 15 + x2 * (-17 / 315 + x2 * (62 / 2835))))
        y = tl.where(x2 < 0.0625, series, y)
    return y


@triton.jit
def _attend(
    acc_QE, total_Q, peak_Q, q_QD, k_ptr, v_ptr, tiles, tiles_left, start, start_right, first, last, low_Q, high_Q,
    stride_ks, stride_kd, stride_vs, stride_ve, scale, softcap,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_KV: tl.constexpr,
    MASKED: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in the keys [start, end): the sum of p v, the sum of p and the highest logit of each row, in base 2."""
    keys_K = tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    k_offsets = keys_K[:, None] * stride_ks + columns_D[None, :] * stride_kd
    v_offsets = keys_K[:, None] * stride_vs + columns_E[None, :] * stride_ve
    for tile in tl.range(0, tiles):
        at = tl.where(tile < tiles_left, start, start_right) + tile * BLOCK_KV if MASKED else start + tile * BLOCK_KV
        at = tl.multiple_of(at, BLOCK_KV)
        # 64 bits: a long sequence times a wide row passes 2^31 elements.
        at_64 = tl.cast(at, tl.int64)
        # Keys that no row of this tile sees are not read, so that what lies in padding cannot spoil p v by 0 * NaN.
        read_K = (at + keys_K >= first) & (at + keys_K < last)
        k_KD = _load(k_ptr + at_64 * stride_ks, k_offsets, read_K, columns_D < HEAD_DIM, MASKED, HEAD_DIM != BLOCK_D)
        v_KE = _load(v_ptr + at_64 * stride_vs, v_offsets, read_K, columns_E < HEAD_DIM_V, MASKED, HEAD_DIM_V != BLOCK_E)
        if UPCAST:
            k_KD = k_KD.to(tl.float32)
            v_KE = v_KE.to(tl.float32)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        if SOFTCAP:
            s_QK = _tanh(s_QK * (scale / softcap), PRECISION == "ieee") * (softcap * LOG2E)
        elif not FUSED:
            s_QK = s_QK * (scale * LOG2E)
        if MASKED:
            seen_QK = (at + keys_K[None, :] >= low_Q[:, None]) & (at + keys_K[None, :] < high_Q[:, None])
            s_QK = tl.where(seen_QK, s_QK, float("-inf"))
        # With scale > 0 and nothing added the highest score gives the highest logit: one multiply-add an element.
        factor = scale * LOG2E if FUSED else 1.0
        new_Q = tl.maximum(peak_Q, tl.max(s_QK, 1) * factor)
        # A row that has seen no key so far: -inf - (-inf) would be NaN.
        pivot_Q = tl.where(new_Q == float("-inf"), 0.0, new_Q) if MASKED else new_Q
        p_QK = tl.exp2(s_QK * factor - pivot_Q[:, None])
        decay_Q = tl.exp2(peak_Q - pivot_Q)
        total_Q = total_Q * decay_Q + tl.sum(p_QK, 1)
        acc_QE = tl.dot(p_QK.to(v_KE.dtype), v_KE, acc_QE * decay_Q[:, None], input_precision=PRECISION)
        peak_Q = new_Q
    return acc_QE, total_Q, peak_Q


@triton.jit(do_not_specialize=["seq_q", "seq_kv", "left", "right", "resident", "pairs", "heads", "stride_rows"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, low_ptr, high_ptr,
    stride_qb, stride_qh, stride_qs, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_ve, stride_ob, stride_oh, stride_os, stride_oe,
    stride_rows, pairs, heads, seq_q, seq_kv, left, right, resident, scale, softcap,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LONG_FIRST: tl.constexpr, ROWS: tl.constexpr,
    EDGES: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr, LSE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all the keys that it sees; GROUP query heads share a key head."""
    tile, pair = _place(tl.cdiv(seq_q, BLOCK_Q), pairs, resident, LONG_FIRST)
    batch = tl.cast(pair // heads, tl.int64)
    head = tl.cast(pair % heads, tl.int64)
    begin = tl.cast(tile * BLOCK_Q, tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh + begin * stride_qs
    k_ptr += batch * stride_kb + head // GROUP * stride_kh
    v_ptr += batch * stride_vb + head // GROUP * stride_vh
    out_ptr += batch * stride_ob + head * stride_oh + begin * stride_os
    if ROWS:
        low_ptr += batch * stride_rows
        high_ptr += batch * stride_rows

    inside_Q = tl.arange(0, BLOCK_Q)
    rows_Q = tile * BLOCK_Q + inside_Q
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    low_Q, high_Q = _intervals(rows_Q, low_ptr, high_ptr, seq_q, seq_kv, left, right, ROWS)
    seeing_Q = high_Q > low_Q
    first = tl.min(tl.where(seeing_Q, low_Q, seq_kv), 0)
    last = tl.max(tl.where(seeing_Q, high_Q, 0), 0)
    # Keys that every row sees; rows that see none do not count, their output is 0 whatever they take in.
    whole_from = tl.max(tl.where(seeing_Q, low_Q, 0), 0)
    whole_to = tl.min(tl.where(seeing_Q, high_Q, last), 0)

    q_offsets = inside_Q[:, None] * stride_qs + columns_D[None, :] * stride_qd
    q_QD = _load(q_ptr, q_offsets, rows_Q < seq_q, columns_D < HEAD_DIM, True, HEAD_DIM != BLOCK_D)
    if UPCAST:
        q_QD = q_QD.to(tl.float32)
    acc_QE = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    total_Q = tl.zeros([BLOCK_Q], tl.float32)
    peak_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)

    start = first // BLOCK_KV
    whole_start = tl.cdiv(whole_from, BLOCK_KV)
    whole_end = tl.maximum(whole_start, whole_to // BLOCK_KV)
    end = tl.cdiv(last, BLOCK_KV)
    if EDGES:
        tiles_left = tl.maximum(tl.minimum(whole_start, end) - start, 0)
        tiles = tiles_left + tl.maximum(end - whole_end, 0)
        acc_QE, total_Q, peak_Q = _attend(
            acc_QE, total_Q, peak_Q, q_QD, k_ptr, v_ptr, tiles, tiles_left, start * BLOCK_KV, (whole_end - tiles_left) * BLOCK_KV, first, last, low_Q, high_Q,
            stride_ks, stride_kd, stride_vs, stride_ve, scale, softcap, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_KV,
            True, FUSED, SOFTCAP, PRECISION, UPCAST,
        )  # fmt: skip
    acc_QE, total_Q, peak_Q = _attend(
        acc_QE, total_Q, peak_Q, q_QD, k_ptr, v_ptr, whole_end - whole_start, 0, whole_start * BLOCK_KV, 0, first, last, low_Q, high_Q,
        stride_ks, stride_kd, stride_vs, stride_ve, scale, softcap, HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_KV,
        False, FUSED, SOFTCAP, PRECISION, UPCAST,
    )  # fmt: skip

    total_Q = tl.where(seeing_Q, total_Q, 1.0)
    out_QE = tl.where(seeing_Q[:, None], acc_QE / total_Q[:, None], 0.0)
    out_offsets = inside_Q[:, None] * stride_os + columns_E[None, :] * stride_oe
    stored_QE = (rows_Q < seq_q)[:, None] & (columns_E < HEAD_DIM_V)[None, :]
    tl.store(out_ptr + out_offsets, out_QE.to(out_ptr.dtype.element_ty), mask=stored_QE)
    if LSE:
        lse_Q = tl.where(seeing_Q, (peak_Q + tl.log2(total_Q)) * LN2, float("-inf"))
        tl.store(lse_ptr + tl.cast(pair, tl.int64) * seq_q + rows_Q, lse_Q, mask=rows_Q < seq_q)
