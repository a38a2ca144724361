"""The kernel for Hopper on simulated blocks, in every order that a schedule can bring; no GPU and no Triton needed."""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.kernels.simulated.bugs import BUGS  # noqa: E402
from tests.kernels.simulated.checks import FAR, WHEN, Shape, check, check_gradients, drawn, notices, packed  # noqa: E402
from tests.kernels.simulated.kernel import changed, load  # noqa: E402

EIGHT = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def kernel() -> Any:
    return load()


FORMULA = [
    Shape(),
    Shape(right=0),
    Shape(left=40, right=0),
    Shape(left=20, right=30),
    Shape(seq_q=1, seq_kv=1),
    Shape(seq_q=1, seq_kv=300, right=0),
    Shape(seq_q=300, seq_kv=5, right=0),
    Shape(seq_q=128, seq_kv=128, right=0, stages=1),
    Shape(seq_q=129, seq_kv=257, batch=2, heads=4, kv_heads=2, programs=5, resident=3, long_first=True, stages=3),
    Shape(block_kv=64, dtype=torch.float16),
    Shape(width=40),
    Shape(width=128, right=0),
    Shape(dtype=EIGHT),
    Shape(dtype=EIGHT, right=0, heads=4, kv_heads=2, width=128),
    Shape(dtype=EIGHT, left=40, right=0, seq_q=203, seq_kv=77, width=48),
]


@pytest.mark.parametrize(
    ("shape", "pingpong", "when"),
    [(*each, when) for each, when in zip(product(FORMULA, (True, False)), cycle(WHEN), strict=False)],
    ids=str,
)
def test_the_kernel_computes_the_formula(kernel: Any, shape: Shape, pingpong: bool, when: str) -> None:
    assert_formula(kernel, shape, pingpong, when)


@pytest.mark.slow
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("pingpong", [True, False])
@pytest.mark.parametrize("shape", FORMULA, ids=str)
def test_the_kernel_computes_the_formula_in_more_schedules(
    kernel: Any, shape: Shape, pingpong: bool, when: str
) -> None:
    for seed in range(3):
        assert_formula(kernel, shape, pingpong, when, seed)


def assert_formula(kernel: Any, shape: Shape, pingpong: bool, when: str, seed: int = 0) -> None:
    check(kernel, shape._replace(pingpong=pingpong), seed=seed, async_when=when)
    if not pingpong and not shape.eight:
        check_gradients(kernel, shape, seed=seed, async_when=when)


SHAPES = st.builds(
    Shape,
    seq_q=st.integers(1, 300),
    seq_kv=st.integers(1, 300),
    heads=st.sampled_from([2, 4]),
    kv_heads=st.sampled_from([1, 2]),
    batch=st.integers(1, 2),
    left=st.sampled_from([0, 1, 31, 64, 100, FAR]),
    right=st.sampled_from([0, 1, 31, 64, 100, FAR]),
    block_kv=st.sampled_from([32, 64]),
    stages=st.integers(1, 4),
    programs=st.integers(1, 7),
    resident=st.integers(1, 4),
    long_first=st.booleans(),
    pingpong=st.booleans(),
    block_q=st.sampled_from([32, 64]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    width=st.sampled_from([16, 64]),
)


few_and_many = pytest.mark.parametrize("examples", [8, pytest.param(200, marks=pytest.mark.slow)])
drawn_shapes = given(shape=SHAPES, seed=st.integers(0, 2**16), when=st.sampled_from(WHEN))


@few_and_many
@pytest.mark.parametrize("dtype", [None, EIGHT], ids=["16 bits", "8 bits"])
def test_any_shape_and_schedule(kernel: Any, examples: int, dtype: torch.dtype | None) -> None:
    @settings(deadline=None, max_examples=examples)
    @drawn_shapes
    def check_one(shape: Shape, seed: int, when: str) -> None:
        check(kernel, shape._replace(dtype=dtype or shape.dtype), seed=seed, async_when=when)

    check_one()


@few_and_many
def test_gradients_of_any_shape_and_schedule(kernel: Any, examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @drawn_shapes
    def check_one(shape: Shape, seed: int, when: str) -> None:
        check_gradients(kernel, shape, seed=seed, async_when=when)

    check_one()


drawn_packs = given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4),
    spare=st.integers(0, 40),
    seed=st.integers(0, 2**16),
    when=st.sampled_from(WHEN),
    stages=st.integers(1, 3),
)


@few_and_many
def test_packed_sequences_and_nan_in_padding(kernel: Any, examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @drawn_packs
    def check_one(lengths: list[int], spare: int, seed: int, when: str, stages: int) -> None:
        tokens = sum(lengths) + spare
        if tokens == 0:
            return
        shape = Shape(seq_q=tokens, seq_kv=tokens, stages=stages)
        q, k, v = drawn(shape, seed)
        k[:, :, sum(lengths) :], v[:, :, sum(lengths) :] = torch.nan, torch.nan
        check(kernel, shape, listed=packed(lengths, spare), seed=seed, async_when=when, tensors=(q, k, v))

    check_one()


drawn_bounds = given(
    bounds=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=130, max_size=130),
    seed=st.integers(0, 2**16),
)


@few_and_many
def test_any_intervals(kernel: Any, examples: int) -> None:
    @settings(deadline=None, max_examples=examples)
    @drawn_bounds
    def check_one(bounds: list[tuple[int, int]], seed: int) -> None:
        low, high = (torch.tensor(side, dtype=torch.int32) for side in zip(*bounds, strict=True))
        listed = torch.stack([low, high, high])[:, None].contiguous()
        check(kernel, Shape(seq_q=130, seq_kv=90), listed=listed, seed=seed)

    check_one()


def test_batches_have_intervals_of_their_own(kernel: Any) -> None:
    listed = torch.cat([packed([100, 30], 0), packed([7, 80], 43)], 1)
    check(kernel, Shape(seq_q=130, seq_kv=130, batch=2), listed=listed)


@pytest.mark.slow
def test_no_fault_is_seen_without_a_bug(kernel: Any) -> None:
    assert notices(kernel) == ""


def test_the_document_counts_the_bugs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hopper.md").read_text(encoding="utf-8")
    assert f"{len(BUGS)} seeded bugs" in text


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_noticed(name: str) -> None:
    right, wrong = BUGS[name]
    assert notices(load(right, wrong), changed(right)) != ""
