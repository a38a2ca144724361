"""The forward pass: online softmax in base 2, on any GPU that Triton supports and in its interpreter.

A tile of queries takes in the keys that any of its rows sees. Tiles of keys that every row sees in full are not masked;
those before and behind them are, key by key. One body serves pointers and the tensor descriptors (TMA) of Hopper.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.tile import (
    LN2,
    LOG2E,
    LOWEST,
    HeadOperand,
    LogitRule,
    Tiles,
    down,
    extent_of,
    intervals,
    logits,
    place,
    read,
    start_in,
    start_of,
    store,
    survives,
)


@triton.jit
def fold(acc_QE, total_Q, peak_Q, s_QK, factor, v_KE, keep_QK, PRECISION: tl.constexpr):
    """One step of the online softmax: the sums of p v and of p, and the highest logit of each row, in base 2."""
    # With scale > 0 and nothing added, the highest score gives the highest logit: one multiply-add an element.
    new_Q = tl.maximum(peak_Q, tl.max(s_QK, 1) * factor)
    p_QK = tl.exp2(s_QK * factor - new_Q[:, None])
    decay_Q = tl.exp2(peak_Q - new_Q)
    total_Q = total_Q * decay_Q + tl.sum(p_QK, 1)
    if keep_QK is not None:
        p_QK = tl.where(keep_QK, p_QK, 0.0)
    acc_QE = tl.dot(p_QK.to(v_KE.dtype), v_KE, acc_QE * decay_Q[:, None], input_precision=PRECISION)
    return acc_QE, total_Q, new_Q


@triton.jit
def _attend(
    acc_QE, total_Q, peak_Q, q_QD, k, v, tiles, seen, extent, row, rule,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_KV: tl.constexpr,
    MASKED: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in tiles of keys."""
    precise: tl.constexpr = PRECISION == "ieee" and q_QD.dtype == tl.float32
    rows_Q = tl.arange(0, q_QD.shape[0])
    keys_K = tl.arange(0, BLOCK_KV)
    for tile in tl.range(0, tiles.count):
        at = start_in(tiles, tile, BLOCK_KV, LIST_KV, MASKED)
        # Keys that no row of this tile sees are not read, so that NaN in padding cannot spoil p v.
        read_K = (at + keys_K >= extent.first) & (at + keys_K < extent.last)
        k_KD = read(k, at, read_K, MASKED and k.base is not None, HEAD_DIM, BLOCK_KV)
        v_KE = read(v, at, read_K, MASKED, HEAD_DIM_V, BLOCK_KV)
        if v_KE.dtype.primitive_bitwidth == 8:
            # Weights of 8 bits would cost more than inputs of 8 bits do.
            v_KE = v_KE.to(tl.bfloat16)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        s_QK, _ = logits(s_QK, row, at, rows_Q[:, None], keys_K[None, :], down(seen), rule, MASKED, FUSED, precise)
        keep_QK = None
        if rule.threshold is not None:
            keep_QK = survives(rule, row + rows_Q[:, None], at + keys_K[None, :])
        factor = rule.scale * LOG2E if FUSED else 1.0
        acc_QE, total_Q, peak_Q = fold(acc_QE, total_Q, peak_Q, s_QK, factor, v_KE, keep_QK, PRECISION)
    return acc_QE, total_Q, peak_Q


@triton.jit
def _attend_all(
    acc_QE, total_Q, peak_Q, q_QD, k, v, blocks, seen, extent, row, rule,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr,
    LIST_KV: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in the blocks of a list, or the tiles that need a mask and then those that every row sees in full."""
    if blocks is not None:
        entry = tl.cast(rule.batch, tl.int64) * blocks.batch + rule.head * blocks.head + row // LIST_Q
        count = tl.load(blocks.counts + entry) * (LIST_KV // BLOCK_KV)
        tiles = Tiles(count, 0, 0, 0, blocks.indices + entry * blocks.width)
        acc_QE, total_Q, peak_Q = _attend(
            acc_QE, total_Q, peak_Q, q_QD, k, v, tiles, seen, extent, row, rule,
            HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_KV, EDGES, FUSED, PRECISION,
        )  # fmt: skip
    else:
        if EDGES:
            # Before the full tiles, not after: else ptxas serialises the asynchronous products of Hopper (C7515).
            start = extent.first // BLOCK_KV
            end = tl.cdiv(extent.last, BLOCK_KV)
            before = tl.maximum(extent.full - start, 0)  # where no row sees a key, start lies behind
            second_start = (extent.full_end - before) * BLOCK_KV
            edges = Tiles(before + end - extent.full_end, before, start * BLOCK_KV, second_start, None)
            acc_QE, total_Q, peak_Q = _attend(
                acc_QE, total_Q, peak_Q, q_QD, k, v, edges, seen, extent, row, rule,
                HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_KV, True, FUSED, PRECISION,
            )  # fmt: skip
        full = Tiles(extent.full_end - extent.full, 0, extent.full * BLOCK_KV, 0, None)
        acc_QE, total_Q, peak_Q = _attend(
            acc_QE, total_Q, peak_Q, q_QD, k, v, full, seen, extent, row, rule,
            HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_KV, False, FUSED, PRECISION,
        )  # fmt: skip
    return acc_QE, total_Q, peak_Q


@triton.jit(do_not_specialize=["seed", "threshold"])
def forward_kernel(
    q, k, v, out, lse_ptr, listed, blocks, visible, bias, distance_bias, slopes_ptr, sinks_ptr, descale_ptr,
    slopes_batch, pairs, heads, seq_q, seq_kv, left, right, resident, scale, softcap, seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr,
    LONG_FIRST: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all the keys that it sees; GROUP query heads share a key head."""
    tile, pair = place(tl.cdiv(seq_q, BLOCK_Q), pairs, resident, LONG_FIRST)
    batch = pair // heads
    head = pair % heads
    kv_head = head // GROUP
    row = tile * BLOCK_Q
    batch_64 = tl.cast(batch, tl.int64)
    rows_Q = row + tl.arange(0, BLOCK_Q)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    queries = HeadOperand(q, start_of(q, batch, head, DESCRIPTORS), batch, head, columns_D)
    keys = HeadOperand(k, start_of(k, batch, kv_head, DESCRIPTORS), batch, kv_head, columns_D)
    values = HeadOperand(v, start_of(v, batch, kv_head, DESCRIPTORS), batch, kv_head, columns_E)
    q_QD = read(
        queries, row, rows_Q < seq_q, not DESCRIPTORS, HEAD_DIM, BLOCK_Q
    )  # a descriptor reads zeros beyond the end
    slope = None
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + batch * slopes_batch + head)
    if descale_ptr is not None:
        scale *= tl.load(descale_ptr + head)
    rule = LogitRule(
        batch, head, slope, bias, distance_bias, visible, seq_q, seq_kv, scale, softcap, seed, threshold, amplify
    )

    acc_QE = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    if sinks_ptr is not None:
        # A sink is a logit without a value: it counts in the sum from the start.
        peak_Q = tl.zeros([BLOCK_Q], tl.float32) + tl.load(sinks_ptr + head) * LOG2E
        total_Q = tl.full([BLOCK_Q], 1.0, tl.float32)
    else:
        peak_Q = tl.full([BLOCK_Q], LOWEST, tl.float32)
        total_Q = tl.zeros([BLOCK_Q], tl.float32)
    seen = intervals(rows_Q, listed, batch_64, seq_q, seq_kv, left, right)
    extent = extent_of(seen, seq_kv, BLOCK_KV)
    acc_QE, total_Q, peak_Q = _attend_all(
        acc_QE, total_Q, peak_Q, q_QD, keys, values, blocks, seen, extent, row, rule,
        HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_Q, LIST_KV, EDGES, FUSED, PRECISION,
    )  # fmt: skip

    if threshold is not None:
        acc_QE *= amplify
    if descale_ptr is not None:
        acc_QE *= tl.load(descale_ptr + heads + head)
    seeing_Q = total_Q > 0.0
    out_QE = acc_QE / tl.where(seeing_Q, total_Q, 1.0)[:, None]
    # A row whose interval is empty has taken in the keys of the other rows of its tile.
    empty_Q = seen.high <= seen.low
    out_QE = tl.where(empty_Q[:, None], 0.0, out_QE)
    store(out, out_QE, batch_64, tl.cast(head, tl.int64), row, rows_Q < seq_q, columns_E, HEAD_DIM_V)
    if lse_ptr is not None:
        lowest_Q = tl.load(sinks_ptr + head) if sinks_ptr is not None else float("-inf")
        lse_Q = tl.where(seeing_Q & (empty_Q == 0), (peak_Q + tl.log2(total_Q)) * LN2, lowest_Q)
        tl.store(lse_ptr + tl.cast(pair, tl.int64) * seq_q + rows_Q, lse_Q, mask=rows_Q < seq_q)
