from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.kernels.tables import Kernel, TileConfig, shipped
from attnbench.kernels.tiling import (
    INTERPRETER,
    MAX_SPLITS,
    SHARED_BYTES,
    Chip,
    Tiling,
    Work,
    family,
    padded,
    part_count,
    split_count,
    tiling,
)

HOPPER = Chip("sm_90", 132)


def work(**changes: Any) -> Work:
    shape = {"batch": 2, "heads": 8, "kv_heads": 8, "seq_q": 4096, "seq_kv": 4096, "head_dim": 128, "head_dim_v": 128}
    return Work(**{"dtype": "half", **shape, **changes})


def sizes(chosen: Tiling) -> tuple[int, int, int, int]:
    return chosen.block_q, chosen.block_kv, chosen.warps, chosen.stages


def entry(kernel: str, arch: str, width: int, mask: str = "any", dtype: str = "half") -> tuple[int, int, int, int]:
    chosen = shipped()[kernel, arch, dtype, str(width), mask]
    return chosen.block_q, chosen.block_kv, chosen.warps, chosen.stages


# -- paths ----------------------------------------------------------------------------------------------------------


def test_a_long_pass_on_hopper_goes_by_descriptors() -> None:
    chosen = tiling(work(), HOPPER)
    assert chosen.path == "descriptors"
    assert sizes(chosen) == entry("forward_tma", "sm_90", 128)
    assert chosen.passed_over == (
        "decode: slower: 4096 queries, more than the 16 of decoding",
        "hopper: unproved: never run on a GPU, only compiled and simulated",
    )


@pytest.mark.parametrize(
    ("changes", "target", "reason"),
    [
        ({}, Chip("sm_80", 108), "sm_80 has no tensor memory accelerator (sm_90 and later have)"),
        ({}, Chip("gfx942", 304), "gfx942 has no tensor memory accelerator (sm_90 and later have)"),
        ({"descriptors": "q starts at no multiple of 16 bytes"}, HOPPER, "q starts at no multiple of 16 bytes"),
        ({"seq_q": 256, "seq_kv": 256}, HOPPER, "slower: too little work to amortise the launch"),
        ({"dtype": "fp32"}, HOPPER, "numbers of 32 bits go through registers anyway"),
        ({"list_q": 128, "list_kv": 128}, HOPPER, "a list of blocks is walked by pointers"),
        ({"head_dim": 256, "masked": 1}, Chip("sm_120"), "no configuration for head dims of 256 in half on sm_120"),
    ],
)  # fmt: skip
def test_pointers_serve_where_descriptors_cannot(changes: dict[str, Any], target: Chip, reason: str) -> None:
    chosen = tiling(work(**changes), target)
    assert chosen.path == "portable"
    assert chosen.passed_over[2] == f"descriptors: {reason}"


@pytest.mark.parametrize(
    ("changes", "target", "reason"),
    [
        ({}, Chip("sm_80", 108), "its kernels are in Gluon and for sm_90, not for sm_80"),
        ({}, Chip("sm_100", 148), "its kernels are in Gluon and for sm_90, not for sm_100"),
        ({}, Chip("interpreter"), "its kernels are in Gluon and for sm_90, not for interpreter"),
        ({"dtype": "fp32"}, HOPPER, "its kernels take numbers of 16 or 8 bits, not fp32"),
        ({"head_dim": 64, "head_dim_v": 128}, HOPPER, "head dims of 64 and 128 need tiles of different widths"),
        ({"pair_bytes": 2}, HOPPER, "a list of blocks or a number for every pair is not in its kernels"),
        ({"descriptors": "q starts at no multiple of 16 bytes"}, HOPPER, "q starts at no multiple of 16 bytes"),
        ({"hopper": "a sink is not in its kernels"}, HOPPER, "a sink is not in its kernels"),
    ],
)
def test_the_kernels_for_hopper_say_what_they_cannot_serve(changes: dict[str, Any], target: Chip, reason: str) -> None:
    assert f"hopper: {reason}" in tiling(work(**changes), target).passed_over
    with pytest.raises(ValueError, match=f"path='hopper' is not supported here: {reason}"):
        tiling(work(path="hopper", **changes), target)


@pytest.mark.parametrize(("head_dim", "width"), [(16, 64), (64, 64), (96, 128), (128, 128), (192, 256)])
@pytest.mark.parametrize("seq", [1, 100, 8192])
def test_the_kernels_for_hopper_are_taken_when_asked_for(head_dim: int, width: int, seq: int) -> None:
    chosen = tiling(work(path="hopper", head_dim=head_dim, head_dim_v=head_dim, seq_q=seq, seq_kv=seq), HOPPER)
    assert chosen.path == "hopper"
    assert sizes(chosen) == entry("forward_hopper", "sm_90", width)  # whole warpgroups, however short a sequence is


def test_numbers_of_8_bits_have_configurations_of_their_own() -> None:
    assert sizes(tiling(work(path="hopper", dtype="fp8"), HOPPER)) == entry("forward_hopper", "sm_90", 128, dtype="fp8")


def test_few_queries_are_decoded() -> None:
    chosen = tiling(work(seq_q=1, batch=1, heads=32, kv_heads=8, seq_kv=2**17), HOPPER)
    assert chosen.path == "decode"
    assert (chosen.block_q, chosen.passed_over) == (16, ())
    assert chosen.splits > 8


def test_few_queries_with_what_cannot_be_split_are_not() -> None:
    chosen = tiling(work(seq_q=1, split="dropout is not split"), HOPPER)
    assert (chosen.path, chosen.passed_over[0]) == ("portable", "decode: dropout is not split")


@pytest.mark.parametrize("path", ["portable", "descriptors"])
def test_a_path_that_is_only_slower_may_be_asked_for(path: str) -> None:
    assert tiling(work(seq_q=64, seq_kv=64, path=path), HOPPER).path == path


def test_a_requested_path_that_is_unsupported_is_an_error() -> None:
    with pytest.raises(ValueError, match="path='descriptors' is not supported here: sm_80 has no tensor memory"):
        tiling(work(path="descriptors"), Chip("sm_80"))
    with pytest.raises(ValueError, match="path='fast': must be one of decode, hopper, descriptors, portable"):
        tiling(work(path="fast"), HOPPER)


def test_a_path_asked_of_the_forward_pass_leaves_the_backward_to_choose() -> None:
    assert tiling(work(path="decode"), HOPPER, Kernel.BACKWARD_KV).path == "descriptors"


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [1, 16, 40, 64, 65, 128, 129, 256])
@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("kernel", [Kernel.FORWARD, Kernel.BACKWARD_KV, Kernel.BACKWARD_Q])
@pytest.mark.parametrize("dtype", ["half", "fp32", "tf32"])
def test_every_width_has_a_configuration(arch: str, head_dim: int, kernel: Kernel, dtype: str) -> None:
    for masked in (False, True):
        chosen = tiling(work(head_dim=head_dim, dtype=dtype, masked=masked), Chip(arch, 100), kernel)
        assert min(chosen.block_q, chosen.block_kv) >= 16


def test_the_wider_of_head_dim_and_head_dim_v_decides() -> None:
    assert sizes(tiling(work(head_dim=64, head_dim_v=256), HOPPER)) == entry("forward_tma", "sm_90", 256)


def test_masked_and_plain_passes_have_entries_of_their_own() -> None:
    plain, masked = (tiling(work(masked=masked, path="portable"), HOPPER) for masked in (False, True))
    assert sizes(plain) == entry("forward", "sm_90", 128, "none")
    assert sizes(masked) == entry("forward", "sm_90", 128, "some")


@pytest.mark.parametrize(("seq_q", "seq_kv", "blocks"), [(1, 20, (16, 32)), (40, 7, (64, 16)), (64, 64, (64, 64))])
def test_a_short_sequence_has_short_tiles(seq_q: int, seq_kv: int, blocks: tuple[int, int]) -> None:
    chosen = tiling(work(seq_q=seq_q, seq_kv=seq_kv, path="portable"), HOPPER)
    assert (chosen.block_q, chosen.block_kv) == blocks
    assert chosen.warps == (4 if seq_q < 40 else 8)


def test_tiles_fit_the_blocks_of_a_list() -> None:
    chosen = tiling(work(list_q=32, list_kv=16), HOPPER)
    assert (chosen.block_q, chosen.block_kv) == (32, 16)


def test_a_bias_takes_the_place_of_stages() -> None:
    target = Chip("sm_89", 100)
    assert tiling(work(), target).stages > tiling(work(pair_bytes=4), target).stages >= 1


def test_an_entry_of_the_user_goes_before_those_that_are_shipped() -> None:
    chosen = TileConfig(block_q=64, block_kv=32, warps=4, stages=4, source="measured")
    table = {("forward_tma", "sm_90", "half", "128", "none"): chosen}
    assert sizes(tiling(work(), HOPPER, table=table)) == (64, 32, 4, 4)
    assert sizes(tiling(work(masked=True), HOPPER, table=table)) == entry("forward_tma", "sm_90", 128)


def test_an_entry_for_the_very_gpu_goes_before_that_for_its_family() -> None:
    configs = [TileConfig(block_q=16, block_kv=size, warps=4, stages=1) for size in (16, 32)]
    keys = [("forward", arch, "half", "128", "any") for arch in ("sm_86", "sm_89")]
    found = tiling(work(), Chip("sm_89"), table=dict(zip(keys, configs, strict=True)))
    assert found.block_kv == 32


def test_interpreted_tiles_are_small() -> None:
    chosen = tiling(work(), Chip(INTERPRETER))
    assert sizes(chosen) == (32, 32, 1, 1)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        *(("sm_80", "sm_80"), ("sm_87", "sm_86"), ("sm_89", "sm_86"), ("sm_90", "sm_90"), ("sm_103", "sm_100")),
        *(("sm_110", "sm_100"), ("sm_120", "sm_120"), ("sm_121", "sm_120"), ("gfx950", "gfx942")),
    ],
)
def test_an_arch_takes_the_tables_of_its_family(arch: str, expected: str) -> None:
    assert family(arch) == expected


@pytest.mark.parametrize("arch", ["sm_75", "gfx1100", "cpu"])
def test_an_arch_without_tables_is_refused_by_name(arch: str) -> None:
    with pytest.raises(ValueError, match=f"arch='{arch}'"):
        family(arch)


@given(st.integers(1, 2**20))
def test_padded_is_the_least_power_of_two(length: int) -> None:
    found = padded(length)
    assert found >= max(16, length)
    assert found.bit_count() == 1
    assert found == 16 or found // 2 < length


# -- order ----------------------------------------------------------------------------------------------------------


def test_long_tiles_start_first_where_rows_grow() -> None:
    assert tiling(work(growing=True), HOPPER).long_first
    assert not tiling(work(), HOPPER).long_first
    # The first keys are seen by most rows: their tiles come first as they are.
    assert not tiling(work(growing=True), HOPPER, Kernel.BACKWARD_KV).long_first


def test_as_many_heads_run_side_by_side_as_their_keys_fit_the_cache() -> None:
    # 4096 keys of 256 numbers of 2 bytes: 2 MiB a head, 16 of them in 32 MiB.
    assert tiling(work(growing=True, batch=8), HOPPER).resident == 16
    # Four query heads share one key head: 16 key heads are 64 query heads, all that there are.
    assert tiling(work(growing=True, batch=8, heads=8, kv_heads=2), HOPPER).resident == 64
    assert tiling(work(growing=True, seq_kv=2**18), HOPPER).resident == 1


# -- splits and parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiles", "blocks", "processors", "expected"),
    [
        (106, 1000, 132, 1),  # four fifths of the chip are busy
        (8, 4, 132, 1),  # little to share
        (8, 2048, 132, 15),  # 120 programs fill 91 %; 14 splits would fill less than 85 %
        (64, 64, 132, 2),  # 128 programs fill 97 %
        (1, 128, 132, 128),  # with shares of two blocks only 64 programs would run
    ],
)
def test_splits_by_hand(tiles: int, blocks: int, processors: int, expected: int) -> None:
    assert split_count(tiles, blocks, processors) == expected


@pytest.mark.parametrize(
    ("batch", "seq_q", "tokens_q", "rows", "splits"),
    [
        (8, 1, 8, 16, 15),  # 8 tiles of one query, as by hand
        (8, 100, 107, 64, 8),  # 14 tiles of 64 rows, not 8 times 13: 112 programs fill 85 %
        (8, 8192, 8199, 64, 1),  # the prefill alone fills the chip
    ],
)
def test_splits_of_a_batch_of_requests_go_by_its_tokens(
    batch: int, seq_q: int, tokens_q: int, rows: int, splits: int
) -> None:
    requests = work(batch=batch, seq_q=seq_q, tokens_q=tokens_q, kv_heads=1, seq_kv=2**17)
    chosen = tiling(requests, HOPPER, Kernel.DECODE)
    assert (chosen.block_q, chosen.splits) == (rows, splits)


@given(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 304))
def test_splits_fill_the_chip_as_well_as_any_number_of_them(tiles: int, blocks: int, processors: int) -> None:
    found = split_count(tiles, blocks, processors)
    assert 1 <= found <= min(blocks, MAX_SPLITS)
    # No share is empty.
    assert -(-blocks // -(-blocks // found)) == found
    if found > 1:

        def filling(splits: int) -> float:
            return tiles * splits / (-(-tiles * splits // processors) * processors)

        # Numbers that leave a share empty do the work of a smaller one.
        real = [n for n in range(1, min(blocks, MAX_SPLITS) + 1) if -(-blocks // -(-blocks // n)) == n]
        assert filling(found) >= 0.85 * max(map(filling, real))
        assert all(filling(n) < 0.85 * max(map(filling, real)) for n in real if n < found)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 304))
def test_parts_divide_the_group_and_are_the_fewest_that_fill_the_chip(tiles: int, group: int, processors: int) -> None:
    found = part_count(tiles, group, processors)
    assert group % found == 0
    assert tiles * found >= processors or found == group
    assert all(tiles * n < processors for n in range(1, found) if group % n == 0)
