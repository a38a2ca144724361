from __future__ import annotations

import numpy as np

from attnbench.attention.fixed_random import splitmix64


def test_the_hash_is_splitmix64():
    """The first numbers of the generator with seed 0 (its reference implementation by Vigna)."""
    state, hashes = 0, []
    for _ in range(3):
        hashes.append(int(splitmix64(state)))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert hashes == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_hash_of_arrays_broadcasts_and_equals_that_of_numbers() -> None:
    rows, columns = np.arange(3)[:, None], np.arange(4)[None, :]
    table = splitmix64(7, rows, columns)
    assert table.shape == (3, 4)
    assert all(table[i, j] == splitmix64(7, i, j) for i in range(3) for j in range(4))
