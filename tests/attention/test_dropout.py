"""Dropout: Philox against its known answers, the rate, and the dependence on every index."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.attention.dropout import keep_mask, philox

# The known answers of Random123, philox4x32-10: https://github.com/DEShawResearch/random123 (tests/kat_vectors).
ALL = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


INDICES = np.ix_(range(2), range(3), range(64), range(96))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_share_of_dropped_weights_is_the_rate(rate: float) -> None:
    assert abs(1 - keep_mask(rate, 7, *INDICES).mean() - rate) < 0.01


def test_mask_of_a_pair_does_not_depend_on_the_other_pairs() -> None:
    whole = keep_mask(0.5, 11, *INDICES)
    assert keep_mask(0.5, 11, 1, 2, 40, 90) == whole[1, 2, 40, 90]
    assert np.array_equal(keep_mask(0.5, 11, *np.ix_([1], [0], range(5, 9), range(50))), whole[1:2, :1, 5:9, :50])


def test_every_index_and_the_whole_seed_matter() -> None:
    whole = keep_mask(0.5, 11, *INDICES)
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole[:, 0], whole[:, 1])
    assert not np.array_equal(whole[..., 0, :64], whole[..., :, 0])
    assert not np.array_equal(whole, keep_mask(0.5, 11 + 2**32, *INDICES))
