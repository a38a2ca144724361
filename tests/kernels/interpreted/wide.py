"""Tensors that span more than 2^31 numbers, where an offset of 32 bits goes wrong. They use next to no memory.

In the interpreter, which looks for overflow here; `test_triton_kernels.py` starts it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench import kernels
from tests.kernels.interpreted.formula import Shape, differentiate, inputs, normal, small_tilings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("overflow_is_noticed")]

COUNT, APART = 9, 2**28  # the ninth starts at 2^31


def far(tensor: Tensor, dim: int) -> Tensor:
    """A copy whose entries along `dim` lie APART numbers from one another; memory between them is never touched."""
    strides = list(tensor.contiguous().stride())
    size = tensor.numel() // tensor.shape[dim]
    strides[:dim] = [APART] * dim
    strides[dim] = APART
    spread = tensor.new_empty((tensor.shape[dim] - 1) * APART + size).as_strided(tensor.shape, strides)
    return spread.copy_(tensor)


def shape_of(dim: int) -> Shape:
    return Shape(*((COUNT, 1, 1) if dim == 0 else (1, COUNT, COUNT)), seq_q=20, seq_kv=20)


def results(tensors: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out, lse = kernels.attention(*leaves, return_lse=True, tilings=small_tilings(32, 32), **options)
    return [out, lse, *differentiate(out, lse, leaves, through_lse=True)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "dim"), [("q", 1), ("k", 0), ("v", 1), ("q", 0), ("k", 1), ("v", 0)])
def test_inputs(name: str, dim: int) -> None:
    tensors = list(inputs(shape_of(dim), torch.float16))
    place = "qkv".index(name)
    moved = [far(tensor, dim) if index == place else tensor for index, tensor in enumerate(tensors)]
    assert_equal(results(moved, causal=True), results(tensors, causal=True))


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_booleans(dim: int) -> None:
    shape = shape_of(dim)
    shown = torch.rand(shape.batch, shape.heads, 20, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    tensors = list(inputs(shape))
    assert_equal(results(tensors, mask=far(shown, dim)), results(tensors, mask=shown))


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_biases(dim: int) -> None:
    shape = shape_of(dim)
    bias = normal(shape.batch, shape.heads, 20, 20).half()
    tensors = list(inputs(shape))
    assert_equal(results(tensors, bias=far(bias, dim)), results(tensors, bias=bias))


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "heads"])
def test_caches(dim: int) -> None:
    q, k, v = inputs(shape_of(dim), torch.float16)
    q = q[:, :, :2]
    assert torch.equal(kernels.decode(q, far(k, dim), far(v, dim)), kernels.decode(q, k, v))


def test_pages() -> None:
    q, table = normal(1, 2, 1, 16).half(), torch.arange(COUNT, dtype=torch.int32).flip(0)[None]
    k, v = (normal(COUNT, 16, 1, 16, seed=seed).half() for seed in (1, 2))
    expected = kernels.decode(q, k, v, page_table=table)
    assert torch.equal(kernels.decode(q, far(k, 0), far(v, 0), page_table=table), expected)


@pytest.mark.parametrize("window", [2**31 - 1, 2**40], ids=str)
def test_windows(window: int) -> None:
    tensors = inputs(Shape())
    assert torch.equal(kernels.attention(*tensors, window=window), kernels.attention(*tensors))
