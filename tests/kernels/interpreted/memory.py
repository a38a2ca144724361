"""What the kernels read and write: empty rows, padding, poisoned memory, strides, the order and size of tiles.

Started by `test_triton_kernels.py`, in a process of its own.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench import kernels
from attnbench.kernels import Kernel
from tests.kernels.interpreted.formula import Shape, assert_right, band, inputs, normal, slow, small_tilings


def test_rows_that_see_no_key_give_zero_and_no_gradient() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in inputs(Shape(heads=1, seq_q=50, seq_kv=20)))
    out, lse = kernels.attention(q, k, v, causal=True, return_lse=True, tilings=small_tilings())
    dq, dk, dv = torch.autograd.grad(out.sum() + lse[:, :, 30:].sum(), (q, k, v))
    assert not out[:, :, :30].any()
    assert (lse[:, :, :30] == -math.inf).all()
    assert not dq[:, :, :30].any()
    assert all(gradient.isfinite().all() for gradient in (dq, dk, dv))


def test_no_key_at_all_gives_zero() -> None:
    out, lse = kernels.attention(*inputs(Shape(seq_q=20, seq_kv=0)), return_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()


def test_no_query_gives_an_empty_output() -> None:
    out, lse = kernels.attention(*inputs(Shape(batch=2, seq_q=0, seq_kv=20, head_dim_v=24)), return_lse=True)
    assert out.shape == (2, 2, 0, 24)
    assert lse.shape == (2, 2, 0)


def test_keys_in_padding_are_not_read() -> None:
    q, k, v = inputs(Shape(batch=2, seq_q=20, seq_kv=40))
    dout = normal(2, 2, 20, 16)

    def run(path: str) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        ends = torch.tensor([[25] * 20, [16] * 20])
        mask = kernels.rows(torch.zeros_like(ends), ends, seq_kv=40)
        out = kernels.attention(*leaves, mask=mask, tilings=small_tilings(path=path))
        return [out.detach(), *torch.autograd.grad(out, leaves, dout)]

    expected = run("portable")
    for b, length in enumerate((25, 16)):
        k[b, :, length:] = math.nan
        v[b, :, length:] = math.nan
    for path in ("portable", "descriptors"):
        assert all(torch.equal(one, other) for one, other in zip(run(path), expected, strict=True))


def test_all_memory_that_is_handed_out_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, gradients and workspaces hold NaN before the launch."""
    real = {name: getattr(place, name) for place, name in ((Tensor, "new_empty"), (torch, "empty"))}

    def poisoned(maker: Any) -> Any:
        return lambda *sizes, **options: maker(*sizes, **options).fill_(math.nan)

    monkeypatch.setattr(Tensor, "new_empty", poisoned(real["new_empty"]))
    monkeypatch.setattr(torch, "empty", poisoned(real["empty"]))
    shape = Shape(batch=2, heads=4, kv_heads=2, seq_q=21, seq_kv=25, head_dim=24, head_dim_v=40)
    sinks, bias = normal(4), normal(1, 4, 21, 25)
    tilings = small_tilings() | {Kernel.BACKWARD_KV: small_tilings(parts=2)[Kernel.BACKWARD_KV]}
    assert_right(shape, band(21, 25, right=0), bias=bias, sinks=sinks, through_lse=True, tilings=tilings, causal=True)


ONE_HEAD = "one head for all"
STRIDES = {
    "seq before heads": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "off an alignment": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    ONE_HEAD: lambda t: t[:, :1].expand_as(t),
    "part of a wider tensor": lambda t: torch.cat([t + 1, t, t - 1], 3)[..., t.shape[3] : 2 * t.shape[3]],
}


def changed(change: Any) -> list[Tensor]:
    """q, k, v and dout."""
    given_ = inputs(Shape(batch=2, kv_heads=2, seq_q=17, seq_kv=25, head_dim_v=24))
    return [change(tensor) for tensor in (*given_, normal(2, 2, 17, 24))]


def causal_results(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    out = kernels.attention(*leaves, causal=True, tilings=small_tilings())
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


@cache
def of_contiguous(one_head: bool) -> list[Tensor]:
    """What tensors of any strides must give."""
    return causal_results(*changed(lambda t: STRIDES[ONE_HEAD](t).contiguous() if one_head else t))


@pytest.mark.parametrize("name", STRIDES)
def test_strides_do_not_matter(name: str) -> None:
    found = causal_results(*changed(STRIDES[name]))
    assert all(torch.equal(one, other) for one, other in zip(found, of_contiguous(name == ONE_HEAD), strict=True))


def test_the_output_lies_as_q_lies() -> None:
    q, k, v = (STRIDES["seq before heads"](tensor) for tensor in inputs(Shape(kv_heads=2, head_dim_v=24)))
    assert kernels.attention(q, k, v).transpose(1, 2).is_contiguous()
    assert kernels.attention(q.contiguous(), k, v).is_contiguous()


@pytest.fixture(scope="module")
def in_order() -> Tensor:
    """The output of tiles in their ordinary order."""
    out: Tensor = kernels.attention(*inputs(Shape(batch=2, heads=3)), causal=True, tilings=small_tilings())
    return out


@pytest.mark.parametrize("resident", [1, 2, 4, 50])
@pytest.mark.parametrize("long_first", [False, True])
def test_the_order_of_tiles_does_not_matter(resident: int, long_first: bool, in_order: Tensor) -> None:
    tilings = small_tilings(resident=resident, long_first=long_first)
    found = kernels.attention(*inputs(Shape(batch=2, heads=3)), causal=True, tilings=tilings)
    assert torch.equal(found, in_order)


@pytest.mark.parametrize(("block_q", "block_kv"), [(16, 64), (64, 16), (128, 32), (32, 128)])
def test_tiles_of_any_size(block_q: int, block_kv: int) -> None:
    shape = Shape(heads=1, seq_q=100, seq_kv=90)
    assert_right(shape, band(100, 90, 30, 5), tilings=small_tilings(block_q, block_kv), window=(30, 5))


@pytest.mark.parametrize("dtype", [slow(torch.float16), torch.bfloat16])
@pytest.mark.parametrize(
    "masks", [{}, slow({"causal": True}), slow({"window": (9, 3)}), {"mask": "document:3"}], ids=str
)
def test_descriptors_give_the_bits_that_pointers_give(dtype: torch.dtype, masks: dict[str, Any]) -> None:
    shape = Shape(batch=2, seq_q=35, seq_kv=35, head_dim=40, head_dim_v=24)
    results = []
    for path in ("portable", "descriptors"):
        leaves = [tensor.requires_grad_() for tensor in inputs(shape, dtype)]
        out = kernels.attention(*leaves, **masks, tilings=small_tilings(16, 32, path=path))
        results.append([out, *torch.autograd.grad(out, leaves, normal(2, 2, 35, 24).to(dtype))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
