"""The forward pass for Hopper, in Gluon: a warp that fetches tiles and warpgroups that compute, at the same time.

A program of the grid stays and works through tiles of queries. Its producer, one warp, asks the tensor memory
accelerator for tiles of q, k and v; its consumers, warpgroups of 64 rows each, multiply them on tensor cores. A
consumer issues the product q k of one tile of keys and the product p v of the tile before it together, and computes the
softmax of the one while the other runs; the consumers take turns at issuing, so that the softmax of one meets the
products of the other.

The design is that of FlashAttention-3 (https://arxiv.org/abs/2407.08608, section 3). Shape suffixes as in `tile.py`;
M are the 64 rows of a consumer.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import NamedTuple

from attnbench.kernels.hopper.gluon import (
    MBarrierLayout,
    arrive,
    fence_async_shared,
    gl,
    init,
    jit,
    send,
    sent,
    wait,
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
    new_tiles,
    place,
    request,
    seen,
    start_of,
    steps_of,
    walk_keys,
)

LN2 = gl.constexpr(0.6931471805599453)
LOWEST = gl.constexpr(-(2.0**126))
PART = gl.constexpr(16)  # rows that a consumer scrubs at once


class ForwardMemory(NamedTuple):
    """What the partitions share. q and out have a slot for each consumer; for 16-bit inputs they use the same one.

    Values of 8 bits are transposed, [D, keys], as the products take them.
    """

    out: gl.shared_memory_descriptor
    q: Ring
    k: Ring
    v: Ring
    turn: gl.shared_memory_descriptor  # barriers, one for each consumer: it may issue its products
    scrubbed: (
        gl.shared_memory_descriptor
    )  # a barrier: all consumers have written zeros over values that must not be used


@jit
def _produce(
    q, k, v, memory, shape, CONSUMERS: gl.constexpr, BLOCK_KV: gl.constexpr, GROUP: gl.constexpr,
    LONG_FIRST: gl.constexpr, EIGHT: gl.constexpr,
):  # fmt: skip
    """The partition of one warp that fetches; it runs ahead of the consumers as far as the rings go."""
    block_q: gl.constexpr = CONSUMERS * ROWS
    count = 0  # tiles of keys so far
    turn = 0  # tiles of queries so far
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_q, block_q) * shape.pairs, gl.num_programs(0)):
        row, pair = place(index, shape.seq_q, shape, block_q, LONG_FIRST)
        batch = pair // shape.heads
        head = pair % shape.heads
        walk = walk_keys(row, batch, shape, block_q, BLOCK_KV)
        steps = steps_of(walk)
        # The first keys do not wait until the output has left the slot of q.
        request(k, memory.k, count, batch, head // GROUP, start_of(0, walk, BLOCK_KV))
        for consumer in gl.static_range(CONSUMERS):
            request(q, memory.q, turn * CONSUMERS + consumer, batch, head, row + consumer * ROWS)
        for step in range(1, steps):
            request(k, memory.k, count + step, batch, head // GROUP, start_of(step, walk, BLOCK_KV))
            before = start_of(step - 1, walk, BLOCK_KV)
            request(v, memory.v, count + step - 1, batch, head // GROUP, before, EIGHT)
        final = start_of(steps - 1, walk, BLOCK_KV)
        request(v, memory.v, count + steps - 1, batch, head // GROUP, final, EIGHT)
        count += steps
        turn += 1  # noqa: SIM113 (Triton has no enumerate)


@jit
def _fold(s_MK, peak_M, total_M, factor, SHIFT: gl.constexpr):
    """The online softmax in base 2: weights, the factor by which earlier sums decay, and the new sums.

    Weights and sums are 2^SHIFT times as large, so that small ones are not lost in 8 bits.
    """
    new_M = gl.maximum(peak_M, gl.max(s_MK, 1) * factor)
    p_MK = gl.exp2(s_MK * factor - (new_M - SHIFT)[:, None])
    decay_M = gl.exp2(peak_M - new_M)
    return p_MK, decay_M, new_M, total_M * decay_M + gl.sum(p_MK, 1)


@jit
def _logits(memory, slot, CONSUMER: gl.constexpr, S: gl.constexpr):
    """Issue the product of the queries with the keys of a slot."""
    block_kv: gl.constexpr = memory.k.tiles.shape[3]
    width: gl.constexpr = memory.k.tiles.shape[4]
    keys = memory.k.tiles.index(slot).reshape([block_kv, width]).permute((1, 0))
    queries = memory.q.tiles.index(CONSUMER).reshape([ROWS, width])
    return warpgroup_mma(queries, keys, gl.zeros([ROWS, block_kv], gl.float32, S), use_acc=False, is_async=True)


@jit
def _outputs(memory, slot, p_MK, acc_ME, EIGHT: gl.constexpr):
    """Issue the product of weights with the values of a slot."""
    block_kv: gl.constexpr = memory.k.tiles.shape[3]
    width: gl.constexpr = memory.k.tiles.shape[4]
    if EIGHT:
        values = memory.v.tiles.index(slot).reshape([width, block_kv]).permute((1, 0))
    else:
        values = memory.v.tiles.index(slot).reshape([block_kv, width])
    return warpgroup_mma(p_MK, values, acc_ME, is_async=True)


@jit
def _await_values(
    memory, count, step, walk, scrubs, SCRUB: gl.constexpr, CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr
):
    """The slot of the values of a step, once they have arrived; with SCRUB, zeros replace those that no row sees.

    A weight of 0 times the NaN of some padding would be NaN. Each consumer writes zeros into its share of the tile and
    waits for the other; `scrubs` counts these waits.
    """
    slot = awaited(memory.v, count + step)
    if SCRUB:
        block_kv: gl.constexpr = memory.v.tiles.shape[3]
        width: gl.constexpr = memory.v.tiles.shape[4]
        share: gl.constexpr = block_kv // CONSUMERS
        by_row: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        key = start_of(step, walk, block_kv)
        if (key < walk.first) | (key + block_kv > walk.last):
            tile = memory.v.tiles.index(slot).reshape([block_kv, width])
            for part in gl.static_range(share // PART):  # in parts, which need few registers
                rows = tile.slice(CONSUMER * share + part * PART, PART)
                keys = key + CONSUMER * share + part * PART + gl.arange(0, PART, layout=gl.SliceLayout(1, by_row))
                wanted = ((keys >= walk.first) & (keys < walk.last))[:, None]
                values = rows.load(by_row)
                rows.store(gl.where(wanted, values, gl.zeros_like(values)))
            fence_async_shared()
            arrive(memory.scrubbed, count=1)
            wait(memory.scrubbed, scrubs & 1)
            scrubs += 1
    return slot, scrubs


@jit
def _step(
    acc_ME, p_MK, peak_M, total_M, scrubs, memory, count, step, walk, low_M, high_M, factor,
    CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, MASKED: gl.constexpr, SCRUB: gl.constexpr,
    PINGPONG: gl.constexpr, EIGHT: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """Issue q k of this step and p v of the one before; the softmax of the one while the other runs."""
    block_kv: gl.constexpr = memory.k.tiles.shape[3]
    slot_k = awaited(memory.k, count + step)
    slot_v, scrubs = _await_values(memory, count, step - 1, walk, scrubs, SCRUB, CONSUMER, CONSUMERS)
    if PINGPONG:
        wait(memory.turn.index(CONSUMER), (count + step & 1) ^ (1 if CONSUMER == 0 else 0))
    s_MK = _logits(memory, slot_k, CONSUMER, S)
    acc_ME = _outputs(memory, slot_v, p_MK, acc_ME, EIGHT)
    if PINGPONG:
        arrive(memory.turn.index((CONSUMER + 1) % CONSUMERS), count=1)
    s_MK = warpgroup_mma_wait(1, deps=(s_MK,))
    arrive(memory.k.empty.index(slot_k), count=1)
    if MASKED:
        s_MK = hide(s_MK, start_of(step, walk, block_kv), low_M, high_M, block_kv, S)
    p_MK, decay_M, peak_M, total_M = _fold(s_MK, peak_M, total_M, factor, 8 if EIGHT else 0)
    p_MK = gl.convert_layout(p_MK.to(memory.v.tiles.dtype), P)
    # Without a poll between them ptxas moves the softmax behind the wait, where no product runs beside it. These values
    # have arrived and are not yet released; the barrier of released keys may be one phase ahead.
    awaited(memory.v, count + step - 1)
    acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))
    arrive(memory.v.empty.index(slot_v), count=1)
    decay_M = gl.convert_layout(decay_M, gl.SliceLayout(1, P.parent))
    return acc_ME * decay_M[:, None], p_MK, peak_M, total_M, scrubs


@jit
def _first_step(
    memory, count, turn, walk, low_M, high_M, factor,
    CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, EDGES: gl.constexpr, PINGPONG: gl.constexpr,
    EIGHT: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """Issue q k of the first tile of keys, which has no p v before it, and compute its softmax."""
    block_kv: gl.constexpr = memory.k.tiles.shape[3]
    awaited(memory.q, turn * CONSUMERS + CONSUMER)
    slot = awaited(memory.k, count)
    if PINGPONG:
        wait(memory.turn.index(CONSUMER), (count & 1) ^ (1 if CONSUMER == 0 else 0))
    s_MK = _logits(memory, slot, CONSUMER, S)
    if PINGPONG:
        arrive(memory.turn.index((CONSUMER + 1) % CONSUMERS), count=1)
    s_MK = warpgroup_mma_wait(0, deps=(s_MK,))
    arrive(memory.k.empty.index(slot), count=1)
    if EDGES:
        s_MK = hide(s_MK, start_of(0, walk, block_kv), low_M, high_M, block_kv, S)
    peak_M = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, S))
    total_M = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    p_MK, _, peak_M, total_M = _fold(s_MK, peak_M, total_M, factor, 8 if EIGHT else 0)
    return gl.convert_layout(p_MK.to(memory.v.tiles.dtype), P), peak_M, total_M


@jit
def _send_outputs(
    out, lse_ptr, descale_ptr, memory, shape, acc_ME, peak_M, total_M, low_M, high_M, batch, head, row, rows_M,
    CONSUMER: gl.constexpr, EIGHT: gl.constexpr, E: gl.constexpr,
):  # fmt: skip
    """Write the output and the log-sum-exp of 64 rows, and release the slot of their queries."""
    width: gl.constexpr = memory.k.tiles.shape[4]
    seeing_M = (high_M > low_M) & (total_M > 0.0)
    share_M = gl.where(seeing_M, 1.0 / gl.where(seeing_M, total_M, 1.0), 0.0)
    if descale_ptr is not None:
        share_M = share_M * gl.load(descale_ptr + shape.heads + head)
    out_ME = acc_ME * gl.convert_layout(share_M, gl.SliceLayout(1, E))[:, None]
    memory.out.index(CONSUMER).reshape([ROWS, width]).store(out_ME.to(memory.out.dtype))
    fence_async_shared()
    send(out, [batch, head, row + CONSUMER * ROWS, 0], memory.out.index(CONSUMER))
    if lse_ptr is not None:
        shift: gl.constexpr = 8 if EIGHT else 0
        lse_M = gl.where(seeing_M, (peak_M + gl.log2(total_M) - shift) * LN2, float("-inf"))
        at = gl.cast(batch * shape.heads + head, gl.int64) * shape.seq_q
        gl.store(lse_ptr + at + rows_M, lse_M, mask=rows_M < shape.seq_q)
    sent(0)
    arrive(memory.q.empty.index(CONSUMER), count=1)


@jit
def _consume(
    out, lse_ptr, descale_ptr, memory, shape, scale,
    CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, EDGES: gl.constexpr, PINGPONG: gl.constexpr,
    LONG_FIRST: gl.constexpr, EIGHT: gl.constexpr,
):  # fmt: skip
    """The partition of a warpgroup that computes 64 rows of every tile of queries."""
    block_q: gl.constexpr = CONSUMERS * ROWS
    block_kv: gl.constexpr = memory.k.tiles.shape[3]
    width: gl.constexpr = memory.k.tiles.shape[4]
    depth: gl.constexpr = 32 if EIGHT else 16
    packed: gl.constexpr = 4 if EIGHT else 2  # numbers of a register
    scrub: gl.constexpr = shape.listed is not None  # else every key read is an input, or zeros beyond the end
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_kv, depth])
    E: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, depth])
    P: gl.constexpr = gl.DotOperandLayout(0, E, packed)
    factor = scale * LOG2E
    count = 0
    turn = 0
    scrubs = 0
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_q, block_q) * shape.pairs, gl.num_programs(0)):
        row, pair = place(index, shape.seq_q, shape, block_q, LONG_FIRST)
        batch = pair // shape.heads
        head = pair % shape.heads
        if descale_ptr is not None:
            factor = scale * LOG2E * gl.load(descale_ptr + head)
        walk = walk_keys(row, batch, shape, block_q, block_kv)
        steps = steps_of(walk)
        rows_M = row + CONSUMER * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, S))
        low_M, high_M = seen(rows_M, batch, shape)
        p_MK, peak_M, total_M = _first_step(
            memory, count, turn, walk, low_M, high_M, factor, CONSUMER, CONSUMERS, EDGES, PINGPONG, EIGHT, S, P
        )
        acc_ME = gl.zeros([ROWS, width], gl.float32, E)
        first_full = 1
        if EDGES:
            first_full = gl.maximum(edges_of(walk), 1)
            for step in range(1, first_full):
                acc_ME, p_MK, peak_M, total_M, scrubs = _step(
                    acc_ME, p_MK, peak_M, total_M, scrubs, memory, count, step, walk, low_M, high_M, factor,
                    CONSUMER, CONSUMERS, True, scrub, PINGPONG, EIGHT, S, P,
                )  # fmt: skip
        for step in range(first_full, steps):
            acc_ME, p_MK, peak_M, total_M, scrubs = _step(
                acc_ME, p_MK, peak_M, total_M, scrubs, memory, count, step, walk, low_M, high_M, factor,
                CONSUMER, CONSUMERS, False, scrub, PINGPONG, EIGHT, S, P,
            )  # fmt: skip
        slot, scrubs = _await_values(memory, count, steps - 1, walk, scrubs, scrub, CONSUMER, CONSUMERS)
        acc_ME = warpgroup_mma_wait(0, deps=(_outputs(memory, slot, p_MK, acc_ME, EIGHT),))
        arrive(memory.v.empty.index(slot), count=1)
        _send_outputs(
            out, lse_ptr, descale_ptr, memory, shape, acc_ME, peak_M, total_M, low_M, high_M, batch, head, row, rows_M,
            CONSUMER, EIGHT, E,
        )  # fmt: skip
        count += steps
        turn += 1  # noqa: SIM113 (Triton has no enumerate)


@jit(do_not_specialize=["pairs", "heads", "seq_q", "seq_kv", "left", "right", "resident"])
def forward_kernel(
    q, k, v, out, lse_ptr, descale_ptr, listed, pairs, heads, seq_q, seq_kv, left, right, resident, scale,
    GROUP: gl.constexpr, BLOCK_KV: gl.constexpr, CONSUMERS: gl.constexpr, STAGES: gl.constexpr,
    LONG_FIRST: gl.constexpr, EDGES: gl.constexpr, PINGPONG: gl.constexpr, EIGHT: gl.constexpr,
):  # fmt: skip
    """Attention of descriptors [batch, heads, rows, D]; boxes are 64 rows of q and out, BLOCK_KV of k and v.

    EIGHT: q, k and v have 8 bits, v is [batch, heads, D, rows], and descale_ptr has their scales.
    """
    shape = Shape(listed, pairs, heads, seq_q, seq_kv, left, right, resident)
    turn = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], MBarrierLayout())
    for consumer in gl.static_range(CONSUMERS):
        init(turn.index(consumer), count=1)
    scrubbed = gl.allocate_shared_memory(gl.int64, [1], MBarrierLayout())
    init(scrubbed, count=CONSUMERS)
    of_q = new_ring(CONSUMERS, 1, q)
    of_k = new_ring(STAGES, CONSUMERS, k)
    of_v = new_ring(STAGES, CONSUMERS, v)
    of_out = new_tiles(CONSUMERS, out) if EIGHT else of_q.tiles
    memory = ForwardMemory(of_out, of_q, of_k, of_v, turn, scrubbed)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _consume,
                (out, lse_ptr, descale_ptr, memory, shape, scale, 0, CONSUMERS, EDGES, PINGPONG, LONG_FIRST, EIGHT),
            ),
            (
                _consume,
                (out, lse_ptr, descale_ptr, memory, shape, scale, 1, CONSUMERS, EDGES, PINGPONG, LONG_FIRST, EIGHT),
            ),
            (_produce, (q, k, v, memory, shape, CONSUMERS, BLOCK_KV, GROUP, LONG_FIRST, EIGHT)),
        ],
        [4, 1],
        [232, 40] if listed is not None else [240, 24],
    )
