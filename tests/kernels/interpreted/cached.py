"""Decoding in the interpreter: splits, packed heads, pages. `test_triton_kernels.py` starts it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import kernels
from attnbench.kernels import Tiling
from tests.kernels.interpreted.formula import (  # fmt: skip
    DTYPES,
    EVERYTHING,
    Shape,
    assert_lse,
    attend,
    band,
    inputs,
    near,
    normal,
    slow,
)

LENGTHS = (200, 3, 77)  # the first is that of the cache


def decode_tiling(splits: int = 1, block_q: int = 16, block_kv: int = 16) -> Tiling:
    return Tiling(path="decode", block_q=block_q, block_kv=block_kv, warps=4, stages=1, splits=splits)


def paged(whole: Tensor, page: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[batch, kv_heads, seq_kv, width] in shuffled pages of NaN where nothing is, and the table of them."""
    batch, heads, seq, width = whole.shape
    count = -(-seq // page)
    order = torch.randperm(batch * count + 3, generator=torch.Generator().manual_seed(seed))
    table = order[: batch * count].reshape(batch, count).to(torch.int32)
    pages = torch.full((batch * count + 3, page, heads, width), math.nan, dtype=whole.dtype)
    for b in range(batch):
        for key in range(seq):
            pages[table[b, key // page], key % page] = whole[b, :, key]
    return pages, table


def assert_decoded(
    found: tuple[Tensor, Tensor], given_: tuple[Tensor, Tensor, Tensor], lengths: tuple[int, ...],
    window: tuple[int, int] | None = None, causal: bool = True, sinks: Tensor | None = None, **scores: Any,
) -> None:  # fmt: skip
    """Every sequence against float64, over the keys that it has."""
    (out, lse), (q, k, v) = found, given_
    left, right = window or (EVERYTHING, EVERYTHING)
    for b, length in enumerate(lengths):
        visible = band(q.shape[2], length, left, 0 if causal else right)
        one = [q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length]]
        exact = attend(*(t.double() for t in one), None, sinks, visible=visible, **scores)
        plain = attend(*one, None, sinks, visible=visible, **scores)
        near("out", out[b : b + 1], exact[0], plain[0], 3 if scores.get("softcap") else 2)
        assert_lse(lse[b : b + 1], exact[1], q.dtype)


def poisoned(tensor: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """NaN in the keys that a sequence does not have."""
    tensor = tensor.clone()
    for b, length in enumerate(lengths):
        tensor[b, :, length:] = math.nan
    return tensor


PAGES = [(16, 1), (16, 4), (32, 1), (48, 1), (48, 4), (64, 4), (256, 1), (256, 4)]
HEADS = [(1, 4, 4), (3, 8, 2), (16, 8, 1), (5, 6, 2), (1, 40, 1)]


@pytest.mark.slow  # `pairs.py` has each of them with some features
@pytest.mark.parametrize(("seq_q", "heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("splits", [1, 3, 7])
def test_splits_and_packed_heads(seq_q: int, heads: int, kv_heads: int, splits: int) -> None:
    made = inputs(Shape(3, heads, kv_heads, seq_q, LENGTHS[0], 24, 40))
    q, k, v = made[0], poisoned(made[1], LENGTHS), poisoned(made[2], LENGTHS)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    found = kernels.decode(q, k, v, kv_lengths=lengths, return_lse=True, tiling=decode_tiling(splits))
    assert_decoded(found, made, LENGTHS)


@pytest.mark.parametrize(("page", "splits"), [(32, 4), (64, 1), *(slow(*row) for row in PAGES)])
def test_pages_of_any_size(page: int, splits: int) -> None:
    made = inputs(Shape(3, 4, 2, 2, LENGTHS[0], 16, 24))
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    (k, table), (v, _) = paged(poisoned(made[1], LENGTHS), page), paged(poisoned(made[2], LENGTHS), page)
    found = kernels.decode(
        made[0], k, v, kv_lengths=lengths, page_table=table, return_lse=True, tiling=decode_tiling(splits, block_kv=32)
    )
    assert_decoded(found, made, LENGTHS)


def test_pages_give_the_bits_that_one_piece_gives() -> None:
    q, k, v = inputs(Shape(2, 4, 2, 3, 96))
    (pages_k, table), (pages_v, _) = paged(k, 16), paged(v, 16)
    one = kernels.decode(q, k, v, tiling=decode_tiling(2))
    assert torch.equal(kernels.decode(q, pages_k, pages_v, page_table=table, tiling=decode_tiling(2)), one)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_dtype(dtype: torch.dtype) -> None:
    made = inputs(Shape(2, 8, 2, 2, 130, 32, 32), dtype)
    assert_decoded(kernels.decode(*made, return_lse=True, tiling=decode_tiling(3)), made, (130, 130))


FEATURES: dict[str, dict[str, Any]] = {
    "window": {"window": (20, 0)},
    "not causal": {"causal": False},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": -0.3},
    "alibi": {"alibi_slopes": normal(4).abs()},
    "alibi of each sequence": {"alibi_slopes": normal(3, 4).abs()},
    "sinks": {"sinks": normal(4)},
    "everything": {"window": (30, 0), "softcap": 9.0, "alibi_slopes": normal(4).abs(), "sinks": normal(4)},
}


@pytest.mark.parametrize(
    "options",
    [options if name.startswith(("alibi of", "every")) else slow(options) for name, options in FEATURES.items()],
    ids=FEATURES.keys(),
)
@pytest.mark.parametrize("splits", [slow(1), 5])
def test_features(options: dict[str, Any], splits: int) -> None:
    made = inputs(Shape(3, 4, 2, 4, LENGTHS[0], 16, 16))
    found = kernels.decode(
        *made,
        kv_lengths=torch.tensor(LENGTHS, dtype=torch.int32),
        return_lse=True,
        tiling=decode_tiling(splits),
        **options,
    )
    for b in range(3):
        per_sequence = dict(options)
        if options.get("alibi_slopes") is not None and options["alibi_slopes"].ndim == 2:
            per_sequence["alibi_slopes"] = options["alibi_slopes"][b]
        one = tuple(tensor[b : b + 1] for tensor in made)
        assert_decoded(tuple(t[b : b + 1] for t in found), one, (LENGTHS[b],), **per_sequence)  # type: ignore[arg-type]


def test_fp8_keys_in_pages() -> None:
    q, k, v = (tensor.to(torch.float8_e4m3fn) for tensor in inputs(Shape(2, 4, 2, 1, 96, 32, 32)))
    descale = normal(4).abs() + 0.5, normal(2, seed=1).abs() + 0.5, normal(2, seed=2).abs() + 0.5
    (pages_k, table), (pages_v, _) = (paged(tensor.float(), 16) for tensor in (k, v))
    found = kernels.decode(
        q,
        pages_k.to(k.dtype),
        pages_v.to(v.dtype),
        page_table=table,
        descale=descale,
        return_lse=True,
        tiling=decode_tiling(3),
    )
    scaled = tuple(t.float() * d[:, None, None] for t, d in zip((q, k, v), descale, strict=True))
    assert found[0].dtype is torch.bfloat16
    assert_decoded(found, tuple(t.bfloat16() for t in scaled), (96, 96))  # type: ignore[arg-type]


def test_an_empty_cache_gives_zero_and_minus_infinity() -> None:
    q, k, v = inputs(Shape(2, 2, 1, 1, 40))
    lengths = torch.tensor([0, 40], dtype=torch.int32)
    for splits in (1, 3):
        out, lse = kernels.decode(q, k, v, kv_lengths=lengths, return_lse=True, tiling=decode_tiling(splits))
        assert not out[0].any()
        assert (lse[0] == -math.inf).all()
        assert out[1].isfinite().all()


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": (50, 0)}, {"softcap": 5.0}], ids=str)
def test_attention_of_few_queries_is_decoded(options: dict[str, Any]) -> None:
    given_ = inputs(Shape(2, 4, 2, 5, 150))
    facts: dict[str, Any] = {}
    out = kernels.attention(*given_, facts=facts, **options)
    assert facts["path"] == "decode"
    torch.testing.assert_close(out, kernels.attention(*given_, path="portable", **options), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("examples", [6, slow(20)])
def test_any_split_of_any_lengths(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(st.data())(assert_any_split))()


def assert_any_split(data: st.DataObject) -> None:
    seq_q, heads = data.draw(st.integers(1, 16)), data.draw(st.sampled_from([1, 2, 6]))
    lengths = tuple(data.draw(st.lists(st.integers(0, 90), min_size=2, max_size=2)))
    made = inputs(Shape(2, heads, heads if heads == 1 else heads // 2, seq_q, 90))
    size = data.draw(st.sampled_from([16, 32]))
    window = (data.draw(st.integers(0, 60)), 0) if data.draw(st.booleans()) else None
    found = kernels.decode(
        *made, kv_lengths=torch.tensor(lengths, dtype=torch.int32), window=window, return_lse=True,
        tiling=decode_tiling(data.draw(st.integers(1, 9)), block_kv=size),
    )  # fmt: skip
    full = tuple(length for length in lengths)
    for b, length in enumerate(full):
        if length:
            one = tuple(tensor[b : b + 1] for tensor in made)
            assert_decoded(tuple(t[b : b + 1] for t in found), one, (length,), window)  # type: ignore[arg-type]
        else:
            assert not found[0][b].any()
