from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.kernels.tiling import SHARED_BYTES, TABLE, Tiling, family, padded, tiling

SHAPE = {"batch": 2, "heads": 8, "kv_heads": 8, "seq_q": 4096, "seq_kv": 4096, "growing": False}


def cut(**changes: object) -> Tiling:
    values = {"arch": "sm_90", "dtype_bytes": 2, "head_dim": 128, "head_dim_v": 128, **SHAPE, **changes}
    return tiling(**values)  # type: ignore[arg-type]


def test_hopper_has_a_configuration_of_its_own() -> None:
    found = cut()
    assert (found.block_q, found.block_kv, found.warps, found.stages) == TABLE["sm_90", 2, 128]


@pytest.mark.parametrize("dtype_bytes", [2, 4])
@pytest.mark.parametrize("head_dim", [1, 64, 65, 128, 129, 256])
@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_every_arch_has_a_configuration_for_every_width(arch: str, head_dim: int, dtype_bytes: int) -> None:
    assert cut(arch=arch, head_dim=head_dim, dtype_bytes=dtype_bytes).block_q >= 16


def test_the_wider_of_head_dim_and_head_dim_v_decides() -> None:
    assert cut(head_dim=64, head_dim_v=256).block_kv == TABLE["sm_90", 2, 256][1]


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("sm_80", "sm_80"),
        ("sm_89", "sm_86"),
        ("sm_90", "sm_90"),
        ("sm_103", "sm_100"),
        ("sm_120", "sm_86"),
        ("gfx950", "gfx942"),
    ],
)
def test_an_arch_takes_the_tables_of_its_family(arch: str, expected: str) -> None:
    assert family(arch) == expected


@pytest.mark.parametrize("arch", ["sm_75", "gfx1100", "cpu"])
def test_an_arch_without_tables_is_refused_by_name(arch: str) -> None:
    with pytest.raises(ValueError, match=f"arch='{arch}'"):
        family(arch)


def test_a_short_sequence_has_a_short_tile() -> None:
    assert cut(seq_q=1).block_q == 16
    assert cut(seq_kv=20).block_kv == 32


def test_a_tile_of_few_rows_has_few_warps() -> None:
    assert cut(seq_q=1).warps == 4


@given(st.integers(1, 10**6))
def test_padded_is_the_least_power_of_two_that_holds_it(length: int) -> None:
    side = padded(length)
    assert side & (side - 1) == 0
    assert side >= length
    assert side == 16 or side // 2 < length


def test_rows_that_see_more_and_more_keys_start_with_the_last() -> None:
    assert cut(growing=True).long_first
    assert not cut(growing=False).long_first


def test_as_many_heads_run_side_by_side_as_fit_the_cache() -> None:
    # 4096 keys x (128 + 128) numbers x 2 bytes are 2 MiB of K and V a head: sixteen in 32 MiB.
    assert cut(growing=True, batch=8).resident == 16


def test_heads_that_share_keys_count_once_in_the_cache() -> None:
    assert cut(growing=True, batch=8, kv_heads=2).resident == 64


def test_no_more_heads_run_side_by_side_than_there_are() -> None:
    assert cut(growing=True, batch=1, seq_kv=16).resident == 8


def test_one_head_at_least_runs_whatever_its_length() -> None:
    assert cut(growing=True, seq_kv=2**24).resident == 1
