"""Blocks of a KV cache: reference counts, a free list by last use, and a table of cached prefixes.

Everything is an array over blocks, so that a request costs the same however long its prompt is.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from attnbench.suite.serving.trace import HASHED_TOKENS

Blocks = NDArray[np.int64]
NO_BLOCKS: Blocks = np.empty(0, np.int64)
_EMPTY = -1  # the generation of a place in the table without a block


class BlockPool:
    """Blocks with reference counts. A free block keeps its content until it is allocated again, oldest first."""

    def __init__(self, blocks: int) -> None:
        self.free = blocks
        self.repeated = 0  # references beyond the first of each block
        self.generation = np.zeros(blocks, np.int64)  # how often a block was allocated: its content
        self._references = np.zeros(blocks, np.int32)
        # The free list in order, in parts that were freed at one time. A block counts only in the part that carries
        # the time at which it was freed last, since blocks that are used again leave from the middle.
        self._freed_at = np.ones(blocks, np.int64)
        self._time = 1
        self._queue = deque([(1, np.arange(blocks))])
        self._queued = blocks

    def allocate(self, count: int) -> Blocks:
        """Blocks with one reference, taken from the head of the free list; `count` is at most `free`."""
        parts, missing = [], count
        while missing:
            time, blocks = self._queue.popleft()
            head = blocks[:missing]
            if head.size < blocks.size:
                self._queue.appendleft((time, blocks[missing:]))
            self._queued -= head.size
            parts.append(head[self._freed_at[head] == time])
            missing -= parts[-1].size
        taken = parts[0] if len(parts) == 1 else np.concatenate([NO_BLOCKS, *parts])
        self.generation[taken] += 1
        self._references[taken] = 1
        self._freed_at[taken] = 0
        self.free -= count
        return taken

    def unused(self, blocks: Blocks) -> int:
        """How many of these blocks are on the free list."""
        return int(np.count_nonzero(self._references[blocks] == 0))

    def share(self, blocks: Blocks) -> None:
        """Add a reference to each; those on the free list leave it."""
        unused = self.unused(blocks)
        self.free -= unused
        self.repeated += blocks.size - unused
        self._references[blocks] += 1
        self._freed_at[blocks] = 0

    def release(self, blocks: Blocks) -> None:
        """Drop a reference of each, the last block first; those without any join the end of the free list."""
        backwards = blocks[::-1]
        self._references[backwards] -= 1
        freed = backwards[self._references[backwards] == 0]
        self.repeated -= backwards.size - freed.size
        self._time += 1
        self._freed_at[freed] = self._time
        self._queue.append((self._time, freed))
        self._queued += freed.size
        self.free += freed.size
        if self._queued > 2 * self.generation.size:
            self._compact()

    def _compact(self) -> None:
        parts = [(time, blocks[self._freed_at[blocks] == time]) for time, blocks in self._queue]
        self._queue = deque((time, blocks) for time, blocks in parts if blocks.size)
        self._queued = sum(blocks.size for _, blocks in self._queue)


def block_hashes(hashes: Sequence[int], block_size: int, blocks: int) -> Sequence[int]:
    """The hashes of the parts of a prompt; where blocks are larger than the parts of a trace, of its full blocks."""
    if block_size <= HASHED_TOKENS:
        return hashes
    return [hashes[((block + 1) * block_size - 1) // HASHED_TOKENS] for block in range(blocks)]


class PrefixTable:
    """The cached full blocks of prompts, by the hash of the part of the prompt in which they end."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool, self._size, self._part_size = pool, block_size, max(block_size, HASHED_TOKENS)
        self._width = -(-self._part_size // block_size)  # blocks that end in one part, at most
        self._rows: dict[int, int] = {}
        self._unused = list(range(64))
        self._blocks = np.zeros(64 * self._width, np.int64)
        self._generations = np.full(64 * self._width, _EMPTY)

    def find(self, hashes: Sequence[int], blocks: int) -> Blocks:
        """The longest cached prefix of the first `blocks` blocks of a prompt."""
        rows: list[int] = []
        for part in hashes:
            if (row := self._rows.get(part)) is None:
                break
            rows.append(row)
        if not rows:
            return NO_BLOCKS
        places = self._places(rows, 0, 0, min(blocks, len(rows) * self._part_size // self._size))
        cached = self._blocks[places]
        valid = self._generations[places] == self._pool.generation[cached]
        return cached if valid.all() else cached[: int(valid.argmin())]

    def add(self, hashes: Sequence[int], first: int, blocks: Blocks) -> None:
        """Cache full blocks of a prompt from block `first` on. Content that is cached already stays where it is."""
        first_part, last_part = self._part(first), self._part(first + blocks.size - 1)
        parts = hashes[first_part : last_part + 1]
        if len(self._unused) < len(parts):
            self._make_room(len(parts))
        rows = [self._row(part) for part in parts]
        places = self._places(rows, first_part, first, first + blocks.size)
        stale = self._generations[places] != self._pool.generation[self._blocks[places]]
        self._blocks[places[stale]] = blocks[stale]
        self._generations[places[stale]] = self._pool.generation[blocks[stale]]

    def _part(self, block: int) -> int:
        """The part in which a block ends."""
        return ((block + 1) * self._size - 1) // self._part_size

    def _places(self, rows: Sequence[int], first_part: int, first: int, last: int) -> Blocks:
        numbers = np.arange(first, last)
        parts = ((numbers + 1) * self._size - 1) // self._part_size
        within = numbers - parts * self._part_size // self._size
        return np.asarray(rows, np.int64)[parts - first_part] * self._width + within

    def _row(self, part: int) -> int:
        if part not in self._rows:
            row = self._rows[part] = self._unused.pop()
            self._generations[row * self._width : (row + 1) * self._width] = _EMPTY
        return self._rows[part]

    def _make_room(self, rows: int) -> None:
        """Drop rows without a cached block; grow if that leaves less than half."""
        valid = self._generations == self._pool.generation[self._blocks]
        used = valid.reshape(-1, self._width).any(axis=1)
        self._rows = {part: row for part, row in self._rows.items() if used[row]}
        taken, capacity = set(self._rows.values()), used.size
        while capacity < 2 * (len(taken) + rows):
            capacity *= 2
        self._unused = [row for row in range(capacity) if row not in taken]
        added = (capacity - used.size) * self._width
        self._blocks = np.concatenate([self._blocks, np.zeros(added, np.int64)])
        self._generations = np.concatenate([self._generations, np.full(added, _EMPTY)])
