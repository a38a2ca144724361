"""The forward and backward kernels in Triton's interpreter, against float64 in plain torch.

TRITON_INTERPRET is read when a kernel is decorated, so these tests need a process of their own, which
`test_triton_kernels.py` starts; no collection finds this file by itself.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import kernels
from attnbench.kernels import Kernel
from tests.kernels.interpreted.formula import (  # fmt: skip
    DTYPES,
    EVERYTHING,
    Shape,
    assert_lse,
    assert_right,
    attend,
    band,
    inputs,
    near,
    normal,
    small_tilings,
)

pytestmark = pytest.mark.slow  # one feature at a time; `pairs.py` has every pair of features
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@every_dtype
@pytest.mark.parametrize("causal", [False, True])
def test_every_dtype(dtype: torch.dtype, causal: bool) -> None:
    shape = Shape(heads=4, kv_heads=2, seq_q=64, seq_kv=70, head_dim=32, head_dim_v=32)
    assert_right(shape, band(64, 70, right=0 if causal else EVERYTHING), dtype, causal=causal)


LENGTHS = [(1, 1), (1, 45), (45, 1), (16, 48), (33, 70), (70, 33), (100, 99), (64, 128), (113, 203)]


@pytest.mark.parametrize(("seq_q", "seq_kv"), LENGTHS)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths_that_fit_no_tile(seq_q: int, seq_kv: int, causal: bool) -> None:
    shape = Shape(heads=1, seq_q=seq_q, seq_kv=seq_kv)
    large = small_tilings(32, 32) if seq_q > 100 else None
    assert_right(shape, band(seq_q, seq_kv, right=0 if causal else EVERYTHING), tilings=large, causal=causal)


@pytest.mark.parametrize("window", [(0, 0), (5, 3), (20, 40), (40, 0), (-1, 7), (7, -1)])
@pytest.mark.parametrize(("seq_q", "seq_kv"), [(70, 70), (33, 70), (70, 33)])
def test_windows(window: tuple[int, int], seq_q: int, seq_kv: int) -> None:
    left, right = (EVERYTHING if side == -1 else side for side in window)
    assert_right(Shape(heads=1, seq_q=seq_q, seq_kv=seq_kv), band(seq_q, seq_kv, left, right), window=window)


def test_one_number_is_a_window_to_both_sides() -> None:
    assert_right(Shape(), band(40, 40, 6, 6), window=6)


def test_causal_cuts_a_window_at_the_diagonal() -> None:
    assert_right(Shape(seq_q=50, seq_kv=50), band(50, 50, 9, 0), window=9, causal=True)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 2), (4, 1), (3, 3)])
def test_query_heads_share_key_heads(heads: int, kv_heads: int) -> None:
    assert_right(Shape(batch=2, heads=heads, kv_heads=kv_heads), band(40, 40, right=0), causal=True)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_of_shared_keys_may_be_summed_in_parts(parts: int) -> None:
    tilings = small_tilings() | {Kernel.BACKWARD_KV: small_tilings(parts=parts)[Kernel.BACKWARD_KV]}
    shape = Shape(batch=2, heads=8, kv_heads=2, seq_q=30)
    assert_right(shape, band(30, 40, right=0), torch.float16, tilings=tilings, causal=True)


WIDTHS = [(16, 64), (8, 1), (40, 24), (41, 41), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)]


@pytest.mark.parametrize(("head_dim", "head_dim_v"), WIDTHS)
def test_head_dims(head_dim: int, head_dim_v: int) -> None:
    shape = Shape(heads=1, seq_q=20, seq_kv=36, head_dim=head_dim, head_dim_v=head_dim_v)
    assert_right(shape, band(20, 36, right=0), causal=True)


@pytest.mark.parametrize("scale", [0.3, 1.0, 0.0, -0.5])
def test_any_scale(scale: float) -> None:
    assert_right(Shape(heads=1), band(40, 40, right=0), causal=True, scores={"scale": scale})


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
@every_dtype
def test_softcap(softcap: float, dtype: torch.dtype) -> None:
    assert_right(Shape(heads=1), band(40, 40, right=0), dtype, causal=True, scores={"softcap": softcap})


@pytest.mark.parametrize("slopes", [normal(4).abs(), normal(2, 4).abs(), normal(1, 4)], ids=["head", "both", "one"])
def test_alibi(slopes: Tensor) -> None:
    shape = Shape(batch=2, heads=4, seq_q=30, seq_kv=50)
    assert_right(shape, band(30, 50, right=0), causal=True, scores={"alibi_slopes": slopes})


BIASES = [
    (2, 1, 30, 50),
    (2, 4, 30, 1),
    (1, 79),
    (2, 4, 30, 50),
    (1, 4, 30, 50),
    (1, 1, 30, 50),
    (1, 1, 1, 50),
    (4, 79),
]


@pytest.mark.parametrize("sizes", BIASES, ids=str)
def test_a_bias_and_its_gradient(sizes: tuple[int, ...]) -> None:
    shape = Shape(batch=2, heads=4, kv_heads=2, seq_q=30, seq_kv=50)
    assert_right(shape, band(30, 50, right=0), bias=normal(*sizes), causal=True)


@every_dtype
def test_a_bias_in_the_dtype_of_the_rest(dtype: torch.dtype) -> None:
    assert_right(Shape(), band(40, 40), dtype, bias=normal(1, 2, 40, 40).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sinks_and_their_gradient(dtype: torch.dtype) -> None:
    sinks = torch.tensor([1.0, -2.0, 30.0, 0.0]).to(dtype)
    shape = Shape(batch=2, heads=4, kv_heads=2, seq_q=50, seq_kv=30)
    assert_right(shape, band(50, 30, right=0), dtype, sinks=sinks, through_lse=True, causal=True)


def test_gradients_flow_through_the_lse() -> None:
    assert_right(Shape(seq_q=50, seq_kv=30), band(50, 30, right=0), through_lse=True, causal=True)


@pytest.mark.parametrize(("rate", "seed"), [(0.1, 0), (0.5, 1), (0.9, 2**40 + 3)])
def test_dropout_is_that_of_the_reference(rate: float, seed: int) -> None:
    shape = Shape(batch=2, heads=4, kv_heads=2, seq_q=30, seq_kv=50)
    assert_right(shape, band(30, 50, right=0), causal=True, scores={"dropout": rate, "seed": seed})


FEATURES: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "window": {"window": (13, 4)},
    "softcap": {"scores": {"softcap": 4.0}},
    "alibi": {"scores": {"alibi_slopes": torch.tensor([0.5, 0.1])}},
    "bias": {"bias": normal(1, 2, 33, 40)},
    "by distance": {"bias": normal(2, 72)},
    "sinks": {"sinks": torch.tensor([0.3, 1.0])},
    "dropout": {"scores": {"dropout": 0.3, "seed": 5}},
    "blocks": {"mask": kernels.blocks(torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]]).bool()[None, None], 16, 16)},
}


def spread(tiles: Tensor, size: int) -> Tensor:
    """Every tile as `size` x `size` pairs."""
    return tiles.repeat_interleave(size, -2).repeat_interleave(size, -1)


@pytest.mark.parametrize(("block_q", "block_kv"), [(16, 16), (16, 32), (32, 16)])
def test_lists_of_blocks(block_q: int, block_kv: int) -> None:
    tiles = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.4
    visible = tiles.repeat_interleave(32, 2).repeat_interleave(32, 3)[:, :, :100, :120]
    shape = Shape(batch=2, seq_q=100, seq_kv=120)
    assert_right(shape, visible, tilings=small_tilings(block_q, block_kv), mask=kernels.blocks(tiles, 32, 32))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_any_mask_of_booleans(sizes: tuple[int, int]) -> None:
    shown = torch.rand(*sizes, 40, 45, generator=torch.Generator().manual_seed(2)) < 0.05
    assert_right(Shape(batch=2, seq_q=40, seq_kv=45), shown, mask=shown)


TEXTS = [
    "prefix:13",
    "causal+document:4",
    "causal+padding:0.4",
    "longformer:8:2",
    "causal+blocksparse:0.5:16",
    "document:3-30-17",
    "causal+window:7",
    "padding:0.4",
    "dilated:3",
    "graph:0.2",
    "dense+causal",
    "blockdiffusion:5",
    "sta:2:5",
]


@pytest.mark.parametrize("text", TEXTS)
def test_masks_by_text(text: str) -> None:
    from attnbench.attention.masks import parse
    from attnbench.attention.terms import Grid

    visible = torch.from_numpy(parse(text).dense(Grid(3, 50, 50)))[:, None]
    assert_right(Shape(batch=3, heads=1, seq_q=50, seq_kv=50), visible, mask=text)


def test_intervals_of_rows_and_causal_hold_together() -> None:
    low, high = torch.tensor([[5] * 50]), torch.tensor([[31] * 50])
    key = torch.arange(50)
    visible = (key >= 5) & (key < 31) & band(50, 50, right=0)
    mask = kernels.rows(low, high, seq_kv=50)
    assert_right(Shape(seq_q=50, seq_kv=50), visible, mask=mask, causal=True)


PACKS = [([0, 20, 20, 55, 60], [0, 33, 40, 80, 81]), ([0, 16, 32, 60], [0, 16, 32, 81]), ([0, 60], [0, 0])]


@pytest.mark.parametrize(("ends_q", "ends_kv"), PACKS)
@pytest.mark.parametrize("window", [None, (10, 0)])
def test_packed_sequences(ends_q: list[int], ends_kv: list[int], window: tuple[int, int] | None) -> None:
    q, k, v = (normal(n, h, 16, seed=s).requires_grad_() for s, (n, h) in enumerate([(60, 4), (81, 2), (81, 2)]))
    slopes, spans = normal(4).abs(), list(zip(ends_q, ends_q[1:], ends_kv, ends_kv[1:], strict=False))
    out, lse = kernels.attention(
        q, k, v, cu_seqlens_q=torch.tensor(ends_q), cu_seqlens_kv=torch.tensor(ends_kv), causal=True, window=window,
        alibi_slopes=slopes, return_lse=True, tilings=small_tilings(),
    )  # fmt: skip
    leaves = [t.detach().double().requires_grad_() for t in (q, k, v)]
    parts = []
    for first_q, last_q, first_k, last_k in spans:
        pieces = [t[a:b].transpose(0, 1)[None] for t, a, b in zip(leaves, (first_q, first_k, first_k), (last_q, last_k, last_k), strict=True)]  # noqa: E501  # fmt: skip
        visible = band(last_q - first_q, last_k - first_k, EVERYTHING if window is None else 10, 0)
        parts.append(attend(*pieces, None, None, visible=visible, alibi_slopes=slopes))
    exact = torch.cat([part[0][0].transpose(0, 1) for part in parts])
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=2e-6)
    assert_lse(lse.detach(), torch.cat([part[1][0] for part in parts], 1).detach(), torch.float32)
    dout = normal(*out.shape)
    for found, true in zip(
        torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(exact, leaves, dout.double()), strict=True
    ):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("path", ["portable", "descriptors", "decode"])
def test_fp8_with_scales_of_each_head(path: str) -> None:
    q, k, v = (
        t.to(torch.float8_e4m3fn) for t in inputs(Shape(heads=4, kv_heads=2, seq_q=9, head_dim=32, head_dim_v=32))
    )
    descale = normal(4).abs() + 0.5, normal(2, seed=1).abs() + 0.5, normal(2, seed=2).abs() + 0.5
    out, lse = kernels.attention(q, k, v, causal=True, descale=descale, return_lse=True, path=path)
    scaled = [t.double() * d[:, None, None].double() for t, d in zip((q, k, v), descale, strict=True)]
    exact, exact_lse = attend(*scaled, None, None, visible=band(9, 40, right=0))
    plain, _ = attend(*(t.bfloat16() for t in scaled), None, None, visible=band(9, 40, right=0))
    assert out.dtype is torch.bfloat16
    near("out", out, exact, plain, 2)
    assert_lse(lse, exact_lse, torch.bfloat16)


LARGE = {
    "logits of thousands": lambda q, k: (q * 300, k * 30),
    "one huge key": lambda q, k: (q, torch.cat([k[:, :, :7], k[:, :, 7:8] * 1e4, k[:, :, 8:]], 2)),
    "all keys equal": lambda q, k: (q, k[:, :, :1].expand_as(k)),
}


@pytest.mark.parametrize("change", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_large_and_equal_logits(change: Any, softcap: float | None) -> None:
    q, k, v = inputs(Shape(heads=1))
    q, k = change(q, k)
    scores = {"softcap": softcap} if softcap else {}
    out, lse = kernels.attention(q, k, v, causal=True, return_lse=True, tilings=small_tilings(), **scores)
    visible = band(40, 40, right=0)
    exact, exact_lse = attend(q.double(), k.double(), v.double(), None, None, visible=visible, **scores)
    near("out", out, exact, attend(q, k, v, None, None, visible=visible, **scores)[0], 3)
    assert_lse(lse, exact_lse, torch.float32)


def test_the_same_graph_twice_gives_the_same_bits() -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(Shape(heads=4, kv_heads=2))]
    sinks = normal(4).requires_grad_()
    out = kernels.attention(
        *leaves, causal=True, sinks=sinks, scale=0.3, softcap=9.0, dropout=0.2, seed=3, tilings=small_tilings()
    )
    twice = [torch.autograd.grad(out.sum(), [*leaves, sinks], retain_graph=True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*twice, strict=True))


REFUSED = [
    ({"path": "fast"}, "path='fast': must be one of decode, hopper, descriptors, portable"),
    ({"path": "descriptors"}, "path='descriptors' is not supported here: numbers of 32 bits"),
    ({"path": "decode", "dropout": 0.5}, "path='decode' is not supported here: its kernel does not support dropout"),
    ({"precision": "tf32"}, "precision='tf32': the interpreter computes in ieee float32"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_serve_is_an_error_with_its_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.attention(*inputs(Shape()), **options)


def test_gradients_that_do_not_exist_are_refused() -> None:
    q, k, v = inputs(Shape(seq_q=4))
    with pytest.raises(ValueError, match="decode has no backward pass"):
        kernels.decode(q.requires_grad_(), k, v)
    eight = [tensor.detach().to(torch.float8_e4m3fn) for tensor in (q, k, v)]
    with pytest.raises(ValueError, match="float8_e4m3fn: it has no backward pass"):
        kernels.attention(eight[0].requires_grad_(), *eight[1:], descale=(normal(2), normal(1), normal(1)))


def test_facts_say_what_ran_and_what_was_passed_over() -> None:
    facts: dict[str, Any] = {}
    kernels.attention(*inputs(Shape()), facts=facts)
    assert (facts["path"], facts["block_q"], facts["interpreted"]) == ("portable", 32, True)
    assert facts["passed_over"] == [
        "decode: slower: 40 queries, more than the 16 of decoding",
        "hopper: its kernels are in Gluon and for sm_90, not for interpreter",
        "descriptors: numbers of 32 bits go through registers anyway",
    ]


def t5(table: Tensor, seq_q: int, seq_kv: int, bidirectional: bool, most: int) -> Tensor:
    """The bias of T5 as its paper words it, one pair after the other: [heads, seq_q, seq_kv]."""
    count = len(table) // 2 if bidirectional else len(table)
    bias = torch.zeros(table.shape[1], seq_q, seq_kv, dtype=table.dtype)
    for i in range(seq_q):
        for j in range(seq_kv):
            ahead = j - (i + seq_kv - seq_q)
            back = abs(ahead) if bidirectional else max(-ahead, 0)
            step = back
            if back >= count // 2:
                growth = math.log(back / (count // 2)) / math.log(most / (count // 2))
                step = min(count // 2 + int(growth * (count - count // 2)), count - 1)
            bias[:, i, j] = table[step + (count if bidirectional and ahead > 0 else 0)]
    return bias


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_of_t5_and_the_gradient_of_its_table(bidirectional: bool) -> None:
    q, k, v = inputs(Shape(seq_q=30, seq_kv=50))
    tables = [normal(16, 2).to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64)]
    bias = kernels.t5_bias(tables[0], 30, 50, bidirectional=bidirectional, max_distance=20)
    out = kernels.attention(q, k, v, bias=bias, tilings=small_tilings())
    full = t5(tables[1], 30, 50, bidirectional, 20)
    exact, _ = attend(q.double(), k.double(), v.double(), full[None], None, visible=band(30, 50))
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=2e-6)
    (found,) = torch.autograd.grad(out.sum() + out.square().sum(), tables[0])
    (true,) = torch.autograd.grad(exact.sum() + exact.square().sum(), tables[1])
    torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_band_and_any_intervals(data: st.DataObject) -> None:
    seq_q, seq_kv = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    side = st.one_of(st.just(-1), st.integers(0, 50))
    left, right, causal = data.draw(side), data.draw(side), data.draw(st.booleans())
    bound = st.lists(st.integers(-3, seq_kv + 3), min_size=seq_q, max_size=seq_q)
    low, high = (torch.tensor([data.draw(bound)]) for _ in range(2))
    sides = [EVERYTHING if side == -1 else side for side in (left, right)]
    key = torch.arange(seq_kv)
    visible = band(seq_q, seq_kv, sides[0], 0 if causal else sides[1])
    listed = data.draw(st.booleans())
    if listed:
        visible = visible & ((key >= low[..., None]) & (key < high[..., None]))[:, None]
    mask = kernels.rows(low, high, seq_kv=seq_kv) if listed else None
    tiles = small_tilings(data.draw(st.sampled_from([16, 32])), data.draw(st.sampled_from([16, 32])))
    shape = Shape(heads=1, seq_q=seq_q, seq_kv=seq_kv)
    assert_right(shape, visible, window=(left, right), causal=causal, mask=mask, tilings=tiles)
