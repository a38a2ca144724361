"""The forward pass: online softmax in base 2, on any GPU that Triton knows and in its interpreter.

A tile of queries walks the keys that any of its rows sees. Tiles of keys that every row sees whole are not masked;
those before and behind them are, key by key. One body serves pointers and the tensor descriptors (TMA) of Hopper.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.tile import LN2, LOG2E, LOWEST, extent, intervals, kept, logits, place, read, start_of


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
    acc_QE, total_Q, peak_Q, q_QD, k, v, k_base, v_base, bias, shown, slope, low_Q, high_Q, diagonal_Q, first, last,
    tiles, tiles_left, start, start_right, listing, row, batch, head, kv_head, seq_q, seq_kv, scale, softcap,
    seed, threshold,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_KV: tl.constexpr, MASKED: tl.constexpr, FUSED: tl.constexpr,
    SOFTCAP: tl.constexpr, BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in tiles of keys."""
    rows_Q = tl.arange(0, BLOCK_Q)
    keys_K = tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    precise: tl.constexpr = PRECISION == "ieee" and q_QD.dtype == tl.float32
    for tile in tl.range(0, tiles):
        if listing is not None:
            at = tl.load(listing + tile // (LIST_KV // BLOCK_KV)) * LIST_KV + tile % (LIST_KV // BLOCK_KV) * BLOCK_KV
        else:
            # Masked tiles lie in two runs, before and behind the whole ones.
            at = tile * BLOCK_KV + (tl.where(tile < tiles_left, start, start_right) if MASKED else start)
        at = tl.multiple_of(at, BLOCK_KV)
        # Keys that no row of this tile sees are not read, so that NaN in padding cannot spoil p v.
        read_K = (at + keys_K >= first) & (at + keys_K < last)
        k_KD = read(k, k_base, batch, kv_head, at, read_K, columns_D, MASKED and k_base is not None, HEAD_DIM, BLOCK_KV)
        v_KE = read(v, v_base, batch, kv_head, at, read_K, columns_E, MASKED, HEAD_DIM_V, BLOCK_KV)
        if v_KE.dtype.primitive_bitwidth == 8:
            # Weights of 8 bits would cost more than inputs of 8 bits do.
            v_KE = v_KE.to(tl.bfloat16)
        if UPCAST:
            k_KD = k_KD.to(tl.float32)
            v_KE = v_KE.to(tl.float32)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        s_QK, _ = logits(
            s_QK, row, at, rows_Q[:, None], keys_K[None, :], low_Q[:, None], high_Q[:, None], diagonal_Q[:, None],
            batch, head, slope, bias, shown, seq_q, seq_kv, scale, softcap, MASKED, FUSED, SOFTCAP, precise,
            BY_DISTANCE,
        )  # fmt: skip
        keep_QK = None
        if DROPOUT:
            keep_QK = kept(batch, head, row + rows_Q[:, None], at + keys_K[None, :], seed, threshold)
        factor = scale * LOG2E if FUSED else 1.0
        acc_QE, total_Q, peak_Q = fold(acc_QE, total_Q, peak_Q, s_QK, factor, v_KE, keep_QK, PRECISION)
    return acc_QE, total_Q, peak_Q


@triton.jit(do_not_specialize=["seed", "threshold"])
def forward_kernel(
    q, k, v, out, lse_ptr, listed, blocks, shown, bias, slopes_ptr, sinks_ptr, descale_ptr,
    slopes_batch, pairs, heads, seq_q, seq_kv, left, right, resident, scale, softcap, seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr,
    LONG_FIRST: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr,
    BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all the keys that it sees; GROUP query heads share a key head."""
    tile, pair = place(tl.cdiv(seq_q, BLOCK_Q), pairs, resident, LONG_FIRST)
    batch = pair // heads
    head = pair % heads
    kv_head = head // GROUP
    row = tile * BLOCK_Q
    batch_64 = tl.cast(batch, tl.int64)
    head_64 = tl.cast(head, tl.int64)
    rows_Q = row + tl.arange(0, BLOCK_Q)
    columns_D = tl.arange(0, BLOCK_D)
    some: tl.constexpr = not DESCRIPTORS  # a descriptor gives zeros beyond the end by itself
    q_base = start_of(q, batch, head, DESCRIPTORS)
    k_base = start_of(k, batch, kv_head, DESCRIPTORS)
    v_base = start_of(v, batch, kv_head, DESCRIPTORS)
    q_QD = read(q, q_base, batch, head, row, rows_Q < seq_q, columns_D, some, HEAD_DIM, BLOCK_Q)
    if UPCAST:
        q_QD = q_QD.to(tl.float32)
    slope = None
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + batch * slopes_batch + head)
    if descale_ptr is not None:
        scale *= tl.load(descale_ptr + head)

    acc_QE = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
    if sinks_ptr is not None:
        # A sink is a logit without a value: it stands in the sum from the start.
        peak_Q = tl.zeros([BLOCK_Q], tl.float32) + tl.load(sinks_ptr + head) * LOG2E
        total_Q = tl.full([BLOCK_Q], 1.0, tl.float32)
    else:
        peak_Q = tl.full([BLOCK_Q], LOWEST, tl.float32)
        total_Q = tl.zeros([BLOCK_Q], tl.float32)
    low_Q, high_Q, diagonal_Q = intervals(rows_Q, listed, batch_64, seq_q, seq_kv, left, right)
    first, last, whole, whole_end = extent(low_Q, high_Q, seq_kv, BLOCK_KV)
    if blocks is not None:
        place_in_list = batch_64 * blocks.batch + head * blocks.head + row // LIST_Q
        count = tl.load(blocks.counts + place_in_list) * (LIST_KV // BLOCK_KV)
        acc_QE, total_Q, peak_Q = _attend(
            acc_QE, total_Q, peak_Q, q_QD, k, v, k_base, v_base, bias, shown, slope, low_Q, high_Q, diagonal_Q,
            first, last, count, 0, 0, 0, blocks.indices + place_in_list * blocks.most,
            row, batch, head, kv_head, seq_q, seq_kv, scale, softcap, seed, threshold,
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_KV, EDGES, FUSED, SOFTCAP, BY_DISTANCE,
            DROPOUT, PRECISION, UPCAST,
        )  # fmt: skip
    else:
        if EDGES:
            # Before the whole tiles, not after: else ptxas serialises the asynchronous products of Hopper (C7515).
            start = first // BLOCK_KV
            end = tl.cdiv(last, BLOCK_KV)
            tiles_left = tl.maximum(whole - start, 0)  # where no row sees a key, start lies behind
            acc_QE, total_Q, peak_Q = _attend(
                acc_QE, total_Q, peak_Q, q_QD, k, v, k_base, v_base, bias, shown, slope, low_Q, high_Q, diagonal_Q,
                first, last, tiles_left + end - whole_end, tiles_left, start * BLOCK_KV,
                (whole_end - tiles_left) * BLOCK_KV, None,
                row, batch, head, kv_head, seq_q, seq_kv, scale, softcap, seed, threshold,
                HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_KV, True, FUSED, SOFTCAP, BY_DISTANCE,
                DROPOUT, PRECISION, UPCAST,
            )  # fmt: skip
        acc_QE, total_Q, peak_Q = _attend(
            acc_QE, total_Q, peak_Q, q_QD, k, v, k_base, v_base, bias, shown, slope, low_Q, high_Q, diagonal_Q,
            first, last, whole_end - whole, 0, whole * BLOCK_KV, 0, None,
            row, batch, head, kv_head, seq_q, seq_kv, scale, softcap, seed, threshold,
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_KV, False, FUSED, SOFTCAP, BY_DISTANCE,
            DROPOUT, PRECISION, UPCAST,
        )  # fmt: skip

    seeing_Q = total_Q > 0.0
    if DROPOUT:
        acc_QE *= amplify
    if descale_ptr is not None:
        acc_QE *= tl.load(descale_ptr + heads + head)
    out_QE = acc_QE / tl.where(seeing_Q, total_Q, 1.0)[:, None]
    # A row whose interval is empty has taken in what its neighbours see; what it sees is nothing.
    empty_Q = high_Q <= low_Q
    out_QE = tl.where(empty_Q[:, None], 0.0, out_QE)
    columns_E = tl.arange(0, BLOCK_E)
    pointers = out.pointer + batch_64 * out.batch + head_64 * out.head + tl.cast(row, tl.int64) * out.row
    pointers = pointers + (tl.arange(0, BLOCK_Q)[:, None] * out.row + columns_E[None, :])
    stored_QE = (rows_Q < seq_q)[:, None] & (columns_E < HEAD_DIM_V)[None, :]
    tl.store(pointers, out_QE.to(out.pointer.dtype.element_ty), mask=stored_QE)
    if lse_ptr is not None:
        nothing_Q = tl.load(sinks_ptr + head) if sinks_ptr is not None else float("-inf")
        lse_Q = tl.where(seeing_Q & (empty_Q == 0), (peak_Q + tl.log2(total_Q)) * LN2, nothing_Q)
        tl.store(lse_ptr + tl.cast(pair, tl.int64) * seq_q + rows_Q, lse_Q, mask=rows_Q < seq_q)
