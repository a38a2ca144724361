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

from typing import Any, NamedTuple

from attnbench.kernels.gluon import (
    MBarrierLayout,
    arrive,
    expect,
    fence_async_shared,
    fetch,
    gl,
    init,
    jit,
    send,
    sent,
    wait,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
LOWEST = gl.constexpr(-(2.0**126))
ROWS = gl.constexpr(64)  # of a consumer: those of one product of a warpgroup
PART = gl.constexpr(16)  # rows that a consumer scrubs at once


class Ring(NamedTuple):
    """Tiles in shared memory [slots, rows, D], and the barriers of every slot.

    `full` completes when a tile has come, `empty` when all who read it have read it.
    """

    tiles: Any
    full: Any
    empty: Any


class Memory(NamedTuple):
    """What the partitions share. q has a slot for each consumer; the output leaves by the same place."""

    q: Ring
    k: Ring
    v: Ring
    turn: Any  # barriers, one for each consumer: it may issue its products
    scrubbed: Any  # a barrier: all consumers have put zeros where values must not be read


class Shape(NamedTuple):
    """The problem and the order of its tiles; all are those of `forward_kernel` in forward.py."""

    listed: Any  # a tile.Listed, or None

    pairs: Any
    heads: Any
    seq_q: Any
    seq_kv: Any
    left: Any
    right: Any
    resident: Any


class Walk(NamedTuple):
    """The tiles of keys of a tile of queries: [start, end) that some row sees, [whole, whole_end) that all rows see.

    `first` and `last`: the keys that some row sees.
    """

    first: Any
    last: Any
    start: Any
    whole: Any
    whole_end: Any
    end: Any


@jit
def _place(index, shape, BLOCK_Q: gl.constexpr, LONG_FIRST: gl.constexpr):
    """The first row and the (batch, head) pair of a tile of queries, by its place in the order of `tile.place`."""
    tiles = gl.cdiv(shape.seq_q, BLOCK_Q)
    section = index // (shape.resident * tiles)
    inside = index % (shape.resident * tiles)
    width = gl.minimum(shape.resident, shape.pairs - section * shape.resident)
    tile = inside // width
    if LONG_FIRST:
        tile = tiles - 1 - tile
    return tile * BLOCK_Q, section * shape.resident + inside % width


@jit
def _seen(rows, batch, shape):
    """The keys [low, high) that each row sees; rows beyond the sequence see none."""
    if shape.listed is not None:
        pointer = shape.listed.pointer + batch * shape.listed.batch + rows
        low = gl.load(pointer, mask=rows < shape.seq_q, other=0)
        high = gl.load(pointer + shape.listed.plane, mask=rows < shape.seq_q, other=0)
    else:
        diagonal = rows + (shape.seq_kv - shape.seq_q)
        low = gl.maximum(diagonal - shape.left, 0)
        high = gl.where(rows < shape.seq_q, gl.minimum(diagonal + shape.right + 1, shape.seq_kv), 0)
    return low, high


@jit
def _walk(row, batch, shape, BLOCK_Q: gl.constexpr, BLOCK_KV: gl.constexpr):
    """The walk of the tile of queries that starts at `row`; empty where no row sees a key."""
    if shape.listed is not None:
        warps: gl.constexpr = gl.num_warps()
        across: gl.constexpr = gl.BlockedLayout([1], [32], [warps], [0])
        low_Q, high_Q = _seen(row + gl.arange(0, BLOCK_Q, layout=across), batch, shape)
        # A row that sees nothing does not count: its output is 0 whatever it takes in.
        first = gl.min(gl.where(high_Q > low_Q, low_Q, shape.seq_kv), 0)
        last = gl.max(gl.where(high_Q > low_Q, high_Q, 0), 0)
        last_low = gl.max(gl.where(high_Q > low_Q, low_Q, 0), 0)
        first_high = gl.min(gl.where(high_Q > low_Q, high_Q, shape.seq_kv), 0)
    else:
        first_diagonal = row + shape.seq_kv - shape.seq_q
        last_diagonal = gl.minimum(row + BLOCK_Q, shape.seq_q) - 1 + shape.seq_kv - shape.seq_q
        first = gl.maximum(first_diagonal - shape.left, 0)
        last = gl.minimum(gl.maximum(last_diagonal + shape.right + 1, 0), shape.seq_kv)
        last_low = gl.maximum(last_diagonal - shape.left, 0)
        first_high = gl.minimum(gl.maximum(first_diagonal + shape.right + 1, 0), shape.seq_kv)
    start = gl.minimum(first, shape.seq_kv - 1) // BLOCK_KV
    end = gl.maximum(gl.cdiv(last, BLOCK_KV), start)
    whole = gl.minimum(gl.maximum(gl.cdiv(last_low, BLOCK_KV), start), end)
    whole_end = gl.minimum(gl.maximum(first_high // BLOCK_KV, whole), end)
    return Walk(first, last, start, whole, whole_end, end)


@jit
def _steps(walk):
    """Tiles of keys to take in: at least one, so that every tile of queries goes the same way."""
    return gl.maximum(walk.end - walk.start, 1)


@jit
def _edges(walk):
    """How many of them need the mask; they come first."""
    return walk.whole - walk.start + walk.end - walk.whole_end


@jit
def _key(step, walk, BLOCK_KV: gl.constexpr):
    """The first key of the tile of a step: tiles before the whole ones, tiles behind them, then the whole ones."""
    before = walk.whole - walk.start
    edges = _edges(walk)
    behind = gl.where(step < edges, walk.whole_end + step - before, walk.whole + step - edges)
    return gl.where(step < before, walk.start + step, behind) * BLOCK_KV


@jit
def _fetch(source, ring, count, batch, head, row):
    """Ask for the tile of that row as the `count`-th of a ring, once its slot is free."""
    slots: gl.constexpr = ring.tiles.shape[0]
    slot = count % slots
    wait(ring.empty.index(slot), (count // slots & 1) ^ 1)
    expect(ring.full.index(slot), source.block_type.nbytes)
    fetch(source, [batch, head, row, 0], ring.full.index(slot), ring.tiles.index(slot))


@jit
def _await(ring, count):
    """The slot of the `count`-th tile of a ring, once the tile is there."""
    slots: gl.constexpr = ring.tiles.shape[0]
    slot = count % slots
    wait(ring.full.index(slot), count // slots & 1)
    return slot


@jit
def _produce(
    q, k, v, memory, shape, CONSUMERS: gl.constexpr, BLOCK_KV: gl.constexpr, GROUP: gl.constexpr,
    LONG_FIRST: gl.constexpr,
):  # fmt: skip
    """The partition of one warp that fetches; it runs ahead of the consumers as far as the rings go."""
    block_q: gl.constexpr = CONSUMERS * ROWS
    count = 0  # tiles of keys so far
    turn = 0  # tiles of queries so far
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_q, block_q) * shape.pairs, gl.num_programs(0)):
        row, pair = _place(index, shape, block_q, LONG_FIRST)
        batch = pair // shape.heads
        head = pair % shape.heads
        walk = _walk(row, batch, shape, block_q, BLOCK_KV)
        steps = _steps(walk)
        # The first keys do not wait until the output has left the place of q.
        _fetch(k, memory.k, count, batch, head // GROUP, _key(0, walk, BLOCK_KV))
        for consumer in gl.static_range(CONSUMERS):
            _fetch(q, memory.q, turn * CONSUMERS + consumer, batch, head, row + consumer * ROWS)
        for step in range(1, steps):
            _fetch(k, memory.k, count + step, batch, head // GROUP, _key(step, walk, BLOCK_KV))
            _fetch(v, memory.v, count + step - 1, batch, head // GROUP, _key(step - 1, walk, BLOCK_KV))
        _fetch(v, memory.v, count + steps - 1, batch, head // GROUP, _key(steps - 1, walk, BLOCK_KV))
        count += steps
        turn += 1  # noqa: SIM113 (Triton has no enumerate)


@jit
def _hide(s_MK, key, low_M, high_M, BLOCK_KV: gl.constexpr, S: gl.constexpr):
    """Logits, -inf where a row does not see the key."""
    keys = (key + gl.arange(0, BLOCK_KV, layout=gl.SliceLayout(0, S)))[None, :]
    return gl.where((keys >= low_M[:, None]) & (keys < high_M[:, None]), s_MK, float("-inf"))


@jit
def _fold(s_MK, peak_M, total_M, factor):
    """The online softmax in base 2: weights, the factor by which earlier sums decay, and the new sums."""
    new_M = gl.maximum(peak_M, gl.max(s_MK, 1) * factor)
    p_MK = gl.exp2(s_MK * factor - new_M[:, None])
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
def _outputs(memory, slot, p_MK, acc_ME):
    """Issue the product of weights with the values of a slot."""
    block_kv: gl.constexpr = memory.v.tiles.shape[3]
    width: gl.constexpr = memory.v.tiles.shape[4]
    return warpgroup_mma(p_MK, memory.v.tiles.index(slot).reshape([block_kv, width]), acc_ME, is_async=True)


@jit
def _await_values(memory, count, key, walk, scrubs, CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr):
    """The slot of the values of a tile, once they are there and hold numbers where no row sees them.

    A weight of 0 times the NaN of some padding would be NaN. The consumers put zeros, each into its share of the tile,
    and wait for one another; `scrubs` counts how often they have.
    """
    slot = _await(memory.v, count)
    block_kv: gl.constexpr = memory.v.tiles.shape[3]
    width: gl.constexpr = memory.v.tiles.shape[4]
    share: gl.constexpr = block_kv // CONSUMERS
    by_row: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    if (key < walk.first) | (key + block_kv > walk.last):
        place = memory.v.tiles.index(slot).reshape([block_kv, width])
        for part in gl.static_range(share // PART):  # in parts, which need few registers
            rows = place.slice(CONSUMER * share + part * PART, PART)
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
    PINGPONG: gl.constexpr, S: gl.constexpr, P: gl.constexpr,
):  # fmt: skip
    """Issue q k of this step and p v of the one before; the softmax of the one while the other runs."""
    block_kv: gl.constexpr = memory.v.tiles.shape[3]
    slot_k = _await(memory.k, count + step)
    if SCRUB:
        slot_v, scrubs = _await_values(
            memory, count + step - 1, _key(step - 1, walk, block_kv), walk, scrubs, CONSUMER, CONSUMERS
        )
    else:
        slot_v = _await(memory.v, count + step - 1)
    if PINGPONG:
        wait(memory.turn.index(CONSUMER), (count + step & 1) ^ (1 if CONSUMER == 0 else 0))
    s_MK = _logits(memory, slot_k, CONSUMER, S)
    acc_ME = _outputs(memory, slot_v, p_MK, acc_ME)
    if PINGPONG:
        arrive(memory.turn.index((CONSUMER + 1) % CONSUMERS), count=1)
    s_MK = warpgroup_mma_wait(1, deps=(s_MK,))
    arrive(memory.k.empty.index(slot_k), count=1)
    if MASKED:
        s_MK = _hide(s_MK, _key(step, walk, block_kv), low_M, high_M, block_kv, S)
    p_MK, decay_M, peak_M, total_M = _fold(s_MK, peak_M, total_M, factor)
    p_MK = gl.convert_layout(p_MK.to(memory.v.tiles.dtype), P)
    # Without a poll between them ptxas moves the softmax behind the wait, where nothing is left to run beside it. These
    # values have come and are not released; the barrier of keys that are released may be a phase further.
    _await(memory.v, count + step - 1)
    acc_ME = warpgroup_mma_wait(0, deps=(acc_ME,))
    arrive(memory.v.empty.index(slot_v), count=1)
    decay_M = gl.convert_layout(decay_M, gl.SliceLayout(1, P.parent))
    return acc_ME * decay_M[:, None], p_MK, peak_M, total_M, scrubs


@jit
def _consume(
    out, lse_ptr, memory, shape, scale,
    CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, EDGES: gl.constexpr, PINGPONG: gl.constexpr,
    LONG_FIRST: gl.constexpr,
):  # fmt: skip
    """The partition of a warpgroup that computes 64 rows of every tile of queries."""
    block_q: gl.constexpr = CONSUMERS * ROWS
    block_kv: gl.constexpr = memory.v.tiles.shape[3]
    width: gl.constexpr = memory.v.tiles.shape[4]
    dtype: gl.constexpr = memory.v.tiles.dtype
    scrub: gl.constexpr = shape.listed is not None  # else all keys are real ones, or zeros beyond the end
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, block_kv, 16])
    E: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, E, 2)
    M: gl.constexpr = gl.SliceLayout(1, S)
    factor = scale * LOG2E
    count = 0
    turn = 0
    scrubs = 0
    for index in range(gl.program_id(0), gl.cdiv(shape.seq_q, block_q) * shape.pairs, gl.num_programs(0)):
        row, pair = _place(index, shape, block_q, LONG_FIRST)
        batch = pair // shape.heads
        walk = _walk(row, batch, shape, block_q, block_kv)
        steps = _steps(walk)
        rows_M = row + CONSUMER * ROWS + gl.arange(0, ROWS, layout=M)
        low_M, high_M = _seen(rows_M, batch, shape)

        # The first tile of keys has no p v before it.
        _await(memory.q, turn * CONSUMERS + CONSUMER)
        slot = _await(memory.k, count)
        if PINGPONG:
            wait(memory.turn.index(CONSUMER), (count & 1) ^ (1 if CONSUMER == 0 else 0))
        s_MK = _logits(memory, slot, CONSUMER, S)
        if PINGPONG:
            arrive(memory.turn.index((CONSUMER + 1) % CONSUMERS), count=1)
        s_MK = warpgroup_mma_wait(0, deps=(s_MK,))
        arrive(memory.k.empty.index(slot), count=1)
        if EDGES:
            s_MK = _hide(s_MK, _key(0, walk, block_kv), low_M, high_M, block_kv, S)
        peak_M = gl.full([ROWS], LOWEST, gl.float32, M)
        acc_ME = gl.zeros([ROWS, width], gl.float32, E)
        p_MK, _, peak_M, total_M = _fold(s_MK, peak_M, gl.zeros([ROWS], gl.float32, M), factor)
        p_MK = gl.convert_layout(p_MK.to(dtype), P)

        first_whole = 1
        if EDGES:
            first_whole = gl.maximum(_edges(walk), 1)
            for step in range(1, first_whole):
                acc_ME, p_MK, peak_M, total_M, scrubs = _step(
                    acc_ME, p_MK, peak_M, total_M, scrubs, memory, count, step, walk, low_M, high_M, factor,
                    CONSUMER, CONSUMERS, True, scrub, PINGPONG, S, P,
                )  # fmt: skip
        for step in range(first_whole, steps):
            acc_ME, p_MK, peak_M, total_M, scrubs = _step(
                acc_ME, p_MK, peak_M, total_M, scrubs, memory, count, step, walk, low_M, high_M, factor,
                CONSUMER, CONSUMERS, False, scrub, PINGPONG, S, P,
            )  # fmt: skip
        if scrub:
            slot, scrubs = _await_values(
                memory, count + steps - 1, _key(steps - 1, walk, block_kv), walk, scrubs, CONSUMER, CONSUMERS
            )
        else:
            slot = _await(memory.v, count + steps - 1)
        acc_ME = warpgroup_mma_wait(0, deps=(_outputs(memory, slot, p_MK, acc_ME),))
        arrive(memory.v.empty.index(slot), count=1)
        count += steps

        seeing_M = (high_M > low_M) & (total_M > 0.0)
        share_M = gl.where(seeing_M, 1.0 / gl.where(seeing_M, total_M, 1.0), 0.0)
        out_ME = acc_ME * gl.convert_layout(share_M, gl.SliceLayout(1, E))[:, None]
        memory.q.tiles.index(CONSUMER).reshape([ROWS, width]).store(out_ME.to(dtype))
        fence_async_shared()
        send(out, [batch, pair % shape.heads, row + CONSUMER * ROWS, 0], memory.q.tiles.index(CONSUMER))
        if lse_ptr is not None:
            lse_M = gl.where(seeing_M, (peak_M + gl.log2(total_M)) * LN2, float("-inf"))
            gl.store(lse_ptr + gl.cast(pair, gl.int64) * shape.seq_q + rows_M, lse_M, mask=rows_M < shape.seq_q)
        sent(0)
        arrive(memory.q.empty.index(CONSUMER), count=1)
        turn += 1  # noqa: SIM113 (Triton has no enumerate)


@jit
def _ring(slots: gl.constexpr, rows: gl.constexpr, readers: gl.constexpr, source):
    """A ring in shared memory for the tiles of a descriptor."""
    tiles = gl.allocate_shared_memory(source.dtype, [slots, 1, 1, rows, source.block_shape[3]], source.layout)
    full = gl.allocate_shared_memory(gl.int64, [slots, 1], MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [slots, 1], MBarrierLayout())
    for slot in gl.static_range(slots):
        init(full.index(slot), count=1)
        init(empty.index(slot), count=readers)
    return Ring(tiles, full, empty)


@jit(do_not_specialize=["pairs", "heads", "seq_q", "seq_kv", "left", "right", "resident"])
def forward_kernel(
    q, k, v, out, lse_ptr, listed, pairs, heads, seq_q, seq_kv, left, right, resident, scale,
    GROUP: gl.constexpr, BLOCK_KV: gl.constexpr, CONSUMERS: gl.constexpr, STAGES: gl.constexpr,
    LONG_FIRST: gl.constexpr, EDGES: gl.constexpr, PINGPONG: gl.constexpr,
):  # fmt: skip
    """Attention of descriptors [batch, heads, rows, D]; boxes are 64 rows of q and out, BLOCK_KV of k and v."""
    shape = Shape(listed, pairs, heads, seq_q, seq_kv, left, right, resident)
    turn = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], MBarrierLayout())
    for consumer in gl.static_range(CONSUMERS):
        init(turn.index(consumer), count=1)
    scrubbed = gl.allocate_shared_memory(gl.int64, [1], MBarrierLayout())
    init(scrubbed, count=CONSUMERS)
    of_q = _ring(CONSUMERS, ROWS, 1, q)
    of_k = _ring(STAGES, BLOCK_KV, CONSUMERS, k)
    of_v = _ring(STAGES, BLOCK_KV, CONSUMERS, v)
    memory = Memory(of_q, of_k, of_v, turn, scrubbed)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_consume, (out, lse_ptr, memory, shape, scale, 0, CONSUMERS, EDGES, PINGPONG, LONG_FIRST)),
            (_consume, (out, lse_ptr, memory, shape, scale, 1, CONSUMERS, EDGES, PINGPONG, LONG_FIRST)),
            (_produce, (q, k, v, memory, shape, CONSUMERS, BLOCK_KV, GROUP, LONG_FIRST)),
        ],
        [4, 1],
        [232, 40] if listed is not None else [240, 24],
    )
