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

from contextlib import nullcontext
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
    every pair comes before the next tile. Where later rows see more keys they start first, and short ones fill the end.
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
def _load(base, offsets, rows, columns, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """A tile, zeros beyond its width, and in the rows that are not wanted if ROWS says that there are such."""
    if ROWS and columns.shape[0] != WIDTH:
        return tl.load(base + offsets, mask=rows[:, None] & (columns < WIDTH)[None, :], other=0.0)
    if ROWS:
        return tl.load(base + offsets, mask=rows[:, None], other=0.0)
    if columns.shape[0] != WIDTH:
        return tl.load(base + offsets, mask=(columns < WIDTH)[None, :], other=0.0)
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
    acc_QE, total_Q, peak_Q, q_QD, k_ptr, v_ptr, low_Q, high_Q, first, last, tiles, tiles_left, start, start_right,
    stride_ks, stride_kd, stride_vs, stride_ve, scale, softcap,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_KV: tl.constexpr, MASKED: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in tiles of keys: the sums of p v and of p, and the highest logit of each row, in base 2."""
    keys_K = tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    k_offsets = keys_K[:, None] * stride_ks + columns_D[None, :] * stride_kd
    v_offsets = keys_K[:, None] * stride_vs + columns_E[None, :] * stride_ve
    for tile in tl.range(0, tiles):
        # Masked tiles lie in two runs, before and behind the whole ones.
        at = tile * BLOCK_KV + (tl.where(tile < tiles_left, start, start_right) if MASKED else start)
        at = tl.multiple_of(at, BLOCK_KV)
        # 64 bits: a long sequence of wide rows passes 2^31 numbers.
        at_64 = tl.cast(at, tl.int64)
        # Keys that no row of this tile sees are not read, so that NaN in padding cannot spoil p v.
        read_K = (at + keys_K >= first) & (at + keys_K < last)
        k_KD = _load(k_ptr + at_64 * stride_ks, k_offsets, read_K, columns_D, MASKED, HEAD_DIM)
        v_KE = _load(v_ptr + at_64 * stride_vs, v_offsets, read_K, columns_E, MASKED, HEAD_DIM_V)
        if UPCAST:
            k_KD = k_KD.to(tl.float32)
            v_KE = v_KE.to(tl.float32)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        if SOFTCAP:
            precise: tl.constexpr = PRECISION == "ieee" and q_QD.dtype == tl.float32
            s_QK = _tanh(s_QK * (scale / softcap), precise) * (softcap * LOG2E)
        elif not FUSED:
            s_QK = s_QK * (scale * LOG2E)
        if MASKED:
            seen_QK = (at + keys_K[None, :] >= low_Q[:, None]) & (at + keys_K[None, :] < high_Q[:, None])
            s_QK = tl.where(seen_QK, s_QK, float("-inf"))
        # With scale > 0 and nothing added, the highest score gives the highest logit: one multiply-add an element.
        factor = scale * LOG2E if FUSED else 1.0
        new_Q = tl.maximum(peak_Q, tl.max(s_QK, 1) * factor)
        # For a row that has seen no key yet, -inf - (-inf) would be NaN.
        pivot_Q = tl.where(new_Q == float("-inf"), 0.0, new_Q) if MASKED else new_Q
        p_QK = tl.exp2(s_QK * factor - pivot_Q[:, None])
        decay_Q = tl.exp2(peak_Q - pivot_Q)
        total_Q = total_Q * decay_Q + tl.sum(p_QK, 1)
        acc_QE = tl.dot(p_QK.to(v_KE.dtype), v_KE, acc_QE * decay_Q[:, None], input_precision=PRECISION)
        peak_Q = new_Q
    return acc_QE, total_Q, peak_Q


# Lengths change from call to call: a kernel for each that is 1 or a multiple of 16 would only be compiled again.
@triton.jit(do_not_specialize=["stride_rows", "pairs", "heads", "seq_q", "seq_kv", "left", "right", "resident"])
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, low_ptr, high_ptr,
    stride_qb, stride_qh, stride_qs, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd,
    stride_vb, stride_vh, stride_vs, stride_ve, stride_ob, stride_oh, stride_os, stride_oe,
    stride_rows, pairs, heads, seq_q, seq_kv, left, right, resident, scale, softcap,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LONG_FIRST: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr,
    FUSED: tl.constexpr, SOFTCAP: tl.constexpr, LSE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
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
    q_offsets = inside_Q[:, None] * stride_qs + columns_D[None, :] * stride_qd
    q_QD = _load(q_ptr, q_offsets, rows_Q < seq_q, columns_D, True, HEAD_DIM)
    if UPCAST:
        q_QD = q_QD.to(tl.float32)
    acc_QE = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    total_Q = tl.zeros([BLOCK_Q], tl.float32)
    peak_Q = tl.full([BLOCK_Q], float("-inf"), tl.float32)

    low_Q, high_Q = _intervals(rows_Q, low_ptr, high_ptr, seq_q, seq_kv, left, right, ROWS)
    seeing_Q = high_Q > low_Q
    first = tl.min(tl.where(seeing_Q, low_Q, seq_kv), 0)
    last = tl.max(tl.where(seeing_Q, high_Q, 0), 0)
    # Tiles whose keys every row sees. A row that sees no key does not count: its output is 0 whatever it takes in.
    whole = tl.cdiv(tl.max(tl.where(seeing_Q, low_Q, 0), 0), BLOCK_KV)
    whole_end = tl.maximum(whole, tl.min(tl.where(seeing_Q, high_Q, last), 0) // BLOCK_KV)
    if EDGES:
        # Before the whole tiles, not after: else ptxas serialises the asynchronous matrix products of Hopper (C7515).
        start = first // BLOCK_KV
        end = tl.cdiv(last, BLOCK_KV)
        tiles_left = tl.maximum(whole - start, 0)  # where no row sees a key, start lies behind
        tiles = tiles_left + end - whole_end
        acc_QE, total_Q, peak_Q = _attend(
            acc_QE, total_Q, peak_Q, q_QD, k_ptr, v_ptr, low_Q, high_Q, first, last,
            tiles, tiles_left, start * BLOCK_KV, (whole_end - tiles_left) * BLOCK_KV,
            stride_ks, stride_kd, stride_vs, stride_ve, scale, softcap,
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_KV, True, FUSED, SOFTCAP, PRECISION, UPCAST,
        )  # fmt: skip
    acc_QE, total_Q, peak_Q = _attend(
        acc_QE, total_Q, peak_Q, q_QD, k_ptr, v_ptr, low_Q, high_Q, first, last,
        whole_end - whole, 0, whole * BLOCK_KV, 0,
        stride_ks, stride_kd, stride_vs, stride_ve, scale, softcap,
        HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_KV, False, FUSED, SOFTCAP, PRECISION, UPCAST,
    )  # fmt: skip

    total_Q = tl.where(seeing_Q, total_Q, 1.0)
    out_QE = tl.where(seeing_Q[:, None], acc_QE / total_Q[:, None], 0.0)
    out_offsets = inside_Q[:, None] * stride_os + columns_E[None, :] * stride_oe
    stored_QE = (rows_Q < seq_q)[:, None] & (columns_E < HEAD_DIM_V)[None, :]
    tl.store(out_ptr + out_offsets, out_QE.to(out_ptr.dtype.element_ty), mask=stored_QE)
    if LSE:
        lse_Q = tl.where(seeing_Q, (peak_Q + tl.log2(total_Q)) * LN2, float("-inf"))
        tl.store(lse_ptr + tl.cast(pair, tl.int64) * seq_q + rows_Q, lse_Q, mask=rows_Q < seq_q)


INTERPRETED = not isinstance(forward_kernel, JITFunction)  # decided when Triton was imported, by TRITON_INTERPRET


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    left: int,
    right: int,
    intervals: tuple[Tensor, Tensor] | None,
    scale: float,
    softcap: float | None,
    precision: str,
    with_lse: bool,
    cut: Tiling,
) -> tuple[Tensor, Tensor | None, Any]:
    """out [batch, heads, seq_q, head_dim_v], lse [batch, heads, seq_q], and what Triton says of the compiled kernel.

    q: [batch, heads, seq_q, head_dim]; k: [batch, kv_heads, seq_kv, head_dim];
    v: [batch, kv_heads, seq_kv, head_dim_v]; intervals: the keys [low, high) of the rows, int32 [batch or 1, seq_q].
    """
    batch, heads, seq_q, head_dim = q.shape
    seq_kv, head_dim_v = v.shape[2:]
    out = q.new_empty(batch, heads, seq_q, head_dim_v)
    lse = q.new_empty(batch, heads, seq_q, dtype=torch.float32) if with_lse else None
    low, high = intervals or (None, None)
    # A band that no row feels, and keys in whole tiles: no tile needs a mask.
    edges = low is not None or left < seq_kv - 1 or right < seq_q - 1 or seq_kv % cut.block_kv != 0
    pairs = batch * heads
    tiles = triton.cdiv(seq_q, cut.block_q) * pairs
    if tiles == 0:
        return out, lse, None
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        compiled = forward_kernel[(tiles,)](
            q, k, v, out, lse, low, high,
            *q.stride(), *k.stride(), *v.stride(), *out.stride(),
            low.stride(0) if low is not None and low.shape[0] > 1 else 0,
            pairs, heads, seq_q, seq_kv, left, right, cut.resident, float(scale), float(softcap or 1.0),
            GROUP=heads // k.shape[1], HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v,
            BLOCK_D=padded(head_dim), BLOCK_E=padded(head_dim_v), BLOCK_Q=cut.block_q, BLOCK_KV=cut.block_kv,
            LONG_FIRST=cut.long_first, ROWS=low is not None, EDGES=edges,
            FUSED=softcap is None and scale > 0, SOFTCAP=softcap is not None, LSE=with_lse,
            PRECISION=precision, UPCAST=INTERPRETED, num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return out, lse, compiled


def describe(cut: Tiling, compiled: Any) -> dict[str, Any]:
    """Facts of a launch: its tiles, and what the compiler made of them."""
    facts: dict[str, Any] = {"path": cut.path, "triton": triton.__version__, "interpreted": INTERPRETED}
    for name in ("block_q", "block_kv", "warps", "stages", "resident", "long_first"):
        facts[name] = getattr(cut, name)
    if compiled is not None:
        facts["registers"], facts["spilled_registers"] = compiled.n_regs, compiled.n_spills
        facts["shared_bytes"] = compiled.metadata.shared
    return facts
