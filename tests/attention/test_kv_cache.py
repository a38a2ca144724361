"""Formats of a quantised KV cache, against a plain implementation in numpy and bytes counted one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from attnbench import backends, cli
from attnbench.attention import cost, inputs
from attnbench.attention.choices import KvDtype, Mode
from attnbench.attention.kv_cache import quantized, stored_bytes
from attnbench.attention.problem import Problem
from attnbench.backends import scope
from attnbench.errors import ProblemError
from attnbench.records.case import Case

Array = NDArray[np.float64]
SCHEMES = [kind for kind in KvDtype if kind is not KvDtype.SAME]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Every positive number of fp8_e4m3: 2^-6 (mantissa / 8) below the normal numbers; no infinity, and one NaN.
FP8 = np.array(
    [2.0**-6 * m / 8 for m in range(8)] + [2.0 ** (e - 7) * (1 + m / 8) for e in range(1, 16) for m in range(8)]
)[:-1]


def nearest(values: Array, grid: Array) -> Array:
    """The nearest number of a grid with either sign; of two the one whose place is even."""
    distances = np.abs(np.abs(values)[..., None] - grid)
    odd = np.arange(len(grid)) % 2
    places = np.lexsort((np.broadcast_to(odd, distances.shape), distances), axis=-1)[..., 0]
    return np.asarray(np.copysign(grid[places], values))


def blocks(tensor: Array, kind: KvDtype) -> Iterator[tuple[slice, ...]]:
    """The places of the numbers that share a scale."""
    if kind in (KvDtype.INT8_TENSOR, KvDtype.FP8_E4M3_TENSOR):
        yield (slice(None), slice(None))
        return
    width = 16 if kind is KvDtype.NVFP4 else tensor.shape[1]
    for row in range(tensor.shape[0]):
        for start in range(0, tensor.shape[1], width):
            yield (slice(row, row + 1), slice(start, start + width))


def plain(tensor: Array, kind: KvDtype) -> Array:
    """The round trip by the definition of the format, one block after the other."""
    result = np.zeros_like(tensor)
    whole = np.abs(tensor).max() / (6 * 448)
    for place in blocks(tensor, kind):
        block = tensor[place]
        largest = np.abs(block).max()
        if largest == 0:
            continue
        if kind is KvDtype.NVFP4:
            scale = float(nearest(np.array(largest / 6 / whole), FP8)) * whole
            result[place] = nearest(block / scale, FP4) * scale if scale else 0
        elif kind in (KvDtype.INT8, KvDtype.INT8_TENSOR):
            result[place] = np.round(block / (largest / 127)) * (largest / 127)
        else:
            result[place] = nearest(block / (largest / 448), FP8) * (largest / 448)
    return result


def test_the_grid_of_fp8_is_that_of_torch():
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert every.tolist() == FP8.tolist()


@settings(max_examples=40)
@given(
    kind=st.sampled_from(SCHEMES), rows=st.integers(1, 5), width=st.integers(1, 40), seed=st.integers(0, 2**31),
    zeros=st.booleans(),
)  # fmt: skip
def test_every_scheme_is_its_definition(kind: KvDtype, rows: int, width: int, seed: int, zeros: bool) -> None:
    generator = np.random.default_rng(seed)
    tensor = generator.standard_normal((rows, width)) * 10 ** generator.uniform(-3, 3, (rows, 1))
    if zeros:
        tensor[0] = 0
    tensor = tensor.astype(np.float32).astype(np.float64)
    ours = quantized(torch.from_numpy(tensor).float(), kind).double().numpy()
    # In float32 a number in the middle between two levels may go to either: compare the errors.
    wrong = np.abs(ours - plain(tensor, kind)) > 1e-5 * np.abs(tensor).max(axis=1, keepdims=True)
    ours_off, plain_off = (np.abs(rounded - tensor)[wrong] for rounded in (ours, plain(tensor, kind)))
    np.testing.assert_allclose(ours_off, plain_off, rtol=1e-3)


def test_numbers_between_two_of_nvfp4_go_to_the_even_one():
    ties = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.75, -5, 6, 0.3, 5.1, 0, 0, 0])
    even = np.array([0, 0, 1, 1, 2, 2, 4, 4, -1, -4, 6, 0.5, 6, 0, 0, 0])
    assert quantized(torch.from_numpy(ties).float() * 64, KvDtype.NVFP4).tolist() == (even * 64).tolist()
    assert nearest(ties, FP4).tolist() == even.tolist()


@pytest.mark.parametrize(
    ("kind", "rows", "width", "expected"),
    [
        ("int8", 3, 5, 3 * 5 + 3 * 4), ("fp8_e4m3", 3, 5, 3 * 5 + 3 * 4), ("int8:tensor", 3, 5, 3 * 5 + 4),
        ("fp8_e4m3:tensor", 3, 5, 3 * 5 + 4), ("nvfp4", 3, 128, 3 * 72 + 4), ("nvfp4", 3, 17, 3 * (9 + 2) + 4),
    ],
)  # fmt: skip
def test_bytes_of_each_scheme(kind: str, rows: int, width: int, expected: int) -> None:
    assert stored_bytes(KvDtype(kind), rows, width) == expected


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize(("width", "width_v"), [(32, 48), (20, 7)])
def test_bytes_of_a_cache_are_those_of_its_numbers_and_scales(kind: KvDtype, width: int, width_v: int) -> None:
    """Numbers and scales that some query sees are counted one by one, scales by the blocks of the definition."""
    problem = Problem(
        seq_q=2, seq_kv=9, batch=2, heads=4, kv_heads=2, head_dim=width, head_dim_v=width_v, mask="causal+window:3",
        kv_dtype=kind,
    )  # fmt: skip
    rows = 2 * 2 * 5
    of_scale = 1 if kind is KvDtype.NVFP4 else 4
    total = 0
    for each in (width, width_v):
        scales = sum(1 for _ in blocks(np.zeros((rows, each)), kind))
        numbers = rows * -(-each // 2) if kind is KvDtype.NVFP4 else rows * each
        total += numbers + of_scale * scales + (4 if kind is KvDtype.NVFP4 else 0)
    q_and_out = 2 * 2 * 4 * (width + width_v) * 4
    assert cost.traffic_bytes(problem, Mode.FWD) == q_and_out + total


def test_schemes_change_the_keys_and_values_and_nothing_else():
    shape = {"seq_q": 7, "seq_kv": 11, "heads": 2, "head_dim": 32}
    wide = inputs.make(Problem(**shape), 0)
    errors = {}
    for kind in SCHEMES:
        narrow = inputs.make(Problem(**shape, kv_dtype=kind), 0)
        assert torch.equal(wide.q, narrow.q)
        assert torch.equal(narrow.k, quantized(wide.k, kind))
        errors[kind] = float((narrow.v - wide.v).norm() / wide.v.norm())
    assert errors["int8"] < errors["int8:tensor"] < errors["fp8_e4m3"] < errors["nvfp4"] < 0.2


def test_a_scheme_is_an_axis_and_a_call_says_that_it_is_simulated(capsys):
    options = ["--seq", "32", "--set", "kv_dtype=nvfp4,int8:tensor", "-b", "naive", "--device", "cpu"]
    assert cli.invoke(["run", *options, "--dry-run", "--json"]) == 0, capsys.readouterr().err
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = {each["label"].split("kv_dtype=")[1].split()[0] for each in planned if each["type"] == "case"}
    assert kinds == {"nvfp4", "int8:tensor"}
    case = Case(problem=Problem(seq_q=4, kv_dtype="int8:tensor"), backend="naive")
    fact = scope.prepare(backends.load("naive"), case, "cpu").facts["kv"]
    assert fact == "int8:tensor simulated: read back as fp32 before the call"
    with pytest.raises(ProblemError, match=r"kv_dtype='int4': must be one of same, int8, .*nvfp4"):
        Problem(seq_q=4, kv_dtype="int4")
