"""Sequences of any length, packed one behind the other, in the interpreter, in a process of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench import kernels
from tests.kernels.interpreted.formula import (  # fmt: skip
    DTYPES,
    EVERYTHING,
    Found,
    assert_lse,
    attend,
    computed,
    differentiate,
    near,
    normal,
    slow,
    small_tilings,
)

# Empty sequences, sequences longer and shorter than their keys, and tokens behind the last one that belong to none.
ENDS = ([0, 12, 12, 29, 31], [0, 14, 19, 31, 36])
TOKENS = (33, 39)
HEADS, KV_HEADS, WIDTH, WIDTH_V = 4, 2, 16, 24
NAMES = ("dq", "dk", "dv", "dsinks")


def pack(tokens: tuple[int, int] = TOKENS, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k and v, [tokens, heads, width]."""
    sizes = [(tokens[0], HEADS, WIDTH), (tokens[1], KV_HEADS, WIDTH), (tokens[1], KV_HEADS, WIDTH_V)]
    return [normal(*size, seed=seed).to(dtype) for seed, size in enumerate(sizes)]


def laid_out(ends: tuple[list[int], list[int]], tokens: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which tokens are of one sequence, and the key less the diagonal key of each pair, both [queries, keys]."""
    same = torch.zeros(tokens, dtype=torch.bool)
    steps = torch.zeros(tokens, dtype=torch.int64)
    for first_q, last_q, first_k, last_k in zip(ends[0], ends[0][1:], ends[1], ends[1][1:], strict=False):
        same[first_q:last_q, first_k:last_k] = True
        query, key = torch.arange(first_q, last_q)[:, None], torch.arange(first_k, last_k)[None]
        # The last query of a sequence stands on its last key.
        steps[first_q:last_q, first_k:last_k] = (key - last_k) - (query - last_q)
    return same, steps


def assert_packed(
    ends: tuple[list[int], list[int]] = ENDS, tokens: tuple[int, int] = TOKENS, dtype: torch.dtype = torch.float32,
    sides: tuple[int, int] = (EVERYTHING, EVERYTHING), shown: Tensor | None = None, sinks: Tensor | None = None,
    slopes: Tensor | None = None, scores: dict[str, Any] | None = None, blocks: tuple[int, int] = (16, 16),
    **masks: Any,
) -> None:  # fmt: skip
    """Packed sequences against float64 over all pairs of tokens at once; `sides` and `shown` say what is visible."""
    scores = scores or {}
    same, steps = laid_out(ends, tokens)
    visible = same & (steps >= -sides[0]) & (steps <= sides[1])
    if shown is not None:
        visible = visible & shown
    bias = None if slopes is None else -slopes[None, :, None, None] * steps.abs()

    def kernel(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Any:
        return kernels.attention(
            q, k, v, cu_seqlens_q=torch.tensor(ends[0]), cu_seqlens_kv=torch.tensor(ends[1], dtype=torch.int32),
            sinks=sinks, alibi_slopes=slopes, return_lse=True, tilings=small_tilings(*blocks), **scores, **masks,
        )  # fmt: skip

    def formula(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Any:
        whole = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        out, lse = attend(*whole, bias, sinks, visible=visible, **scores)
        return out[0].transpose(0, 1), lse[0]

    tensors = [*pack(tokens, dtype), sinks]
    found = computed(kernel, tensors, None, through_lse=True)
    exact = computed(formula, tensors, torch.float64, through_lse=True)
    plain = computed(formula, tensors, dtype, through_lse=True)
    ratio = 3 if scores.get("softcap") else 2
    near("out", found.out, exact.out, plain.out, ratio)
    assert_lse(found.lse, exact.lse, dtype)
    for name, *three in zip(NAMES, found.gradients, exact.gradients, plain.gradients, strict=False):
        near(name, *three, ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [slow(torch.float32), torch.float16, torch.bfloat16], ids=DTYPES.keys())
@pytest.mark.parametrize("causal", [slow(False), True])
def test_every_dtype(dtype: torch.dtype, causal: bool) -> None:
    assert_packed(dtype=dtype, sides=(EVERYTHING, 0 if causal else EVERYTHING), causal=causal)


@pytest.mark.parametrize("window", [(3, 5), (-1, 4), (30, 0)], ids=str)
def test_windows_about_the_diagonal_of_each_sequence(window: tuple[int, int]) -> None:
    left, right = (EVERYTHING if side == -1 else side for side in window)
    assert_packed(sides=(left, right), window=window, blocks=(16, 32))


FEATURES: dict[str, dict[str, Any]] = {
    "softcap": {"scores": {"softcap": 3.0}},
    "scale": {"scores": {"scale": -0.4}},
    "alibi": {"slopes": normal(4).abs()},
    "sinks": {"sinks": normal(4)},
    "dropout by tokens of the pack": {"scores": {"dropout": 0.4, "seed": 2**33 + 1}},
}


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES.keys())
def test_features(options: dict[str, Any]) -> None:
    assert_packed(sides=(EVERYTHING, 0), causal=True, **options)


def test_booleans_hide_more() -> None:
    shown = torch.rand(1, HEADS, *TOKENS, generator=torch.Generator().manual_seed(5)) < 0.3
    assert_packed(shown=shown, mask=shown)


def test_lists_of_blocks_hide_more() -> None:
    tiles = torch.rand(1, HEADS, 3, 3, generator=torch.Generator().manual_seed(6)) < 0.5
    shown = tiles.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, : TOKENS[0], : TOKENS[1]]
    assert_packed(shown=shown, mask=kernels.blocks(tiles, 16, 16), sides=(EVERYTHING, 0), causal=True)


def test_lengths_of_one_side_hold_for_the_other() -> None:
    q, k, v = pack((50, 50))
    ends = torch.tensor([0, 11, 40, 50])
    both = kernels.attention(q, k, v, cu_seqlens_q=ends, cu_seqlens_kv=ends, tilings=small_tilings())
    assert torch.equal(kernels.attention(q, k, v, cu_seqlens_q=ends, tilings=small_tilings()), both)
    assert torch.equal(kernels.attention(q, k, v, cu_seqlens_kv=ends, tilings=small_tilings()), both)


def of_ends(tensors: list[Tensor]) -> Found:
    """Of the kernels, for sequences with these ends."""
    ends = dict(zip(("cu_seqlens_q", "cu_seqlens_kv"), (torch.tensor(side) for side in ENDS), strict=True))

    def kernel(*three: Tensor) -> Any:
        return kernels.attention(*three, **ends, return_lse=True, tilings=small_tilings())

    return computed(kernel, tensors, None, through_lse=True)


@pytest.fixture(scope="module")
def clean() -> Found:
    """Of tokens that are all numbers."""
    return of_ends(pack())


@pytest.mark.parametrize("spoilt", ["k", "v", "q"])
def test_tokens_of_no_sequence_are_neither_read_nor_left_unwritten(spoilt: str, clean: Found) -> None:
    last_q, last_k = ENDS[0][-1], ENDS[1][-1]

    dirty = pack()
    dirty["qkv".index(spoilt)][last_q if spoilt == "q" else last_k :] = math.nan
    found = of_ends(dirty)
    assert not found.out[last_q:].any()
    assert (found.lse[:, last_q:] == -math.inf).all()
    assert not found.gradients[0][last_q:].any()
    assert not found.gradients[1][last_k:].any()
    for one, other in zip((found.out, *found.gradients), (clean.out, *clean.gradients), strict=True):
        assert torch.equal(one, other)


def test_q_k_and_v_may_be_parts_of_one_tensor() -> None:
    together = normal(50, 3, 2, WIDTH)
    ends = torch.tensor([0, 9, 50])
    results = []
    for change in (lambda t: t, lambda t: t.contiguous()):
        leaves = [change(tensor).detach().requires_grad_() for tensor in together.unbind(1)]
        out, lse = kernels.attention(*leaves, cu_seqlens_q=ends, causal=True, return_lse=True, tilings=small_tilings())
        results.append([out.detach(), *differentiate(out, lse, leaves, through_lse=False)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# To shrink an example takes minutes here, and short sequences are small enough.
@pytest.mark.parametrize("examples", [4, slow(20)])
def test_any_lengths(examples: int) -> None:
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    settings(max_examples=examples, deadline=None, phases=phases)(given(st.data())(assert_any_lengths))()


def assert_any_lengths(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    length = st.lists(st.integers(0, 20), min_size=count, max_size=count)
    ends = tuple([0, *torch.tensor(data.draw(length)).cumsum(0).tolist()] for _ in range(2))
    tokens = tuple(side[-1] + data.draw(st.integers(0, 5)) for side in ends)
    if 0 in tokens:
        return
    causal = data.draw(st.booleans())
    left = data.draw(st.sampled_from([-1, 0, 7]))
    sides = (EVERYTHING if left == -1 else left, 0 if causal else EVERYTHING)
    assert_packed(ends, tokens, sides=sides, causal=causal, window=(left, -1))  # type: ignore[arg-type]
