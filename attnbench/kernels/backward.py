"""The backward pass, deterministic: one kernel for dk and dv, one for dq, each sum in one program and in one order.

Weights are made again from the log-sum-exp. The dk, dv kernel works on tiles [K, Q], the transpose of the others, so
that no value made from an accumulator is transposed: Triton 3.4 to 3.7.0 compile that wrongly for Hopper
(https://github.com/fla-org/flash-linear-attention/issues/640).
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.tile import LOG2E, extent, intervals, kept, logits, place, read, start_of


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
    out_base = start_of(out, batch, head, False)
    dout_base = start_of(dout, batch, head, False)
    out_QE = read(out, out_base, batch, head, row, inside_Q, columns_E, True, HEAD_DIM_V, BLOCK_Q)
    dout_QE = read(dout, dout_base, batch, head, row, inside_Q, columns_E, True, HEAD_DIM_V, BLOCK_Q)
    delta_Q = tl.sum(out_QE.to(tl.float32) * dout_QE.to(tl.float32), 1)
    at = tl.cast(pair, tl.int64) * seq_q
    if dlse_ptr is not None:
        delta_Q -= tl.load(dlse_ptr + at + rows_Q, mask=inside_Q, other=0.0)
    tl.store(delta_ptr + at + rows_Q, delta_Q, mask=inside_Q)


@triton.jit
def _lse(lse_ptr, at, rows_Q, seq_q):
    """In base 2. +inf for a row that sees no key, so that all its weights are 0."""
    lse_Q = tl.load(lse_ptr + at + rows_Q, mask=rows_Q < seq_q, other=float("inf"))
    return tl.where(lse_Q == float("-inf"), float("inf"), lse_Q * LOG2E)


@triton.jit
def _slopes(
    s, dp, lse, delta, row, key, row_in, key_in, low, high, diagonal, batch, head, slope, bias, shown, seq_q, seq_kv,
    scale, softcap, seed, threshold, amplify,
    MASKED: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISE: tl.constexpr, BY_DISTANCE: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """The weights that met the values, the gradients of the logits, and those of the products `s` short of the scale.

    `dp` are the products of dout and the values; tiles [Q, K] and [K, Q] are both served.
    """
    s, bent = logits(
        s, row, key, row_in, key_in, low, high, diagonal, batch, head, slope, bias, shown, seq_q, seq_kv, scale,
        softcap, MASKED, FUSED, SOFTCAP, PRECISE, BY_DISTANCE,
    )  # fmt: skip
    p = tl.exp2(s * (scale * LOG2E if FUSED else 1.0) - lse)
    met = p
    if DROPOUT:
        keep = kept(batch, head, row + row_in, key + key_in, seed, threshold)
        met = tl.where(keep, p * amplify, 0.0)
        dp = tl.where(keep, dp * amplify, 0.0)
    dlogits = p * (dp - delta)
    if MASKED:
        # A hidden key may hold NaN, and 0 NaN is NaN.
        dlogits = tl.where(p == 0.0, 0.0, dlogits)
    ds = dlogits
    if SOFTCAP:
        ds = ds * (1.0 - bent * bent)
    return met, dlogits, ds


@triton.jit
def _gather_rows(
    dk_KD, dv_KE, k_KD, v_KE, q, dout, q_base, dout_base, lse_ptr, delta_ptr, at, listed, bias, shown, slope,
    tiles, tiles_left, start, start_right, listing, key, left, right, batch, head, seq_q, seq_kv, scale, softcap,
    seed, threshold, amplify,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, RAGGED: tl.constexpr, MASKED: tl.constexpr,
    FUSED: tl.constexpr, SOFTCAP: tl.constexpr, BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in tiles of queries of one head: the sums of ds q and of p dout."""
    inside_Q = tl.arange(0, BLOCK_Q)
    keys_K = tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    precise: tl.constexpr = PRECISION == "ieee" and k_KD.dtype == tl.float32
    for tile in tl.range(0, tiles):
        if listing is not None:
            row = tl.load(listing + tile // (LIST_Q // BLOCK_Q)) * LIST_Q + tile % (LIST_Q // BLOCK_Q) * BLOCK_Q
        else:
            row = tile * BLOCK_Q + (tl.where(tile < tiles_left, start, start_right) if MASKED else start)
        row = tl.multiple_of(row, BLOCK_Q)
        rows_Q = row + inside_Q
        low_Q, high_Q, diagonal_Q = intervals(rows_Q, listed, tl.cast(batch, tl.int64), seq_q, seq_kv, left, right)
        wanted_Q = rows_Q < seq_q
        if listed is not None:
            # Rows of no sequence may hold NaN, and the sums over rows would take it in.
            wanted_Q = high_Q > low_Q
        some: tl.constexpr = RAGGED or listed is not None
        q_QD = read(q, q_base, batch, head, row, wanted_Q, columns_D, some, HEAD_DIM, BLOCK_Q)
        dout_QE = read(dout, dout_base, batch, head, row, wanted_Q, columns_E, some, HEAD_DIM_V, BLOCK_Q)
        if UPCAST:
            q_QD = q_QD.to(tl.float32)
            dout_QE = dout_QE.to(tl.float32)
        lse_Q = _lse(lse_ptr, at, rows_Q, seq_q)
        delta_Q = tl.load(delta_ptr + at + rows_Q, mask=rows_Q < seq_q, other=0.0)
        s_KQ = tl.dot(k_KD, tl.trans(q_QD), input_precision=PRECISION)
        dp_KQ = tl.dot(v_KE, tl.trans(dout_QE), input_precision=PRECISION)
        p_KQ, _, ds_KQ = _slopes(
            s_KQ, dp_KQ, lse_Q[None, :], delta_Q[None, :], row, key, inside_Q[None, :], keys_K[:, None],
            low_Q[None, :], high_Q[None, :], diagonal_Q[None, :], batch, head, slope, bias, shown, seq_q, seq_kv,
            scale, softcap, seed, threshold, amplify, MASKED, FUSED, SOFTCAP, precise, BY_DISTANCE, DROPOUT,
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


@triton.jit(do_not_specialize=["seed", "threshold"])
def key_kernel(
    q, k, v, dout, dk, dv, lse_ptr, delta_ptr, listed, blocks, shown, bias, slopes_ptr,
    slopes_batch, pairs, heads, parts, seq_q, seq_kv, left, right, resident, scale, softcap, seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr, RAGGED: tl.constexpr,
    EDGES: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr, BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys, summed over GROUP query heads, which are one of `parts` shares of a key head's."""
    tile, pair = place(tl.cdiv(seq_kv, BLOCK_KV), pairs, resident, False)
    shares = heads // GROUP
    batch = pair // shares
    share = pair % shares
    kv_head = share // parts
    key = tile * BLOCK_KV
    batch_64 = tl.cast(batch, tl.int64)
    keys_K = key + tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    some: tl.constexpr = not DESCRIPTORS  # a descriptor gives zeros beyond the end by itself
    k_base = start_of(k, batch, kv_head, DESCRIPTORS)
    v_base = start_of(v, batch, kv_head, DESCRIPTORS)
    k_KD = read(k, k_base, batch, kv_head, key, keys_K < seq_kv, columns_D, some, HEAD_DIM, BLOCK_KV)
    v_KE = read(v, v_base, batch, kv_head, key, keys_K < seq_kv, columns_E, some, HEAD_DIM_V, BLOCK_KV)
    if UPCAST:
        k_KD = k_KD.to(tl.float32)
        v_KE = v_KE.to(tl.float32)
    dk_KD = tl.zeros([BLOCK_KV, BLOCK_D], tl.float32)
    dv_KE = tl.zeros([BLOCK_KV, BLOCK_E], tl.float32)

    # Rows that see some key of this tile, and those that see all of them. Rows and keys beyond the ends need no mask:
    # such a row weighs nothing, and what such a key gets is not stored.
    key_end = tl.minimum(key + BLOCK_KV, seq_kv)
    shift = seq_kv - seq_q
    if listed is not None:
        first, last = _seeing_rows(listed, batch_64, key, key_end, seq_q, 1024)
        whole = last
        whole_end = last
    else:
        first = tl.maximum(key - shift - right, 0)
        last = tl.maximum(tl.minimum(key_end - shift + left, seq_q), first)
        whole = tl.minimum(tl.maximum(key_end - 1 - shift - right, first), last)
        whole_end = tl.minimum(tl.maximum(key - shift + left + 1, whole), last)
    start = first // BLOCK_Q
    end = tl.cdiv(last, BLOCK_Q)
    whole = tl.cdiv(whole, BLOCK_Q)
    whole_end = tl.where(whole_end == seq_q, end, whole_end // BLOCK_Q)
    whole = tl.minimum(tl.maximum(whole, start), end)
    whole_end = tl.maximum(whole_end, whole)
    tiles_left = whole - start
    for member in tl.range(0, GROUP):
        head = share * GROUP + member
        q_base = start_of(q, batch, head, DESCRIPTORS)
        dout_base = start_of(dout, batch, head, DESCRIPTORS)
        at = (batch_64 * heads + head) * seq_q
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + batch * slopes_batch + head)
        if blocks is not None:
            place_in_list = batch_64 * blocks.batch + head * blocks.head + key // LIST_KV
            count = tl.load(blocks.counts + place_in_list) * (LIST_Q // BLOCK_Q)
            dk_KD, dv_KE = _gather_rows(
                dk_KD, dv_KE, k_KD, v_KE, q, dout, q_base, dout_base, lse_ptr, delta_ptr, at, listed, bias, shown,
                slope, count, 0, 0, 0, blocks.indices + place_in_list * blocks.most,
                key, left, right, batch, head, seq_q, seq_kv, scale, softcap, seed, threshold, amplify,
                HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_Q, RAGGED, EDGES, FUSED, SOFTCAP,
                BY_DISTANCE, DROPOUT, PRECISION, UPCAST,
            )  # fmt: skip
        else:
            if EDGES:
                dk_KD, dv_KE = _gather_rows(
                    dk_KD, dv_KE, k_KD, v_KE, q, dout, q_base, dout_base, lse_ptr, delta_ptr, at, listed, bias, shown,
                    slope, tiles_left + end - whole_end, tiles_left, start * BLOCK_Q,
                    (whole_end - tiles_left) * BLOCK_Q, None,
                    key, left, right, batch, head, seq_q, seq_kv, scale, softcap, seed, threshold, amplify,
                    HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_Q, RAGGED, True, FUSED, SOFTCAP,
                    BY_DISTANCE, DROPOUT, PRECISION, UPCAST,
                )  # fmt: skip
            if listed is None:
                dk_KD, dv_KE = _gather_rows(
                    dk_KD, dv_KE, k_KD, v_KE, q, dout, q_base, dout_base, lse_ptr, delta_ptr, at, listed, bias, shown,
                    slope, whole_end - whole, 0, whole * BLOCK_Q, 0, None,
                    key, left, right, batch, head, seq_q, seq_kv, scale, softcap, seed, threshold, amplify,
                    HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_Q, RAGGED, False, FUSED, SOFTCAP,
                    BY_DISTANCE, DROPOUT, PRECISION, UPCAST,
                )  # fmt: skip

    share_64 = tl.cast(share, tl.int64)
    _store(dk, dk_KD * scale, batch_64, share_64, key, keys_K < seq_kv, columns_D, HEAD_DIM)
    _store(dv, dv_KE, batch_64, share_64, key, keys_K < seq_kv, columns_E, HEAD_DIM_V)


@triton.jit
def _store(target, tile, batch, head, at, inside, columns, WIDTH: tl.constexpr):
    """Write rows [at, ...) of an operand."""
    pointers = target.pointer + batch * target.batch + head * target.head + tl.cast(at, tl.int64) * target.row
    pointers = pointers + (tl.arange(0, tile.shape[0])[:, None] * target.row + columns[None, :])
    tl.store(pointers, tile.to(target.pointer.dtype.element_ty), mask=inside[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def _gather_keys(
    dq_QD, q_QD, dout_QE, k, v, k_base, v_base, lse_Q, delta_Q, bias, shown, slope, low_Q, high_Q, diagonal_Q,
    first, last, tiles, tiles_left, start, start_right, listing, row, batch, head, kv_head, seq_q, seq_kv, scale,
    softcap, seed, threshold, amplify,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_KV: tl.constexpr, MASKED: tl.constexpr, FUSED: tl.constexpr,
    SOFTCAP: tl.constexpr, BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in tiles of keys: the sum of ds k."""
    rows_Q = tl.arange(0, BLOCK_Q)
    keys_K = tl.arange(0, BLOCK_KV)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    precise: tl.constexpr = PRECISION == "ieee" and q_QD.dtype == tl.float32
    for tile in tl.range(0, tiles):
        if listing is not None:
            at = tl.load(listing + tile // (LIST_KV // BLOCK_KV)) * LIST_KV + tile % (LIST_KV // BLOCK_KV) * BLOCK_KV
        else:
            at = tile * BLOCK_KV + (tl.where(tile < tiles_left, start, start_right) if MASKED else start)
        at = tl.multiple_of(at, BLOCK_KV)
        read_K = (at + keys_K >= first) & (at + keys_K < last)
        # In ds k a weight of 0 would not save from NaN in a key that is not seen.
        k_KD = read(k, k_base, batch, kv_head, at, read_K, columns_D, MASKED, HEAD_DIM, BLOCK_KV)
        v_KE = read(v, v_base, batch, kv_head, at, read_K, columns_E, MASKED, HEAD_DIM_V, BLOCK_KV)
        if UPCAST:
            k_KD = k_KD.to(tl.float32)
            v_KE = v_KE.to(tl.float32)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        dp_QK = tl.dot(dout_QE, tl.trans(v_KE), input_precision=PRECISION)
        _, _, ds_QK = _slopes(
            s_QK, dp_QK, lse_Q[:, None], delta_Q[:, None], row, at, rows_Q[:, None], keys_K[None, :],
            low_Q[:, None], high_Q[:, None], diagonal_Q[:, None], batch, head, slope, bias, shown, seq_q, seq_kv,
            scale, softcap, seed, threshold, amplify, MASKED, FUSED, SOFTCAP, precise, BY_DISTANCE, DROPOUT,
        )  # fmt: skip
        dq_QD = tl.dot(ds_QK.to(k_KD.dtype), k_KD, dq_QD, input_precision=PRECISION)
    return dq_QD


@triton.jit(do_not_specialize=["seed", "threshold"])
def query_kernel(
    q, k, v, dout, dq, lse_ptr, delta_ptr, listed, blocks, shown, bias, slopes_ptr,
    slopes_batch, pairs, heads, seq_q, seq_kv, left, right, resident, scale, softcap, seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr,
    LONG_FIRST: tl.constexpr, EDGES: tl.constexpr, FUSED: tl.constexpr, SOFTCAP: tl.constexpr,
    BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """dq of one tile of queries of one head."""
    tile, pair = place(tl.cdiv(seq_q, BLOCK_Q), pairs, resident, LONG_FIRST)
    batch = pair // heads
    head = pair % heads
    kv_head = head // GROUP
    row = tile * BLOCK_Q
    batch_64 = tl.cast(batch, tl.int64)
    head_64 = tl.cast(head, tl.int64)
    rows_Q = row + tl.arange(0, BLOCK_Q)
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    some: tl.constexpr = not DESCRIPTORS
    q_base = start_of(q, batch, head, DESCRIPTORS)
    dout_base = start_of(dout, batch, head, DESCRIPTORS)
    k_base = start_of(k, batch, kv_head, DESCRIPTORS)
    v_base = start_of(v, batch, kv_head, DESCRIPTORS)
    q_QD = read(q, q_base, batch, head, row, rows_Q < seq_q, columns_D, some, HEAD_DIM, BLOCK_Q)
    dout_QE = read(dout, dout_base, batch, head, row, rows_Q < seq_q, columns_E, some, HEAD_DIM_V, BLOCK_Q)
    if UPCAST:
        q_QD = q_QD.to(tl.float32)
        dout_QE = dout_QE.to(tl.float32)
    at = tl.cast(pair, tl.int64) * seq_q
    lse_Q = _lse(lse_ptr, at, rows_Q, seq_q)
    delta_Q = tl.load(delta_ptr + at + rows_Q, mask=rows_Q < seq_q, other=0.0)
    slope = None
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + batch * slopes_batch + head)
    dq_QD = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    low_Q, high_Q, diagonal_Q = intervals(rows_Q, listed, batch_64, seq_q, seq_kv, left, right)
    first, last, whole, whole_end = extent(low_Q, high_Q, seq_kv, BLOCK_KV)
    if blocks is not None:
        place_in_list = batch_64 * blocks.batch + head * blocks.head + row // LIST_Q
        count = tl.load(blocks.counts + place_in_list) * (LIST_KV // BLOCK_KV)
        dq_QD = _gather_keys(
            dq_QD, q_QD, dout_QE, k, v, k_base, v_base, lse_Q, delta_Q, bias, shown, slope, low_Q, high_Q, diagonal_Q,
            first, last, count, 0, 0, 0, blocks.indices + place_in_list * blocks.most,
            row, batch, head, kv_head, seq_q, seq_kv, scale, softcap, seed, threshold, amplify,
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_KV, EDGES, FUSED, SOFTCAP, BY_DISTANCE,
            DROPOUT, PRECISION, UPCAST,
        )  # fmt: skip
    else:
        if EDGES:
            start = first // BLOCK_KV
            tiles_left = tl.maximum(whole - start, 0)
            dq_QD = _gather_keys(
                dq_QD, q_QD, dout_QE, k, v, k_base, v_base, lse_Q, delta_Q, bias, shown, slope, low_Q, high_Q,
                diagonal_Q, first, last, tiles_left + tl.cdiv(last, BLOCK_KV) - whole_end, tiles_left,
                start * BLOCK_KV, (whole_end - tiles_left) * BLOCK_KV, None,
                row, batch, head, kv_head, seq_q, seq_kv, scale, softcap, seed, threshold, amplify,
                HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_KV, True, FUSED, SOFTCAP, BY_DISTANCE,
                DROPOUT, PRECISION, UPCAST,
            )  # fmt: skip
        dq_QD = _gather_keys(
            dq_QD, q_QD, dout_QE, k, v, k_base, v_base, lse_Q, delta_Q, bias, shown, slope, low_Q, high_Q, diagonal_Q,
            first, last, whole_end - whole, 0, whole * BLOCK_KV, 0, None,
            row, batch, head, kv_head, seq_q, seq_kv, scale, softcap, seed, threshold, amplify,
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_E, BLOCK_Q, BLOCK_KV, LIST_KV, False, FUSED, SOFTCAP, BY_DISTANCE,
            DROPOUT, PRECISION, UPCAST,
        )  # fmt: skip
    # A row whose interval is empty has taken in what its neighbours see.
    dq_QD = tl.where((high_Q > low_Q)[:, None], dq_QD * scale, 0.0)
    _store(dq, dq_QD, batch_64, head_64, row, rows_Q < seq_q, columns_D, HEAD_DIM)


@triton.jit(do_not_specialize=["seed", "threshold"])
def bias_kernel(
    q, k, v, dout, dbias, lse_ptr, delta_ptr, listed, blocks, shown, bias, slopes_ptr,
    slopes_batch, batches, heads, bias_batches, bias_heads, seq_q, seq_kv, left, right, scale, softcap,
    seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr, FUSED: tl.constexpr,
    SOFTCAP: tl.constexpr, BY_DISTANCE: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradient of a bias on one tile of pairs, summed over the sequences and heads that share it."""
    program = tl.program_id(0)
    tiles_kv = tl.cdiv(seq_kv, BLOCK_KV)
    tiles_q = tl.cdiv(seq_q, BLOCK_Q)
    key = program % tiles_kv * BLOCK_KV
    row = program // tiles_kv % tiles_q * BLOCK_Q
    owner = program // (tiles_kv * tiles_q)
    inside_Q = tl.arange(0, BLOCK_Q)
    inside_K = tl.arange(0, BLOCK_KV)
    rows_Q = row + inside_Q
    keys_K = key + inside_K
    columns_D = tl.arange(0, BLOCK_D)
    columns_E = tl.arange(0, BLOCK_E)
    precise: tl.constexpr = PRECISION == "ieee" and q.pointer.dtype.element_ty == tl.float32
    sum_QK = tl.zeros([BLOCK_Q, BLOCK_KV], tl.float32)
    sharing_heads = heads // bias_heads
    for member in tl.range(0, batches // bias_batches * sharing_heads):
        batch = tl.where(bias_batches == 1, member // sharing_heads, owner // bias_heads)
        head = tl.where(bias_heads == 1, member % sharing_heads, owner % bias_heads)
        batch_64 = tl.cast(batch, tl.int64)
        head_64 = tl.cast(head, tl.int64)
        low_Q, high_Q, diagonal_Q = intervals(rows_Q, listed, batch_64, seq_q, seq_kv, left, right)
        q_base = start_of(q, batch, head, False)
        dout_base = start_of(dout, batch, head, False)
        k_base = start_of(k, batch, head // GROUP, False)
        v_base = start_of(v, batch, head // GROUP, False)
        q_QD = read(q, q_base, batch, head, row, rows_Q < seq_q, columns_D, True, HEAD_DIM, BLOCK_Q)
        dout_QE = read(dout, dout_base, batch, head, row, rows_Q < seq_q, columns_E, True, HEAD_DIM_V, BLOCK_Q)
        k_KD = read(k, k_base, batch, head, key, keys_K < seq_kv, columns_D, True, HEAD_DIM, BLOCK_KV)
        v_KE = read(v, v_base, batch, head, key, keys_K < seq_kv, columns_E, True, HEAD_DIM_V, BLOCK_KV)
        if UPCAST:
            q_QD = q_QD.to(tl.float32)
            dout_QE = dout_QE.to(tl.float32)
            k_KD = k_KD.to(tl.float32)
            v_KE = v_KE.to(tl.float32)
        at = (batch_64 * heads + head_64) * seq_q
        lse_Q = _lse(lse_ptr, at, rows_Q, seq_q)
        delta_Q = tl.load(delta_ptr + at + rows_Q, mask=rows_Q < seq_q, other=0.0)
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + batch * slopes_batch + head)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        dp_QK = tl.dot(dout_QE, tl.trans(v_KE), input_precision=PRECISION)
        _, dlogits_QK, _ = _slopes(
            s_QK, dp_QK, lse_Q[:, None], delta_Q[:, None], row, key, inside_Q[:, None], inside_K[None, :],
            low_Q[:, None], high_Q[:, None], diagonal_Q[:, None], batch, head, slope, bias, shown, seq_q, seq_kv,
            scale, softcap, seed, threshold, amplify, True, FUSED, SOFTCAP, precise, BY_DISTANCE, DROPOUT,
        )  # fmt: skip
        if blocks is not None:
            entry = batch_64 * blocks.batch + head * blocks.head + row // LIST_Q
            met = False
            for place_in_list in tl.range(0, tl.load(blocks.counts + entry)):
                met = met | (tl.load(blocks.indices + entry * blocks.most + place_in_list) == key // LIST_KV)
            dlogits_QK = tl.where(met, dlogits_QK, 0.0)
        sum_QK += dlogits_QK
    pointers = dbias.pointer + (tl.cast(owner, tl.int64) * seq_q + rows_Q[:, None]) * seq_kv + keys_K[None, :]
    tl.store(pointers, sum_QK, mask=(rows_Q < seq_q)[:, None] & (keys_K < seq_kv)[None, :])
