"""Every shipped configuration and every feature of the Triton kernels, compiled for GPUs that are not here.

Compiling needs TRITON_INTERPRET to be unset, so these tests need a process of their own: `test_triton_kernels.py`
starts it, and no collection finds this file by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import pytest
import triton

from tests.kernels.compiled.build import Built, build
from tests.kernels.compiled.grid import ARCHES, OF_REQUESTS, Variant, call_of, everything, shared_limit, tiling_of
from tests.kernels.compiled.results import look_up, sample
from tests.kernels.compiled.table import BEGIN, DOCUMENT, TITLE, row

# Bytes of spill stores that are borne: features that the tiles were not chosen for. All else may spill none.
SPILLS = {
    "forward sm_80 half 128 causal bias_by_distance": 216,
    "forward sm_80 half 128 causal bias_gradient": 84,
    "forward sm_90 half 128 causal bias_by_distance": 816,
    "forward sm_90 half 128 causal odd_width": 24,
    "forward sm_90 half 128 causal bias_gradient": 100,
    "backward_kv sm_90 half 128 causal dropout": 44,
    "backward_kv sm_90 half 128 causal bias": 44,
    "forward_hopper sm_90 half 128 causal": 4,
    "forward_hopper sm_90 fp16 128 causal": 4,
    "forward_hopper sm_90 half 128 causal window": 4,
    "forward_hopper sm_90 half 128 causal odd_width": 4,
    "forward_hopper sm_90 half 128 causal rows": 48,
    "forward_hopper sm_90 half 256 causal rows": 204,
    "forward sm_100 half 128 causal bias_by_distance": 24,
    "forward sm_100 half 128 causal odd_width": 868,
    "backward_kv sm_100 half 128 causal bias": 88,
    "forward sm_120 half 128 causal booleans": 168,
    "forward sm_120 half 128 causal bias": 356,
    "forward sm_120 half 128 causal bias_by_distance": 1924,
    "forward sm_120 half 128 causal odd_width": 964,
    "forward sm_120 half 128 causal bias_gradient": 104,
    "decode sm_90 half 512 causal ragged": 480,
    "decode sm_90 half 512 causal prefix": 480,
    "decode sm_100 half 512 causal ragged": 96,
    "decode sm_100 half 512 causal prefix": 96,
    "decode sm_120 fp8 128 causal ragged": 80,
    "decode gfx942 half 512 causal ragged": 640,
    "decode gfx942 half 512 causal prefix": 640,
    "forward gfx942 half 128 causal alibi": 168,
    "forward gfx942 half 128 causal bias": 52,
    "forward gfx942 half 128 causal bias_by_distance": 340,
    "forward gfx942 half 128 causal dropout": 568,
    "forward gfx942 half 128 causal odd_width": 364,
    "backward_kv gfx942 half 128 causal rows": 48,
    "forward sm_100 half 128 causal alibi": 20,
    "forward sm_120 half 128 causal dropout": 44,
    "backward_q sm_120 half 128 causal bias": 16,
    "backward_kv sm_89 half 128 causal dropout": 32,
    # Tiles for Blackwell that were chosen by what ptxas does without the options that Triton calls it with.
    "backward_kv sm_100 half 256 causal": 356,
    "backward_kv_tma sm_100 half 256 causal": 36,
    "backward_kv_tma sm_120 half 64 causal": 44,
    "backward_q_tma sm_120 half 128 none": 16,
    "forward sm_100 half 256 none": 4,
    "forward sm_120 half 64 causal": 8,
    "forward_tma sm_120 fp8 256 causal": 16,
    "forward_tma sm_120 half 64 causal": 64,
    "forward_tma sm_120 half 128 causal": 56,
}
# A walk over single booleans defines the accumulators between two products, and ptxas waits for each (C7515).
SERIALIZED = ("forward sm_90 half 128 causal booleans",)
CHOSEN_WITH = "3.7"  # the tables go by what this Triton compiles
QUICK = (
    Variant("forward", "sm_90"),
    Variant("forward", "sm_80", mask="none"),
    Variant("forward_tma", "sm_90"),
    Variant("forward_hopper", "sm_90"),
    Variant("backward_kv_tma", "sm_90"),
    Variant("backward_q", "sm_80"),
    Variant("decode", "sm_90", feature="pages"),
    Variant("forward", "gfx942"),
)


ALL = tuple(dict.fromkeys((*QUICK, *everything())))
STORED = [variant for variant in ALL if variant in QUICK or look_up(variant)]
COMPILED = [variant for variant in ALL if variant not in STORED]  # which takes seconds each


@cache
def built(variant: Variant) -> Built:
    """What is stored, or what the compiler says now."""
    return look_up(variant) or build(call_of(variant), variant.arch)


def rows_of_a_product(variant: Variant) -> int:
    """Of the smallest product; those of Hopper have 64 rows."""
    chosen = tiling_of(variant)
    if variant.kernel == "decode" and variant.feature not in OF_REQUESTS:
        return 16
    return chosen.block_kv if variant.kernel.startswith("backward_kv") else chosen.block_q


def shared_memory_fits(variant: Variant) -> None:
    assert built(variant).shared_bytes <= shared_limit(variant.arch)


def a_block_has_the_registers_it_needs(variant: Variant) -> None:
    made = built(variant)
    file = 2**16 if variant.arch.startswith("sm") else 4 * 512 * 64
    assert made.registers * made.threads <= file


def nothing_spills_but_what_is_listed(variant: Variant) -> None:
    if triton.__version__.startswith(CHOSEN_WITH):
        assert built(variant).spilled_bytes <= SPILLS.get(variant.name, 0)


def asynchronous_products_are_not_serialised(variant: Variant) -> None:
    assert built(variant).serialized is (variant.name in SERIALIZED)


def products_run_on_tensor_cores(variant: Variant) -> None:
    made = built(variant)
    if variant.dtype == "fp32" or variant.feature in ("combine", "delta"):
        assert not any("f16" in name or "bf16" in name for name in made.products)
        return
    # Keys of 8 bits are widened in the decode kernel: reading them is what takes the time.
    dtype = "half" if variant.dtype == "fp8" and variant.kernel == "decode" else variant.dtype
    operands = {"half": "bf16", "fp16": "f16", "fp8": "e4m3"}[dtype]
    names = " ".join(made.products)
    if variant.arch == "sm_100" and "tcgen05" in names:
        operands = {"fp8": "f8f6f4"}.get(dtype, "kind::f16")
    assert operands in names
    if variant.arch == "sm_90" and rows_of_a_product(variant) >= 64:
        assert "wgmma" in names


def descriptors_are_read_in_bulk(variant: Variant) -> None:
    copies = built(variant).copies
    assert copies > 0 if variant.kernel.endswith(("tma", "hopper")) else copies == 0


def exponentials_are_computed_beside_a_product(variant: Variant) -> None:
    if "hopper" not in variant.kernel:
        return
    made, chosen = built(variant), tiling_of(variant)
    moving = chosen.block_q if variant.kernel.startswith("backward_kv") else chosen.block_kv
    loops = 2 * (1 if variant.mask == "none" else 2)  # of two consumers, without a mask and with one
    assert made.beside >= loops * moving * 64 // 128  # a thread of the 128 has its share of 64 rows
    # The first tile of a forward walk has no product beside it.
    assert made.alone <= (2 * (moving * 64 // 128 + 4) if variant.kernel == "forward_hopper" else 0)


DOCUMENTED = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].splitlines()


def the_document_tells_what_is_compiled(variant: Variant) -> None:
    if TITLE in DOCUMENTED:
        assert row(variant, built(variant)) in DOCUMENTED


LIMITS = (
    shared_memory_fits,
    a_block_has_the_registers_it_needs,
    nothing_spills_but_what_is_listed,
    asynchronous_products_are_not_serialised,
    products_run_on_tensor_cores,
    descriptors_are_read_in_bulk,
    exponentials_are_computed_beside_a_product,
    the_document_tells_what_is_compiled,
)


def broken(limit: Callable[[Variant], None], variant: Variant) -> str:
    """The variant and its figures, if it breaks the limit."""
    try:
        limit(variant)
    except AssertionError as error:
        return f"{variant.name}: {str(error).splitlines()[0]}"
    return ""


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.__name__)
def test_every_stored_result_keeps_the_limit(limit: Callable[[Variant], None]) -> None:
    """All in one test: thousands of tests would take longer than what they check."""
    assert [text for variant in STORED if (text := broken(limit, variant))] == []


@pytest.mark.slow
@pytest.mark.parametrize("variant", COMPILED, ids=lambda variant: variant.name.replace(" ", "-"))
def test_what_is_not_stored_keeps_all_limits(variant: Variant) -> None:
    assert [text for limit in LIMITS if (text := broken(limit, variant))] == []


@pytest.mark.skipif(TITLE not in DOCUMENTED, reason="the results are those of another Triton")
def test_every_result_is_stored() -> None:
    outdated = [variant.name for variant in ALL if not look_up(variant)]
    assert not outdated, "run `python -m tests.kernels.compiled.table`, which compiles them"


def check_sample(variants: Iterable[Variant]) -> None:
    if (variant := sample(variants)) is None:
        pytest.skip("no result is stored for this Triton")
    assert build(call_of(variant), variant.arch) == look_up(variant), variant.name


def test_the_compiler_says_what_is_stored() -> None:
    check_sample(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_the_compiler_says_what_is_stored_for_each_kind_of_gpu(arch: str) -> None:
    check_sample(variant for variant in ALL if variant.arch == arch)
