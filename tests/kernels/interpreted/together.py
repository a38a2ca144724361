"""Features with one another, in 16 bits, by the paths that nobody asked for, and with numbers that are hard.

In the interpreter; `test_triton_kernels.py` starts it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench import kernels
from tests.kernels.interpreted.attention import FEATURES, spread
from tests.kernels.interpreted.formula import (  # fmt: skip
    EVERYTHING,
    Shape,
    assert_lse,
    assert_right,
    attend,
    band,
    computed,
    differentiate,
    inputs,
    normal,
    small_tilings,
)

pytestmark = pytest.mark.slow  # `pairs.py` has every pair of features
SHAPE = Shape(seq_q=33)
BLOCKS = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]]).bool()

FEW: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window": (6, 0)},
    "softcap": {"scores": {"softcap": 4.0}},
    "alibi": {"scores": {"alibi_slopes": normal(4).abs()}},
    "sinks": {"sinks": normal(4)},
}


@pytest.mark.parametrize("name", FEW)
def test_gradients_behind_a_decoded_forward_pass(name: str) -> None:
    left, right = FEW[name].get("window", (EVERYTHING, EVERYTHING))
    visible = band(7, 50, left, 0 if name == "causal" else right)
    facts: dict[str, Any] = {}
    shape = Shape(batch=2, heads=4, kv_heads=2, seq_q=7, seq_kv=50, head_dim=24, head_dim_v=40)
    assert_right(shape, visible, through_lse=True, tilings={}, facts=facts, **FEW[name])
    assert facts["path"] == "decode"
    assert (facts["backward_kv"]["path"], facts["backward_q"]["path"]) == ("portable", "portable")


@pytest.mark.parametrize("name", ["window", "bias", "sinks", "dropout", "blocks"])
def test_default_tiles(name: str) -> None:
    options = FEATURES[name]
    visible = band(33, 40, *options.get("window", (EVERYTHING, EVERYTHING)))
    if "mask" in options:
        visible = visible & spread(BLOCKS, 16)[:33, :40]
    assert_right(SHAPE, visible, through_lse=True, tilings={}, **options)


def test_the_lists_of_rows_are_searched_to_their_end() -> None:
    # More rows than one step of the search takes; the last keys are seen by the last rows alone.
    row = torch.arange(1100)
    low, high = (row // 50)[None], (row // 50 + 3)[None]
    key = torch.arange(24)
    visible = (key >= low[0][:, None]) & (key < high[0][:, None])
    mask = kernels.rows(low, high, seq_kv=24)
    assert_right(Shape(heads=1, seq_q=1100, seq_kv=24), visible, tilings=small_tilings(128, 16), mask=mask)


# -- descriptors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "blocks"])
def test_descriptors_give_the_bits_that_pointers_give(name: str) -> None:
    options = {**FEATURES[name]}
    tensors = [*inputs(SHAPE, torch.float16), options.pop("bias", None), options.pop("sinks", None)]
    scores = options.pop("scores", {})
    results = []
    for path in ("portable", "descriptors"):
        facts: dict[str, Any] = {}

        def run(q: Tensor, k: Tensor, v: Tensor, bias: Any, sinks: Any, path: str = path, facts: Any = facts) -> Any:
            return kernels.attention(
                q,
                k,
                v,
                bias=bias,
                sinks=sinks,
                return_lse=True,
                facts=facts,
                tilings=small_tilings(path=path),
                **options,
                **scores,
            )

        results.append(computed(run, tensors, None, through_lse=True))
        assert facts["path"] == facts["backward_q"]["path"] == facts["backward_kv"]["path"] == path
    one, other = results
    assert torch.equal(one.out, other.out)
    assert torch.equal(one.lse, other.lse)
    assert all(torch.equal(a, b) for a, b in zip(one.gradients, other.gradients, strict=True))


UNDESCRIBED = {
    "shared heads": (
        lambda t: t[:, :1].expand_as(t),
        "q has a stride of 0 elements, not a positive multiple of 16 bytes",
    ),
    "odd rows": (lambda t: torch.cat([t, t[..., :1]], 3)[..., :16], "q has a stride of 578 elements"),
    "odd start": (
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
        "the address of q is not a multiple of",
    ),
}


@pytest.mark.parametrize(("change", "reason"), UNDESCRIBED.values(), ids=UNDESCRIBED.keys())
def test_what_no_descriptor_describes_is_an_error_if_asked_for(change: Any, reason: str) -> None:
    q, k, v = inputs(Shape(kv_heads=2, seq_q=17), torch.float16)
    with pytest.raises(ValueError, match=f"path='descriptors' is not supported here: {reason}"):
        kernels.attention(change(q), k, v, path="descriptors")
    facts: dict[str, Any] = {}
    kernels.attention(change(q), k, v, facts=facts)
    assert facts["path"] == "portable"
    assert facts["passed_over"][2].startswith(f"descriptors: {reason}")


# -- hard numbers ---------------------------------------------------------------------------------------------------

LARGE = {
    "logits of thousands": lambda q, k: (q * 300, k * 30),
    "one huge key": lambda q, k: (q, torch.cat([k[:, :, :7], k[:, :, 7:8] * 1e4, k[:, :, 8:]], 2)),
    "all keys equal": lambda q, k: (q, k[:, :, :1].expand_as(k)),
    "all zero": lambda q, k: (q * 0, k * 0),
}


@pytest.mark.parametrize("change", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_gradients_of_large_and_equal_logits(change: Any, dtype: torch.dtype) -> None:
    q, k, v = inputs(Shape(heads=1), dtype)
    given = [*change(q, k), v]

    def kernel(*three: Tensor) -> Any:
        return kernels.attention(*three, causal=True, return_lse=True, tilings=small_tilings())

    def formula(*three: Tensor) -> Any:
        return attend(*three, None, None, visible=band(40, 40, right=0))

    found = computed(kernel, given, None, through_lse=False).gradients
    exact, plain = (computed(formula, given, kind, through_lse=False).gradients for kind in (torch.float64, dtype))
    largest = (given[0].double() @ given[1].double().transpose(2, 3)).abs().max() / 4
    # Weights are made again from the log-sum-exp: its last digit, where it is of thousands, is a thousandth of them.
    room = 32 * torch.finfo(torch.float32).eps * max(1, largest)
    for one, true, rounded in zip(found, exact, plain, strict=True):
        assert (one.double() - true).abs().max() <= 2 * (rounded.double() - true).abs().max() + room


def test_a_bias_of_minus_infinity_hides_as_a_mask_does() -> None:
    shown = torch.rand(1, 2, 33, 40, generator=torch.Generator().manual_seed(1)) < 0.2
    shown[:, :, 5] = False
    bias = torch.zeros_like(shown, dtype=torch.float32).masked_fill(~shown, -math.inf)
    results = []
    for options in ({"bias": bias}, {"mask": shown}):
        leaves = [tensor.requires_grad_() for tensor in inputs(SHAPE)]
        out, lse = kernels.attention(*leaves, return_lse=True, tilings=small_tilings(), **options)
        results.append([out, lse, *differentiate(out, lse, leaves, through_lse=True)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (results[0][1][:, :, 5] == -math.inf).all()


def test_the_gradient_of_a_bias_of_minus_infinity_is_zero() -> None:
    shown = band(33, 40, 9, 3)
    bias = torch.zeros(1, 1, 33, 40).masked_fill(~shown, -math.inf).requires_grad_()
    out = kernels.attention(*inputs(SHAPE), bias=bias, tilings=small_tilings())
    (dbias,) = torch.autograd.grad(out.square().sum(), bias)
    assert dbias[0, 0][shown].abs().max() > 0.01
    assert not dbias[0, 0][~shown].any()


def test_biases_and_booleans_of_any_strides() -> None:
    q, k, v = inputs(Shape(batch=2, seq_q=33))
    bias, shown = normal(2, 2, 33, 40), torch.rand(2, 2, 33, 40) < 0.5
    expected = kernels.attention(q, k, v, bias=bias, mask=shown, tilings=small_tilings())
    changes = (
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
        lambda t: torch.cat([t, t], 3)[..., :40],
    )
    for change in changes:
        found = kernels.attention(q, k, v, bias=change(bias), mask=change(shown), tilings=small_tilings())
        assert torch.equal(found, expected)


def test_slopes_biases_and_lists_may_be_parts_of_others() -> None:
    q, k, v = inputs(Shape(batch=2, seq_q=33))
    slopes, sinks, steps = normal(2, 4).abs(), normal(4), normal(4, 72)
    whole = kernels.attention(
        q, k, v, alibi_slopes=slopes[:, ::2].contiguous(), sinks=sinks[::2].contiguous(), bias=steps[::2].contiguous()
    )
    assert torch.equal(
        kernels.attention(q, k, v, alibi_slopes=slopes[:, ::2], sinks=sinks[::2], bias=steps[::2]), whole
    )


def test_sinks_have_a_gradient_where_there_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *sizes, **options: real(*sizes, **options).fill_(math.nan))
    q, k, v = inputs(Shape(seq_kv=0))
    sinks = normal(2).requires_grad_()
    out, lse = kernels.attention(q, k, v, sinks=sinks, return_lse=True)
    assert not out.any()
    assert torch.equal(lse, sinks.detach()[None, :, None].expand_as(lse))
    # The log-sum-exp of every row is the sink itself.
    assert torch.equal(torch.autograd.grad(lse.sum(), sinks)[0], torch.tensor([40.0, 40.0]))


def test_a_cut_that_does_not_fit_a_list_is_an_error() -> None:
    mask = kernels.blocks(torch.ones(1, 1, 3, 3, dtype=torch.bool), 16, 16)
    with pytest.raises(ValueError, match="block_q=32"):
        kernels.attention(*inputs(Shape()), mask=mask, tilings=small_tilings(32, 32))


def test_a_cut_that_cannot_serve_is_an_error() -> None:
    with pytest.raises(ValueError, match="its kernel does not support an additive bias"):
        kernels.attention(*inputs(Shape(seq_q=4)), bias=normal(1, 1, 4, 40), tilings=small_tilings(path="decode"))


def test_every_call_gives_the_same_bits() -> None:
    options = {"causal": True, "softcap": 9.0, "dropout": 0.2, "seed": 3, "tilings": small_tilings()}

    def once() -> list[Tensor]:
        leaves = [tensor.requires_grad_() for tensor in inputs(Shape(heads=4, kv_heads=2, seq_q=20))]
        more = {"bias": normal(1, 4, 20, 40).requires_grad_(), "sinks": normal(4).requires_grad_()}
        out, lse = kernels.attention(*leaves, **more, return_lse=True, **options)
        return [out, lse, *differentiate(out, lse, [*leaves, *more.values()], through_lse=True)]

    first = once()
    assert all(torch.equal(one, other) for one, other in zip(first, once(), strict=True))


def test_the_last_seed_there_is_drops_as_the_reference_does() -> None:
    assert_right(Shape(heads=1, seq_q=20), band(20, 40), scores={"dropout": 0.5, "seed": 2**63 - 1})


def test_as_many_weights_are_dropped_as_asked_for() -> None:
    """Values that are the keys' own unit vectors show the weights themselves."""
    q, k = torch.zeros(1, 4, 100, 16), torch.zeros(1, 4, 100, 16)
    v = torch.eye(100).expand(1, 4, 100, 100)
    shown = [kernels.attention(q, k, v, dropout=0.3, seed=seed, tilings=small_tilings(64, 64)) != 0 for seed in (1, 2)]
    assert all(abs((~one).float().mean() - 0.3) < 0.01 for one in shown)
    # Two seeds agree as often as chance has it: 0.3^2 + 0.7^2.
    assert abs((shown[0] == shown[1]).float().mean() - 0.58) < 0.01


def test_the_lse_alone_may_be_asked_for_its_gradient() -> None:
    q, k, v = (tensor.requires_grad_() for tensor in inputs(SHAPE))
    _, lse = kernels.attention(q, k, v, causal=True, return_lse=True, tilings=small_tilings())
    found = torch.autograd.grad(lse.sum(), (q, k, v))
    q64, k64, v64 = (tensor.detach().double().requires_grad_() for tensor in (q, k, v))
    _, exact = attend(q64, k64, v64, None, None, visible=band(33, 40, right=0))
    assert_lse(lse.detach(), exact.detach(), torch.float32)
    for one, other in zip(found[:2], torch.autograd.grad(exact.sum(), (q64, k64)), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    assert not found[2].any()
