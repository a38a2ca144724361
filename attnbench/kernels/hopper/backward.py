"""The backward pass for Hopper, in Gluon: dk and dv of tiles of keys, dq of tiles of queries, without atomics.

Partitions are those of `forward.py`: a warp fetches, and each of two warpgroups computes 64 keys, or 64 rows.
Exponentials are computed while the product of dout and values runs. No product runs on into the next step: ptxas would
serialise them all (C7512), as it does not follow accumulators around a loop; the other warpgroup uses the tensor cores
meanwhile. The pass over rows works on transposed tiles [M, Q], so that weights enter the next product as they are.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import NamedTuple

from attnbench.kernels.hopper.gluon import (
    arrive,
    fence_async_shared,
    gl,
    jit,
    send,
    sent,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from attnbench.kernels.hopper.warps import (
    LOG2E,
    ROWS,
    Ring,
    Shape,
    awaited,
    edges_of,
    hide,
    new_ring,
    place,
    request,
    seen,
    start_of,
    steps_of,
    walk_keys,
    walk_rows,
)


class BackwardMemory(NamedTuple):
    """Fixed tiles, one slot for each consumer, and the rings of the tiles that move past them.

    s is the product of `fixed_s` and `moving_s`, dp that of `fixed_dp` and `moving_dp`. Of dq: fixed are q and dout,
    moving are k and v. Of dk and dv: fixed are k and v, moving are q and dout.
    """

    fixed_s: Ring
    fixed_dp: Ring
    moving_s: Ring
    moving_dp: Ring


@jit
def _tile(ring, slot):
    """A slot as a matrix."""
    rows: gl.constexpr = ring.tiles.shape[3]
    width: gl.constexpr = ring.tiles.shape[4]
    return ring.tiles.index(slot).reshape([rows, width])


@jit
def _product(fixed, slot, moving, other, S: gl.constexpr):
    """Issue the product of a fixed tile with the transpose of a moving one."""
    rows: gl.constexpr = moving.tiles.shape[3]
    zeros = gl.zeros([ROWS, rows], gl.float32, S)
    return warpgroup_mma(_tile(fixed, slot), _tile(moving, other).permute((1, 0)), zeros, use_acc=False, is_async=True)


@jit
def _lse(lse_ptr, at, rows, seq_q):
    """The log-sum-exp in base 2; +inf for a row that sees no key or does not exist, so that all its weights are 0."""
    lse = gl.load(lse_ptr + at + rows, mask=rows < seq_q, other=float("inf"))
    return gl.where(lse == float("-inf"), float("inf"), lse * LOG2E)


@jit
def _produce_keys(
    q, k, v, dout, memory, shape, CONSUMERS: gl.constexpr, BLOCK_KV: gl.constexpr, GROUP: gl.constexpr,
    LONG_FIRST: gl.constexpr,
):  # fmt: skip
    """Fetch for dq: q and dout of a tile of queries, then the keys and values that its rows see."""
    block_q: gl.constexpr = CONSUMERS * ROWS
    count = 0
    turn = 0
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_q, block_q) * shape.pairs, gl.num_programs(0)):
        row, pair = place(index, shape.seq_q, shape, block_q, LONG_FIRST)
        batch = pair // shape.heads
        head = pair % shape.heads
        for consumer in gl.static_range(CONSUMERS):
            request(q, memory.fixed_s, turn * CONSUMERS + consumer, batch, head, row + consumer * ROWS)
            request(dout, memory.fixed_dp, turn * CONSUMERS + consumer, batch, head, row + consumer * ROWS)
        walk = walk_keys(row, batch, shape, block_q, BLOCK_KV)
        steps = steps_of(walk)
        for step in range(steps):
            key = start_of(step, walk, BLOCK_KV)
            request(k, memory.moving_s, count + step, batch, head // GROUP, key)
            request(v, memory.moving_dp, count + step, batch, head // GROUP, key)
        count += steps
        turn += 1  # noqa: SIM113 (Triton has no enumerate)


@jit
def _step_keys(
    dq_MD, memory, count, step, key, low_M, high_M, lse_M, delta_M, factor,
    CONSUMER: gl.constexpr, MASKED: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """Add ds k of a tile of keys."""
    block_kv: gl.constexpr = memory.moving_s.tiles.shape[3]
    slot = awaited(memory.moving_s, count + step)
    s_MK = _product(memory.fixed_s, CONSUMER, memory.moving_s, slot, S)
    awaited(memory.moving_dp, count + step)
    dp_MK = _product(memory.fixed_dp, CONSUMER, memory.moving_dp, slot, S)
    s_MK = warpgroup_mma_wait(1, deps=(s_MK,))
    if MASKED:
        s_MK = hide(s_MK, key, low_M, high_M, block_kv, S)
    p_MK = gl.exp2(s_MK * factor - lse_M[:, None])
    # Without a poll between them ptxas moves the exponentials behind the wait, where nothing runs beside them.
    awaited(memory.moving_dp, count + step)
    dp_MK = warpgroup_mma_wait(0, deps=(dp_MK,))
    arrive(memory.moving_dp.empty.index(slot), count=1)
    ds_MK = p_MK * (dp_MK - delta_M[:, None])
    ds_MK = gl.convert_layout(ds_MK.to(memory.moving_s.tiles.dtype), P)
    dq_MD = warpgroup_mma_wait(0, deps=(warpgroup_mma(ds_MK, _tile(memory.moving_s, slot), dq_MD, is_async=True),))
    arrive(memory.moving_s.empty.index(slot), count=1)
    return dq_MD


@jit
def _consume_keys(
    dq, lse_ptr, delta_ptr, memory, shape, scale,
    CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, EDGES: gl.constexpr, LONG_FIRST: gl.constexpr,
):  # fmt: skip
    """dq of 64 rows of every tile of queries."""
    block_q: gl.constexpr = CONSUMERS * ROWS
    block_kv: gl.constexpr = memory.moving_s.tiles.shape[3]
    width: gl.constexpr = memory.fixed_s.tiles.shape[4]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_kv, 16])
    D: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, D, 2)
    M: gl.constexpr = gl.SliceLayout(1, S)
    factor = scale * LOG2E
    count = 0
    turn = 0
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_q, block_q) * shape.pairs, gl.num_programs(0)):
        row, pair = place(index, shape.seq_q, shape, block_q, LONG_FIRST)
        batch = pair // shape.heads
        walk = walk_keys(row, batch, shape, block_q, block_kv)
        steps = steps_of(walk)
        rows_M = row + CONSUMER * ROWS + gl.arange(0, ROWS, layout=M)
        low_M, high_M = seen(rows_M, batch, shape)
        at = gl.cast(pair, gl.int64) * shape.seq_q
        lse_M = _lse(lse_ptr, at, rows_M, shape.seq_q)
        delta_M = gl.load(delta_ptr + at + rows_M, mask=rows_M < shape.seq_q, other=0.0)
        awaited(memory.fixed_s, turn * CONSUMERS + CONSUMER)
        awaited(memory.fixed_dp, turn * CONSUMERS + CONSUMER)

        dq_MD = gl.zeros([ROWS, width], gl.float32, D)
        first_full = 0
        if EDGES:
            first_full = gl.maximum(edges_of(walk), 1)
            for step in range(first_full):
                dq_MD = _step_keys(
                    dq_MD, memory, count, step, start_of(step, walk, block_kv), low_M, high_M, lse_M, delta_M, factor,
                    CONSUMER, True, S, P,
                )  # fmt: skip
        for step in range(first_full, steps):
            dq_MD = _step_keys(
                dq_MD, memory, count, step, 0, low_M, high_M, lse_M, delta_M, factor, CONSUMER, False, S, P
            )
        count += steps
        arrive(memory.fixed_dp.empty.index(CONSUMER), count=1)

        _tile(memory.fixed_s, CONSUMER).store((dq_MD * scale).to(memory.fixed_s.tiles.dtype))
        fence_async_shared()
        send(dq, [batch, pair % shape.heads, row + CONSUMER * ROWS, 0], memory.fixed_s.tiles.index(CONSUMER))
        sent(0)
        arrive(memory.fixed_s.empty.index(CONSUMER), count=1)
        turn += 1  # noqa: SIM113


@jit(do_not_specialize=["pairs", "heads", "seq_q", "seq_kv", "left", "right", "resident"])
def query_kernel(
    q, k, v, dout, dq, lse_ptr, delta_ptr, pairs, heads, seq_q, seq_kv, left, right, resident, scale,
    GROUP: gl.constexpr, BLOCK_KV: gl.constexpr, CONSUMERS: gl.constexpr, STAGES: gl.constexpr,
    LONG_FIRST: gl.constexpr, EDGES: gl.constexpr,
):  # fmt: skip
    """dq of descriptors [batch, heads, rows, D]; boxes are 64 rows of q, dout and dq, BLOCK_KV of k and v."""
    shape = Shape(None, pairs, heads, seq_q, seq_kv, left, right, resident)
    of_q = new_ring(CONSUMERS, 1, q)
    of_dout = new_ring(CONSUMERS, 1, dout)
    of_k = new_ring(STAGES, CONSUMERS, k)
    of_v = new_ring(STAGES, CONSUMERS, v)
    memory = BackwardMemory(of_q, of_dout, of_k, of_v)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consume_keys, (dq, lse_ptr, delta_ptr, memory, shape, scale, 0, CONSUMERS, EDGES, LONG_FIRST)),
            (_consume_keys, (dq, lse_ptr, delta_ptr, memory, shape, scale, 1, CONSUMERS, EDGES, LONG_FIRST)),
            (_produce_keys, (q, k, v, dout, memory, shape, CONSUMERS, BLOCK_KV, GROUP, LONG_FIRST)),
        ],
        [4, 1],
        [240, 24],
    )


@jit
def _produce_rows(q, k, v, dout, memory, shape, CONSUMERS: gl.constexpr, BLOCK_Q: gl.constexpr, GROUP: gl.constexpr):
    """Fetch for dk and dv: a tile of keys and values, then q and dout of the rows that see it, head after head."""
    block_kv: gl.constexpr = CONSUMERS * ROWS
    count = 0
    turn = 0
    kv_heads = shape.heads // GROUP
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_kv, block_kv) * shape.pairs, gl.num_programs(0)):
        key, pair = place(index, shape.seq_kv, shape, block_kv, False)
        batch = pair // kv_heads
        head = pair % kv_heads
        for consumer in gl.static_range(CONSUMERS):
            request(k, memory.fixed_s, turn * CONSUMERS + consumer, batch, head, key + consumer * ROWS)
            request(v, memory.fixed_dp, turn * CONSUMERS + consumer, batch, head, key + consumer * ROWS)
        walk = walk_rows(key, shape, BLOCK_Q, block_kv)
        steps = walk.end - walk.start
        for member in range(GROUP):
            for step in range(steps):
                row = start_of(step, walk, BLOCK_Q)
                request(q, memory.moving_s, count + step, batch, head * GROUP + member, row)
                request(dout, memory.moving_dp, count + step, batch, head * GROUP + member, row)
            count += steps
        turn += 1  # noqa: SIM113


@jit
def _step_rows(
    dk_MD, dv_ME, lse_ptr, delta_ptr, memory, shape, at, count, row, keys_M, factor,
    CONSUMER: gl.constexpr, MASKED: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """Add ds q and p dout of a tile of rows."""
    block_q: gl.constexpr = memory.moving_s.tiles.shape[3]
    rows_Q = row + gl.arange(0, block_q, layout=gl.SliceLayout(0, S))
    lse_Q = _lse(lse_ptr, at, rows_Q, shape.seq_q)
    slot = awaited(memory.moving_s, count)
    s_MQ = _product(memory.fixed_s, CONSUMER, memory.moving_s, slot, S)
    awaited(memory.moving_dp, count)
    dp_MQ = _product(memory.fixed_dp, CONSUMER, memory.moving_dp, slot, S)
    s_MQ = warpgroup_mma_wait(1, deps=(s_MQ,))
    if MASKED:
        # By the distance from the diagonal key: bounds of every row would take registers.
        distance_MQ = (keys_M - (shape.seq_kv - shape.seq_q))[:, None] - rows_Q[None, :]
        s_MQ = gl.where((distance_MQ >= -shape.left) & (distance_MQ <= shape.right), s_MQ, float("-inf"))
    p_MQ = gl.exp2(s_MQ * factor - lse_Q[None, :])
    rounded_MQ = gl.convert_layout(p_MQ.to(memory.moving_s.tiles.dtype), P)
    dv_ME = warpgroup_mma(rounded_MQ, _tile(memory.moving_dp, slot), dv_ME, is_async=True)
    delta_Q = gl.load(delta_ptr + at + rows_Q, mask=rows_Q < shape.seq_q, other=0.0)
    dp_MQ = warpgroup_mma_wait(1, deps=(dp_MQ,))
    ds_MQ = p_MQ * (dp_MQ - delta_Q[None, :])
    ds_MQ = gl.convert_layout(ds_MQ.to(memory.moving_s.tiles.dtype), P)
    dk_MD = warpgroup_mma(ds_MQ, _tile(memory.moving_s, slot), dk_MD, is_async=True)
    dk_MD, dv_ME = warpgroup_mma_wait(0, deps=(dk_MD, dv_ME))
    arrive(memory.moving_dp.empty.index(slot), count=1)
    arrive(memory.moving_s.empty.index(slot), count=1)
    return dk_MD, dv_ME


@jit
def _consume_rows(
    dk, dv, lse_ptr, delta_ptr, memory, shape, scale,
    CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, GROUP: gl.constexpr, EDGES: gl.constexpr,
):  # fmt: skip
    """dk and dv of 64 keys of every tile."""
    block_kv: gl.constexpr = CONSUMERS * ROWS
    block_q: gl.constexpr = memory.moving_s.tiles.shape[3]
    width: gl.constexpr = memory.fixed_s.tiles.shape[4]
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_q, 16])
    D: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, D, 2)
    factor = scale * LOG2E
    count = 0
    turn = 0
    kv_heads = shape.heads // GROUP
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_kv, block_kv) * shape.pairs, gl.num_programs(0)):
        key, pair = place(index, shape.seq_kv, shape, block_kv, False)
        batch = pair // kv_heads
        head = pair % kv_heads
        walk = walk_rows(key, shape, block_q, block_kv)
        steps = walk.end - walk.start
        keys_M = key + CONSUMER * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
        awaited(memory.fixed_s, turn * CONSUMERS + CONSUMER)
        awaited(memory.fixed_dp, turn * CONSUMERS + CONSUMER)

        dk_MD = gl.zeros([ROWS, width], gl.float32, D)
        dv_ME = gl.zeros([ROWS, width], gl.float32, D)
        for member in range(GROUP):
            at = gl.cast(batch * shape.heads + head * GROUP + member, gl.int64) * shape.seq_q
            first_full = 0
            if EDGES:
                first_full = edges_of(walk)
                for step in range(first_full):
                    dk_MD, dv_ME = _step_rows(
                        dk_MD, dv_ME, lse_ptr, delta_ptr, memory, shape, at, count + step,
                        start_of(step, walk, block_q), keys_M, factor, CONSUMER, True, S, P,
                    )  # fmt: skip
            for step in range(first_full, steps):
                dk_MD, dv_ME = _step_rows(
                    dk_MD, dv_ME, lse_ptr, delta_ptr, memory, shape, at, count + step,
                    start_of(step, walk, block_q), keys_M, factor, CONSUMER, False, S, P,
                )  # fmt: skip
            count += steps
        _tile(memory.fixed_s, CONSUMER).store((dk_MD * scale).to(memory.fixed_s.tiles.dtype))
        _tile(memory.fixed_dp, CONSUMER).store(dv_ME.to(memory.fixed_s.tiles.dtype))
        fence_async_shared()
        send(dk, [batch, head, key + CONSUMER * ROWS, 0], memory.fixed_s.tiles.index(CONSUMER))
        send(dv, [batch, head, key + CONSUMER * ROWS, 0], memory.fixed_dp.tiles.index(CONSUMER))
        sent(0)
        arrive(memory.fixed_s.empty.index(CONSUMER), count=1)
        arrive(memory.fixed_dp.empty.index(CONSUMER), count=1)
        turn += 1  # noqa: SIM113


@jit(do_not_specialize=["pairs", "heads", "seq_q", "seq_kv", "left", "right", "resident"])
def key_kernel(
    q, k, v, dout, dk, dv, lse_ptr, delta_ptr, pairs, heads, seq_q, seq_kv, left, right, resident, scale,
    GROUP: gl.constexpr, BLOCK_Q: gl.constexpr, CONSUMERS: gl.constexpr, STAGES: gl.constexpr, EDGES: gl.constexpr,
):  # fmt: skip
    """dk and dv, summed over the GROUP query heads of a key head; `pairs` are those of batches and key heads.

    Descriptors are [batch, heads, rows, D]; boxes are 64 rows of k, v, dk and dv, BLOCK_Q of q and dout.
    """
    shape = Shape(None, pairs, heads, seq_q, seq_kv, left, right, resident)
    of_k = new_ring(CONSUMERS, 1, k)
    of_v = new_ring(CONSUMERS, 1, v)
    of_q = new_ring(STAGES, CONSUMERS, q)
    of_dout = new_ring(STAGES, CONSUMERS, dout)
    memory = BackwardMemory(of_k, of_v, of_q, of_dout)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consume_rows, (dk, dv, lse_ptr, delta_ptr, memory, shape, scale, 0, CONSUMERS, GROUP, EDGES)),
            (_consume_rows, (dk, dv, lse_ptr, delta_ptr, memory, shape, scale, 1, CONSUMERS, GROUP, EDGES)),
            (_produce_rows, (q, k, v, dout, memory, shape, CONSUMERS, BLOCK_Q, GROUP)),
        ],
        [4, 1],
        [240, 24],
    )
