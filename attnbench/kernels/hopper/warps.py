"""What the kernels for Hopper share: rings of tiles between the warp that fetches and those that compute, and walks.

Shape suffixes as in `tile.py`; M are the 64 rows of one warpgroup.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from attnbench.kernels.hopper.gluon import MBarrierLayout, expect, fetch, gl, init, jit, wait

if TYPE_CHECKING:
    from attnbench.kernels.tile import Listed

LOG2E = gl.constexpr(1.4426950408889634)
ROWS = gl.constexpr(64)  # of a consumer: those of one product of a warpgroup


class Ring(NamedTuple):
    """Tiles in shared memory [slots, rows, D], and the barriers of every slot.

    `full` completes when a tile has arrived, `empty` when all its readers have read it.
    """

    tiles: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


class Shape(NamedTuple):
    """The problem and the order of its tiles; all are those of `forward_kernel` in forward.py."""

    listed: Listed | None
    pairs: gl.tensor
    heads: gl.tensor
    seq_q: gl.tensor
    seq_kv: gl.tensor
    left: gl.tensor
    right: gl.tensor
    resident: gl.tensor


class Walk(NamedTuple):
    """The tiles of keys of a tile of queries: [start, end) that some row sees, [full, full_end) that all rows see.

    `first` and `last`: the keys that some row sees. A tile of keys has a walk over the rows that see it likewise.
    """

    first: gl.tensor
    last: gl.tensor
    start: gl.tensor
    full: gl.tensor
    full_end: gl.tensor
    end: gl.tensor


@jit
def place(index, length, shape, BLOCK: gl.constexpr, LONG_FIRST: gl.constexpr):
    """The first row and the (batch, head) pair of the tile at an index, in the order of `tile.place`."""
    tiles = gl.cdiv(length, BLOCK)
    section = index // (shape.resident * tiles)
    inside = index % (shape.resident * tiles)
    width = gl.minimum(shape.resident, shape.pairs - section * shape.resident)
    tile = inside // width
    if LONG_FIRST:
        tile = tiles - 1 - tile
    return tile * BLOCK, section * shape.resident + inside % width


@jit
def seen(rows, batch, shape):
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
def walk_keys(row, batch, shape, BLOCK_Q: gl.constexpr, BLOCK_KV: gl.constexpr):
    """The walk of the tile of queries that starts at `row`; empty where no row sees a key."""
    if shape.listed is not None:
        warps: gl.constexpr = gl.num_warps()
        across: gl.constexpr = gl.BlockedLayout([1], [32], [warps], [0])
        low_Q, high_Q = seen(row + gl.arange(0, BLOCK_Q, layout=across), batch, shape)
        # A row that sees no key does not count: its output is 0 whatever it takes in.
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
    full = gl.minimum(gl.maximum(gl.cdiv(last_low, BLOCK_KV), start), end)
    full_end = gl.minimum(gl.maximum(first_high // BLOCK_KV, full), end)
    return Walk(first, last, start, full, full_end, end)


@jit
def walk_rows(key, shape, BLOCK_Q: gl.constexpr, BLOCK_KV: gl.constexpr):
    """The walk of the tile of keys that starts at `key`, over rows; rows beyond the sequence count as seeing all."""
    shift = shape.seq_kv - shape.seq_q
    last_key = gl.minimum(key + BLOCK_KV, shape.seq_kv) - 1
    first = gl.maximum(key - shift - shape.right, 0)
    last = gl.minimum(gl.maximum(last_key - shift + shape.left + 1, 0), shape.seq_q)
    start = gl.minimum(first, shape.seq_q - 1) // BLOCK_Q
    end = gl.maximum(gl.cdiv(last, BLOCK_Q), start)
    full_row = gl.maximum(last_key - shift - shape.right, 0)
    full_last = gl.maximum(key - shift + shape.left + 1, 0)
    full = gl.minimum(gl.maximum(gl.cdiv(full_row, BLOCK_Q), start), end)
    full_end = gl.where(full_last >= shape.seq_q, end, gl.minimum(full_last, shape.seq_q) // BLOCK_Q)
    return Walk(first, last, start, full, gl.minimum(gl.maximum(full_end, full), end), end)


@jit
def steps_of(walk):
    """Tiles of keys to take in: at least one, so that every tile of queries runs the same steps."""
    return gl.maximum(walk.end - walk.start, 1)


@jit
def edges_of(walk):
    """How many of them need a mask; they come first."""
    return walk.full - walk.start + walk.end - walk.full_end


@jit
def start_of(step, walk, BLOCK_KV: gl.constexpr):
    """The first key of the tile of a step: tiles before the full ones, tiles behind them, then the full ones."""
    before = walk.full - walk.start
    edges = edges_of(walk)
    behind = gl.where(step < edges, walk.full_end + step - before, walk.full + step - edges)
    return gl.where(step < before, walk.start + step, behind) * BLOCK_KV


@jit
def request(source, ring, count, batch, head, row, ACROSS: gl.constexpr = False):
    """Copy the tile of that row as the `count`-th of a ring, once its slot is free; ACROSS: rows are columns."""
    slots: gl.constexpr = ring.tiles.shape[0]
    slot = count % slots
    wait(ring.empty.index(slot), (count // slots & 1) ^ 1)
    expect(ring.full.index(slot), source.block_type.nbytes)
    corner = [batch, head, 0, row] if ACROSS else [batch, head, row, 0]
    fetch(source, corner, ring.full.index(slot), ring.tiles.index(slot))


@jit
def awaited(ring, count):
    """The slot of the `count`-th tile of a ring, once the tile has arrived."""
    slots: gl.constexpr = ring.tiles.shape[0]
    slot = count % slots
    wait(ring.full.index(slot), count // slots & 1)
    return slot


@jit
def hide(s_MK, key, low_M, high_M, BLOCK_KV: gl.constexpr, S: gl.constexpr):
    """Logits, -inf where a row does not see the key."""
    keys = (key + gl.arange(0, BLOCK_KV, layout=gl.SliceLayout(0, S)))[None, :]
    return gl.where((keys >= low_M[:, None]) & (keys < high_M[:, None]), s_MK, float("-inf"))


@jit
def new_tiles(slots: gl.constexpr, source):
    """Shared memory for boxes of a descriptor."""
    shape: gl.constexpr = source.block_shape
    return gl.allocate_shared_memory(source.dtype, [slots, 1, 1, shape[2], shape[3]], source.layout)


@jit
def new_ring(slots: gl.constexpr, readers: gl.constexpr, source):
    """A ring in shared memory for the tiles of a descriptor."""
    tiles = new_tiles(slots, source)
    full = gl.allocate_shared_memory(gl.int64, [slots, 1], MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [slots, 1], MBarrierLayout())
    for slot in gl.static_range(slots):
        init(full.index(slot), count=1)
        init(empty.index(slot), count=readers)
    return Ring(tiles, full, empty)
