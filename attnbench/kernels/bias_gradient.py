"""The gradient of a bias: one program for each tile of pairs, which sums over the sequences and heads that share it."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.backward import RowStatistics, logit_gradients, statistics_of
from attnbench.kernels.tile import HeadOperand, LogitRule, down, intervals, read, start_of


@triton.jit
def _is_listed(blocks, entry, block):
    """Whether a list holds a block."""
    listed = False
    for index in tl.range(0, tl.load(blocks.counts + entry)):
        listed = listed | (tl.load(blocks.indices + entry * blocks.width + index) == block)
    return listed


@triton.jit(do_not_specialize=["seed", "threshold"])
def bias_kernel(
    q, k, v, dout, dbias, lse_ptr, delta_ptr, listed, blocks, visible, bias, distance_bias, slopes_ptr,
    slopes_batch, batches, heads, bias_batches, bias_heads, seq_q, seq_kv, left, right, scale, softcap,
    seed, threshold, amplify,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, LIST_Q: tl.constexpr, LIST_KV: tl.constexpr, FUSED: tl.constexpr,
    PRECISION: tl.constexpr,
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
        kv_head = head // GROUP
        batch_64 = tl.cast(batch, tl.int64)
        queries = HeadOperand(q, start_of(q, batch, head, False), batch, head, columns_D)
        gradients = HeadOperand(dout, start_of(dout, batch, head, False), batch, head, columns_E)
        keys = HeadOperand(k, start_of(k, batch, kv_head, False), batch, kv_head, columns_D)
        values = HeadOperand(v, start_of(v, batch, kv_head, False), batch, kv_head, columns_E)
        q_QD = read(queries, row, rows_Q < seq_q, True, HEAD_DIM, BLOCK_Q)
        dout_QE = read(gradients, row, rows_Q < seq_q, True, HEAD_DIM_V, BLOCK_Q)
        k_KD = read(keys, key, keys_K < seq_kv, True, HEAD_DIM, BLOCK_KV)
        v_KE = read(values, key, keys_K < seq_kv, True, HEAD_DIM_V, BLOCK_KV)
        statistics = RowStatistics(lse_ptr, delta_ptr, (batch_64 * heads + tl.cast(head, tl.int64)) * seq_q)
        lse_Q, delta_Q = statistics_of(rows_Q, statistics, seq_q)
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + batch * slopes_batch + head)
        rule = LogitRule(
            batch, head, slope, bias, distance_bias, visible, seq_q, seq_kv, scale, softcap, seed, threshold, amplify
        )
        seen = intervals(rows_Q, listed, batch_64, seq_q, seq_kv, left, right)
        s_QK = tl.dot(q_QD, tl.trans(k_KD), input_precision=PRECISION)
        dp_QK = tl.dot(dout_QE, tl.trans(v_KE), input_precision=PRECISION)
        _, dlogits_QK, _ = logit_gradients(
            s_QK, dp_QK, lse_Q[:, None], delta_Q[:, None], row, key, inside_Q[:, None], inside_K[None, :], down(seen),
            rule, True, FUSED, precise,
        )  # fmt: skip
        if blocks is not None:
            entry = batch_64 * blocks.batch + head * blocks.head + row // LIST_Q
            dlogits_QK = tl.where(_is_listed(blocks, entry, key // LIST_KV), dlogits_QK, 0.0)
        sum_QK += dlogits_QK
    pointers = dbias.pointer + (tl.cast(owner, tl.int64) * seq_q + rows_Q[:, None]) * seq_kv + keys_K[None, :]
    tl.store(pointers, sum_QK, mask=(rows_Q < seq_q)[:, None] & (keys_K < seq_kv)[None, :])
