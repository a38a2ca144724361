"""The backward pass, deterministic: one kernel for dk and dv, one for dq, each sum in one program and in one order.

Weights are recomputed from the log-sum-exp. The dk, dv kernel works on tiles [K, Q], the transpose of the others, so
that no value computed from an accumulator is transposed: Triton 3.4 to 3.7.0 compile that wrongly for Hopper
(https://github.com/fla-org/flash-linear-attention/issues/640).
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from attnbench.kernels.tile import (
    LOG2E,
    HeadOperand,
    LogitRule,
    Tiles,
    across,
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


class RowStatistics(NamedTuple):
    """The log-sum-exp and delta of the rows of one head, float32; `at` is the index of its first row."""

    lse_ptr: tl.tensor
    delta_ptr: tl.tensor
    at: tl.tensor


@triton.jit
def delta_kernel(
    out, dout, dlse_ptr, delta_ptr, pairs, heads, seq_q,
    HEAD_DIM_V: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(out dout), less the gradient of the log-sum-exp where there is one."""
    tile, pair = place(tl.cdiv(seq_q, BLOCK_Q), pairs, 1, False)
    batch = pair // heads
    head = pair % heads
    row = tile * BLOCK_Q
    rows_Q = row + tl.arange(0, BLOCK_Q)
    columns_E = tl.arange(0, BLOCK_E)
    inside_Q = rows_Q < seq_q
    outputs = HeadOperand(out, start_of(out, batch, head, False), batch, head, columns_E)
    gradients = HeadOperand(dout, start_of(dout, batch, head, False), batch, head, columns_E)
    out_QE = read(outputs, row, inside_Q, True, HEAD_DIM_V, BLOCK_Q)
    dout_QE = read(gradients, row, inside_Q, True, HEAD_DIM_V, BLOCK_Q)
    delta_Q = tl.sum(out_QE.to(tl.float32) * dout_QE.to(tl.float32), 1)
    at = tl.cast(pair, tl.int64) * seq_q
    if dlse_ptr is not None:
        delta_Q -= tl.load(dlse_ptr + at + rows_Q, mask=inside_Q, other=0.0)
    tl.store(delta_ptr + at + rows_Q, delta_Q, mask=inside_Q)


@triton.jit
def statistics_of(rows_Q, statistics, seq_q):
    """The lse of some rows in base 2, +inf for a row that sees no key, so that all its weights are 0; and delta."""
    lse_Q = tl.load(statistics.lse_ptr + statistics.at + rows_Q, mask=rows_Q < seq_q, other=float("inf"))
    lse_Q = tl.where(lse_Q == float("-inf"), float("inf"), lse_Q * LOG2E)
    delta_Q = tl.load(statistics.delta_ptr + statistics.at + rows_Q, mask=rows_Q < seq_q, other=0.0)
    return lse_Q, delta_Q


@triton.jit
def logit_gradients(
    s, dp, lse, delta, row, key, row_in, key_in, seen, rule,
    MASKED: tl.constexpr, FUSED: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """The weights after dropout, the gradients of the logits, and those of the products `s` before the scale.

    `dp` are the products of dout and the values; tiles [Q, K] and [K, Q] are both supported.
    """
    s, capped = logits(s, row, key, row_in, key_in, seen, rule, MASKED, FUSED, PRECISE)
    p = tl.exp2(s * (rule.scale * LOG2E if FUSED else 1.0) - lse)
    dropped = p
    if rule.threshold is not None:
        keep = survives(rule, row + row_in, key + key_in)
        dropped = tl.where(keep, p * rule.amplify, 0.0)
        dp = tl.where(keep, dp * rule.amplify, 0.0)
    dlogits = p * (dp - delta)
    if MASKED:
        # A hidden key may hold NaN, and 0 NaN is NaN.
        dlogits = tl.where(p == 0.0, 0.0, dlogits)
    ds = dlogits
    if rule.softcap is not None:
        ds = ds * (1.0 - capped * capped)
    return dropped, dlogits, ds


@triton.jit
def _gather_rows(
    dk_KD, dv_KE, k_KD, v_KE, q, dout, statistics, tiles, listed, key, left, right, rule,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_Q: tl.constexpr, LIST_Q: tl.constexpr,
    RAGGED: tl.constexpr, MASKED: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in tiles of queries of one head: the sums of ds q and of p dout."""
    precise: tl.constexpr = PRECISION == "ieee" and k_KD.dtype == tl.float32
    inside_Q = tl.arange(0, BLOCK_Q)
    keys_K = tl.arange(0, k_KD.shape[0])
    for tile in tl.range(0, tiles.count):
        row = start_in(tiles, tile, BLOCK_Q, LIST_Q, MASKED)
        rows_Q = row + inside_Q
        seen = intervals(rows_Q, listed, tl.cast(rule.batch, tl.int64), rule.seq_q, rule.seq_kv, left, right)
        wanted_Q = rows_Q < rule.seq_q
        if listed is not None:
            # Rows of no sequence may hold NaN, and the sums over rows would take it in.
            wanted_Q = seen.high > seen.low
        some: tl.constexpr = RAGGED or listed is not None
        q_QD = read(q, row, wanted_Q, some, HEAD_DIM, BLOCK_Q)
        dout_QE = read(dout, row, wanted_Q, some, HEAD_DIM_V, BLOCK_Q)
        lse_Q, delta_Q = statistics_of(rows_Q, statistics, rule.seq_q)
        s_KQ = tl.dot(k_KD, tl.trans(q_QD), input_precision=PRECISION)
        dp_KQ = tl.dot(v_KE, tl.trans(dout_QE), input_precision=PRECISION)
        p_KQ, _, ds_KQ = logit_gradients(
            s_KQ, dp_KQ, lse_Q[None, :], delta_Q[None, :], row, key, inside_Q[None, :], keys_K[:, None], across(seen),
            rule, MASKED, FUSED, precise,
        )  # fmt: skip
        dv_KE = tl.dot(p_KQ.to(dout_QE.dtype), dout_QE, dv_KE, input_precision=PRECISION)
        dk_KD = tl.dot(ds_KQ.to(q_QD.dtype), q_QD, dk_KD, input_precision=PRECISION)
    return dk_KD, dv_KE


@triton.jit
def _seeing_rows(listed, batch, key, key_end, seq_q, CHUNK: tl.constexpr):
    """The rows [first, last) that may see some key of [key, key_end), from their listed intervals."""
    first = seq_q
    last = 0
    pointer = listed.pointer + batch * listed.batch
    for start in tl.range(0, seq_q, CHUNK):
        rows = start + tl.arange(0, CHUNK)
        low = tl.load(pointer + rows, mask=rows < seq_q, other=0)
        high = tl.load(pointer + listed.plane + rows, mask=rows < seq_q, other=0)
        seeing = (low < key_end) & (high > key) & (high > low)
        first = tl.minimum(first, tl.min(tl.where(seeing, rows, seq_q), 0))
        last = tl.maximum(last, tl.max(tl.where(seeing, rows + 1, 0), 0))
    return first, last


@triton.jit
def _tiles_of_rows(
    listed, batch, key, seq_q, seq_kv, left, right, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr
):  # fmt: skip
    """The tiles [start, end) of rows that see some key of a tile of keys, and those [full, full_end) that see all.

    Rows and keys beyond the ends need no mask: such a row weighs nothing, and what such a key gets is not stored.
    """
    key_end = tl.minimum(key + BLOCK_KV, seq_kv)
    shift = seq_kv - seq_q
    if listed is not None:
        first, last = _seeing_rows(listed, batch, key, key_end, seq_q, 1024)
        full = last
        full_end = last
    else:
        first = tl.maximum(key - shift - right, 0)
        last = tl.maximum(tl.minimum(key_end - shift + left, seq_q), first)
        full = tl.minimum(tl.maximum(key_end - 1 - shift - right, first), last)
        full_end = tl.minimum(tl.maximum(key - shift + left + 1, full), last)
    start = first // BLOCK_Q
    end = tl.cdiv(last, BLOCK_Q)
    full = tl.cdiv(full, BLOCK_Q)
    full_end = tl.where(full_end == seq_q, end, full_end // BLOCK_Q)
    full = tl.minimum(tl.maximum(full, start), end)
    return start, end, full, tl.maximum(full_end, full)


@triton.jit
def _gather_all_rows(
    dk_KD, dv_KE, k_KD, v_KE, q, dout, statistics, walk, blocks, listed, key, left, right, rule,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_Q: tl.constexpr, LIST_Q: tl.constexpr,
    LIST_KV: tl.constexpr, RAGGED: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in the blocks of a list, or the tiles that need a mask and then those that see all keys of the tile."""
    if blocks is not None:
        entry = tl.cast(rule.batch, tl.int64) * blocks.batch + rule.head * blocks.head + key // LIST_KV
        count = tl.load(blocks.counts + entry) * (LIST_Q // BLOCK_Q)
        tiles = Tiles(count, 0, 0, 0, blocks.indices + entry * blocks.width)
        dk_KD, dv_KE = _gather_rows(
            dk_KD, dv_KE, k_KD, v_KE, q, dout, statistics, tiles, listed, key, left, right, rule,
            HEAD_DIM, HEAD_DIM_V, BLOCK_Q, LIST_Q, RAGGED, EDGES, FUSED, PRECISION,
        )  # fmt: skip
    else:
        start, end, full, full_end = walk
        if EDGES:
            before = full - start
            second_start = (full_end - before) * BLOCK_Q
            edges = Tiles(before + end - full_end, before, start * BLOCK_Q, second_start, None)
            dk_KD, dv_KE = _gather_rows(
                dk_KD, dv_KE, k_KD, v_KE, q, dout, statistics, edges, listed, key, left, right, rule,
                HEAD_DIM, HEAD_DIM_V, BLOCK_Q, LIST_Q, RAGGED, True, FUSED, PRECISION,
            )  # fmt: skip
        if listed is None:
            dk_KD, dv_KE = _gather_rows(
                dk_KD, dv_KE, k_KD, v_KE, q, dout, statistics,
                Tiles(full_end - full, 0, full * BLOCK_Q, 0, None), listed, key, left, right, rule,
                HEAD_DIM, HEAD_DIM_V, BLOCK_Q, LIST_Q, RAGGED, False, FUSED, PRECISION,
            )  # fmt: skip
    return dk_KD, dv_KE


@triton.jit(do_not_specialize=["seed", "threshold"])
def key_kernel(
    q, k, v, dout, dk, dv, lse_ptr, delta_ptr, listed, blocks, visible, bias, distance_bias, slopes_ptr,
    slopes_batch, pairs, heads, parts, seq_q, seq_kv, left, right, resident, scale, softcap, seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr, RAGGED: tl.constexpr,
    EDGES: tl.constexpr, FUSED: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys, summed over GROUP query heads, which are one of `parts` shares of a key head's."""
    tile, pair = place(tl.cdiv(seq_kv, BLOCK_KV), pairs, resident, False)
    shares = heads // GROUP
    batch = pair // shares
    share = pair % shares
    kv_head = share // parts
    key = tile * BLOCK_KV
    batch_64 = tl.cast(batch, tl.int64)
    inside_K = key + tl.arange(0, BLOCK_KV) < seq_kv
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    keys = HeadOperand(k, start_of(k, batch, kv_head, DESCRIPTORS), batch, kv_head, columns_D)
    values = HeadOperand(v, start_of(v, batch, kv_head, DESCRIPTORS), batch, kv_head, columns_E)
    k_KD = read(keys, key, inside_K, not DESCRIPTORS, HEAD_DIM, BLOCK_KV)  # a descriptor reads zeros beyond the end
    v_KE = read(values, key, inside_K, not DESCRIPTORS, HEAD_DIM_V, BLOCK_KV)
    dk_KD = tl.zeros([BLOCK_KV, BLOCK_D], tl.float32)
    dv_KE = tl.zeros([BLOCK_KV, BLOCK_E], tl.float32)
    walk = _tiles_of_rows(listed, batch_64, key, seq_q, seq_kv, left, right, BLOCK_Q, BLOCK_KV)
    for member in tl.range(0, GROUP):
        head = share * GROUP + member
        queries = HeadOperand(q, start_of(q, batch, head, DESCRIPTORS), batch, head, columns_D)
        gradients = HeadOperand(dout, start_of(dout, batch, head, DESCRIPTORS), batch, head, columns_E)
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + batch * slopes_batch + head)
        rule = LogitRule(
            batch, head, slope, bias, distance_bias, visible, seq_q, seq_kv, scale, softcap, seed, threshold, amplify
        )
        statistics = RowStatistics(lse_ptr, delta_ptr, (batch_64 * heads + head) * seq_q)
        dk_KD, dv_KE = _gather_all_rows(
            dk_KD, dv_KE, k_KD, v_KE, queries, gradients, statistics, walk, blocks, listed, key, left, right, rule,
            HEAD_DIM, HEAD_DIM_V, BLOCK_Q, LIST_Q, LIST_KV, RAGGED, EDGES, FUSED, PRECISION,
        )  # fmt: skip

    share_64 = tl.cast(share, tl.int64)
    store(dk, dk_KD * scale, batch_64, share_64, key, inside_K, columns_D, HEAD_DIM)
    store(dv, dv_KE, batch_64, share_64, key, inside_K, columns_E, HEAD_DIM_V)


@triton.jit
def _gather_keys(
    dq_QD, q_QD, dout_QE, k, v, lse_Q, delta_Q, tiles, seen, extent, row, rule,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_KV: tl.constexpr,
    MASKED: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in tiles of keys: the sum of ds k."""
    precise: tl.constexpr = PRECISION == "ieee" and q_QD.dtype == tl.float32
    rows_Q = tl.arange(0, q_QD.shape[0])
    keys_K = tl.arange(0, BLOCK_KV)
    for tile in tl.range(0, tiles.count):
        at = start_in(tiles, tile, BLOCK_KV, LIST_KV, MASKED)
        read_K = (at + keys_K >= extent.first) & (at + keys_K < extent.last)
        # In ds k a weight of 0 would not remove the NaN of a key that is not seen.
        k_KD = read(k, at, read_K, MASKED, HEAD_DIM, BLOCK_KV)
        v_KE = read(v, at, read_K, MASKED, HEAD_DIM_V, BLOCK_KV)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        dp_QK = tl.dot(dout_QE, tl.trans(v_KE), input_precision=PRECISION)
        _, _, ds_QK = logit_gradients(
            s_QK, dp_QK, lse_Q[:, None], delta_Q[:, None], row, at, rows_Q[:, None], keys_K[None, :], down(seen),
            rule, MASKED, FUSED, precise,
        )  # fmt: skip
        dq_QD = tl.dot(ds_QK.to(k_KD.dtype), k_KD, dq_QD, input_precision=PRECISION)
    return dq_QD


@triton.jit
def _gather_all_keys(
    dq_QD, q_QD, dout_QE, k, v, lse_Q, delta_Q, blocks, seen, extent, row, rule,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr,
    LIST_KV: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take in the blocks of a list, or the tiles that need a mask and then those that every row sees in full."""
    if blocks is not None:
        entry = tl.cast(rule.batch, tl.int64) * blocks.batch + rule.head * blocks.head + row // LIST_Q
        count = tl.load(blocks.counts + entry) * (LIST_KV // BLOCK_KV)
        tiles = Tiles(count, 0, 0, 0, blocks.indices + entry * blocks.width)
        dq_QD = _gather_keys(
            dq_QD, q_QD, dout_QE, k, v, lse_Q, delta_Q, tiles, seen, extent, row, rule,
            HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_KV, EDGES, FUSED, PRECISION,
        )  # fmt: skip
    else:
        if EDGES:
            start = extent.first // BLOCK_KV
            before = tl.maximum(extent.full - start, 0)
            count = before + tl.cdiv(extent.last, BLOCK_KV) - extent.full_end
            edges = Tiles(count, before, start * BLOCK_KV, (extent.full_end - before) * BLOCK_KV, None)
            dq_QD = _gather_keys(
                dq_QD, q_QD, dout_QE, k, v, lse_Q, delta_Q, edges, seen, extent, row, rule,
                HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_KV, True, FUSED, PRECISION,
            )  # fmt: skip
        full = Tiles(extent.full_end - extent.full, 0, extent.full * BLOCK_KV, 0, None)
        dq_QD = _gather_keys(
            dq_QD, q_QD, dout_QE, k, v, lse_Q, delta_Q, full, seen, extent, row, rule,
            HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_KV, False, FUSED, PRECISION,
        )  # fmt: skip
    return dq_QD


@triton.jit(do_not_specialize=["seed", "threshold"])
def query_kernel(
    q, k, v, dout, dq, lse_ptr, delta_ptr, listed, blocks, visible, bias, distance_bias, slopes_ptr,
    slopes_batch, pairs, heads, seq_q, seq_kv, left, right, resident, scale, softcap, seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr,
    LONG_FIRST: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries of one head."""
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
    gradients = HeadOperand(dout, start_of(dout, batch, head, DESCRIPTORS), batch, head, columns_E)
    keys = HeadOperand(k, start_of(k, batch, kv_head, DESCRIPTORS), batch, kv_head, columns_D)
    values = HeadOperand(v, start_of(v, batch, kv_head, DESCRIPTORS), batch, kv_head, columns_E)
    q_QD = read(queries, row, rows_Q < seq_q, not DESCRIPTORS, HEAD_DIM, BLOCK_Q)
    dout_QE = read(gradients, row, rows_Q < seq_q, not DESCRIPTORS, HEAD_DIM_V, BLOCK_Q)
    lse_Q, delta_Q = statistics_of(rows_Q, RowStatistics(lse_ptr, delta_ptr, tl.cast(pair, tl.int64) * seq_q), seq_q)
    slope = None
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + batch * slopes_batch + head)
    rule = LogitRule(
        batch, head, slope, bias, distance_bias, visible, seq_q, seq_kv, scale, softcap, seed, threshold, amplify
    )
    seen = intervals(rows_Q, listed, batch_64, seq_q, seq_kv, left, right)
    dq_QD = _gather_all_keys(
        tl.zeros([BLOCK_Q, BLOCK_D], tl.float32), q_QD, dout_QE, keys, values, lse_Q, delta_Q, blocks, seen,
        extent_of(seen, seq_kv, BLOCK_KV), row, rule,
        HEAD_DIM, HEAD_DIM_V, BLOCK_KV, LIST_Q, LIST_KV, EDGES, FUSED, PRECISION,
    )  # fmt: skip
    # A row whose interval is empty has taken in the keys of the other rows of its tile.
    dq_QD = tl.where((seen.high > seen.low)[:, None], dq_QD * scale, 0.0)
    store(dq, dq_QD, batch_64, tl.cast(head, tl.int64), row, rows_Q < seq_q, columns_D, HEAD_DIM)
