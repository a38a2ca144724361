"""BigBird: blocks of a window, global blocks and random ones (https://arxiv.org/abs/2007.14062).

The global blocks are visible in both directions: half of them are the first ones, half the last. Pairs are counted from
the visible blocks.
"""

import numpy as np

from attnbench.attention.fixed_random import splitmix64
from attnbench.attention.terms import BlockPattern, Booleans, Grid, Indices


class BigBird(BlockPattern, frozen=True):
    """A window of `window` blocks, the first and last block in both directions, `random` others in each block row."""

    word = "bigbird"
    example = "bigbird"
    summary = "window, global and random blocks (BigBird)"
    is_square = True

    block: int = 64  # tokens on each side of a block
    window: int = 3  # blocks, the diagonal one included
    global_: int = 2  # blocks
    random: int = 3  # blocks of each block row
    draw: int = 0  # another number selects other random blocks

    def __post_init__(self) -> None:
        self.check_at_least(block=1, window=0, global_=0, random=0)
        if self.window % 2 == 0 and self.window:
            raise self.error(f"window={self.window} blocks around the diagonal one: use an odd number")

    def selected(self, grid: Grid, rows: int, columns: int) -> Booleans:
        first, last = -(-self.global_ // 2), self.global_ // 2
        visible = np.zeros((rows, columns), bool)
        for edge in (visible, visible.T):
            edge[:first] = edge[max(0, len(edge) - last) :] = True
        row = np.arange(rows)
        steps = np.arange(-(self.window // 2), self.window // 2 + 1 if self.window else 0)
        ends = np.concatenate([np.arange(min(first, columns)), np.arange(max(0, columns - last), columns)])
        taken = np.concatenate([row[:, None] + steps, np.broadcast_to(ends, (rows, len(ends)))], axis=1)
        taken[(taken < 0) | (taken >= columns)] = columns
        for column in taken.T:
            inside = column < columns
            visible[row[inside], column[inside]] = True
        free = columns - visible.sum(axis=1)
        for number in range(self.random):
            left = free - number
            drawing = left > 0
            hashes = splitmix64(self.draw, row, number)
            place = (hashes % np.maximum(left, 1).astype(np.uint64)).astype(np.int64)
            taken = np.append(taken, _free_column(taken, place, columns)[:, None], axis=1)
            taken[~drawing, -1] = columns
            visible[row[drawing], taken[drawing, -1]] = True
        return visible


def _free_column(taken: Indices, place: Indices, columns: int) -> Indices:
    """The column at index `place` among the free ones of each row; taken: [rows, n], `columns` where there is none."""
    ordered = np.sort(taken, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = columns  # a duplicate counts once
    for column in np.sort(ordered, axis=1).T:
        place = place + (column <= place)
    return place
