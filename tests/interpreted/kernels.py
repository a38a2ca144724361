"""The Triton kernels in Triton's interpreter, against float64 in plain torch.

TRITON_INTERPRET is read when a kernel is decorated, so these tests need a process of their own: `test_triton.py` starts
it, and no collection finds this file by itself.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import Tensor

from attnbench import kernels
from attnbench.attention.problem import Problem, Returns
from attnbench.attention.scores import Score
from attnbench.backends import load
from attnbench.case import Case
from attnbench.kernels import Tiling, portable

SMALL = Tiling(block_q=16, block_kv=16, warps=4, stages=1)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Given = tuple[Tensor, Tensor, Tensor]  # q, k, v
EVERYTHING = 10**6  # a window that wide hides nothing


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Given:
    """shape: batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v."""
    batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(heads, seq_q, head_dim), (kv_heads, seq_kv, head_dim), (kv_heads, seq_kv, head_dim_v)]
    q, k, v = (torch.randn(batch, *size, generator=generator).to(dtype) for size in sizes)
    return q, k, v


def band(seq_q: int, seq_kv: int, left: int = EVERYTHING, right: int = EVERYTHING) -> Tensor:
    """Visible keys, [1, seq_q, seq_kv]: those from `left` before the diagonal one to `right` after it."""
    diagonal = torch.arange(seq_q)[:, None] + seq_kv - seq_q
    key = torch.arange(seq_kv)[None]
    return ((key >= diagonal - left) & (key <= diagonal + right))[None]


def formula(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse in the dtype of q; visible: [batch or 1, seq_q, seq_kv]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~visible[:, None], -math.inf)
    blind = ~visible.any(2)[:, None]
    weights = torch.softmax(logits, 3).masked_fill(blind[..., None], 0)
    return weights @ v, torch.logsumexp(logits, 3).masked_fill(blind, -math.inf)


def assert_right(given: Given, visible: Tensor, cut: Tiling | None = SMALL, **options: Any) -> None:
    """No further from float64 than twice the plain formula in the same dtype, and a few roundings."""
    score = {name: options[name] for name in ("scale", "softcap") if name in options}
    out, lse = kernels.attention(*given, return_lse=True, cut=cut, **options)
    assert_near(out, lse, given, visible, **score)


def assert_near(out: Tensor, lse: Tensor, given: Given, visible: Tensor, **score: Any) -> None:
    dtype = given[0].dtype
    exact, exact_lse = formula(*(tensor.double() for tensor in given), visible, **score)
    plain, _ = formula(*given, visible, **score)
    assert out.dtype is dtype
    assert out.shape == exact.shape
    bound = 2 * (plain - exact).abs().max() + 4 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
    assert (out - exact).abs().max() <= bound
    assert torch.equal(lse == -math.inf, exact_lse == -math.inf)
    seen = exact_lse > -math.inf
    torch.testing.assert_close(lse.double()[seen], exact_lse[seen], rtol=1e-5, atol=1e-5)


def test_this_process_interprets() -> None:
    assert portable.INTERPRETED


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_dtype(dtype: torch.dtype) -> None:
    given = inputs((1, 2, 2, 64, 64, 32, 32), dtype)
    assert_right(given, band(64, 64))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_causal_in_every_dtype(dtype: torch.dtype) -> None:
    assert_right(inputs((1, 2, 2, 70, 70, 32, 32), dtype), band(70, 70, right=0), causal=True)


LENGTHS = [(1, 1), (1, 45), (45, 1), (16, 48), (33, 70), (70, 33), (100, 99)]


@pytest.mark.parametrize(("seq_q", "seq_kv"), LENGTHS)
def test_lengths_that_fit_no_tile(seq_q: int, seq_kv: int) -> None:
    assert_right(inputs((1, 1, 1, seq_q, seq_kv, 16, 16)), band(seq_q, seq_kv))


@pytest.mark.parametrize(("seq_q", "seq_kv"), LENGTHS)
def test_causal_is_aligned_to_the_last_query_and_key(seq_q: int, seq_kv: int) -> None:
    assert_right(inputs((1, 1, 1, seq_q, seq_kv, 16, 16)), band(seq_q, seq_kv, right=0), causal=True)


@pytest.mark.parametrize("window", [(0, 0), (5, 3), (20, 40), (40, 0), (-1, 7), (7, -1)])
@pytest.mark.parametrize(("seq_q", "seq_kv"), [(70, 70), (33, 70), (70, 33)])
def test_windows(window: tuple[int, int], seq_q: int, seq_kv: int) -> None:
    left, right = (EVERYTHING if side == -1 else side for side in window)
    assert_right(inputs((1, 1, 1, seq_q, seq_kv, 16, 16)), band(seq_q, seq_kv, left, right), window=window)


def test_one_number_is_a_window_to_both_sides() -> None:
    assert_right(inputs((1, 1, 1, 40, 40, 16, 16)), band(40, 40, 6, 6), window=6)


def test_causal_cuts_a_window_at_the_diagonal() -> None:
    assert_right(inputs((1, 1, 1, 50, 50, 16, 16)), band(50, 50, 9, 0), window=9, causal=True)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 1), (3, 3)])
def test_query_heads_share_key_heads(heads: int, kv_heads: int) -> None:
    assert_right(inputs((2, heads, kv_heads, 40, 40, 16, 16)), band(40, 40, right=0), causal=True)


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(16, 64), (8, 1), (40, 24), (96, 96), (192, 128), (256, 256)])
def test_head_dims(head_dim: int, head_dim_v: int) -> None:
    assert_right(inputs((1, 1, 1, 20, 36, head_dim, head_dim_v)), band(20, 36))


@pytest.mark.parametrize("scale", [0.3, 1.0, 0.0, -0.5, 40.0])
def test_any_scale(scale: float) -> None:
    assert_right(inputs((1, 1, 1, 40, 40, 16, 16)), band(40, 40, right=0), causal=True, scale=scale)


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_softcap(softcap: float, dtype: torch.dtype) -> None:
    given = inputs((1, 1, 1, 40, 40, 16, 16), dtype)
    assert_right(given, band(40, 40, right=0), causal=True, softcap=softcap)


def test_logits_of_thousands_do_not_overflow() -> None:
    q, k, v = inputs((1, 1, 1, 40, 40, 16, 16))
    assert_right((q * 300, k * 30, v), band(40, 40))


def test_softcap_of_logits_of_thousands_does_not_overflow() -> None:
    q, k, v = inputs((1, 1, 1, 40, 40, 16, 16))
    assert_right((q * 300, k * 30, v), band(40, 40), softcap=20.0)


def test_equal_keys_give_the_mean_of_the_values() -> None:
    q, k, v = inputs((1, 1, 1, 20, 40, 16, 16))
    out = kernels.attention(q, torch.ones_like(k), v, cut=SMALL)
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


def listed(low: list[list[int]], high: list[list[int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor(low, dtype=torch.int32), torch.tensor(high, dtype=torch.int32)


def between(bounds: tuple[Tensor, Tensor], seq_kv: int) -> Tensor:
    key = torch.arange(seq_kv)
    return (key >= bounds[0][..., None]) & (key < bounds[1][..., None])


def test_intervals_of_documents() -> None:
    lengths = [3, 30, 1, 26]
    starts = [sum(lengths[:n]) for n, length in enumerate(lengths) for _ in range(length)]
    ends = [sum(lengths[: n + 1]) for n, length in enumerate(lengths) for _ in range(length)]
    bounds = listed([starts], [ends])
    assert_right(inputs((2, 2, 1, 60, 60, 16, 16)), between(bounds, 60), intervals=bounds)


def test_intervals_of_each_sequence() -> None:
    bounds = listed([[0] * 20, [0] * 20], [[33] * 20, [7] * 20])
    assert_right(inputs((2, 2, 1, 20, 40, 16, 16)), between(bounds, 40), intervals=bounds)


def test_intervals_and_causal_hold_together() -> None:
    bounds = listed([[5] * 50], [[31] * 50])
    visible = between(bounds, 50) & band(50, 50, right=0)
    assert_right(inputs((1, 2, 2, 50, 50, 16, 16)), visible, intervals=bounds, causal=True)


def test_intervals_may_reach_beyond_the_keys() -> None:
    bounds = listed([[-9] * 20], [[99] * 20])
    assert_right(inputs((1, 1, 1, 20, 40, 16, 16)), band(20, 40), intervals=bounds)


def test_rows_that_see_no_key_give_zero_and_minus_infinity() -> None:
    q, k, v = inputs((1, 1, 1, 50, 20, 16, 16))
    out, lse = kernels.attention(q, k, v, causal=True, return_lse=True, cut=SMALL)
    assert not out[:, :, :30].any()
    assert (lse[:, :, :30] == -math.inf).all()
    assert lse[:, :, 30:].isfinite().all()


def test_no_key_at_all_gives_zero() -> None:
    q, k, v = inputs((1, 1, 1, 20, 0, 16, 16))
    out, lse = kernels.attention(q, k, v, return_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()


def test_no_query_gives_an_empty_output() -> None:
    out, lse = kernels.attention(*inputs((2, 2, 1, 0, 20, 16, 24)), return_lse=True)
    assert out.shape == (2, 2, 0, 24)
    assert lse.shape == (2, 2, 0)


def test_keys_in_padding_are_not_read() -> None:
    q, k, v = inputs((2, 1, 1, 20, 40, 16, 16))
    bounds = listed([[0] * 20, [0] * 20], [[25] * 20, [16] * 20])
    expected = kernels.attention(q, k, v, intervals=bounds, cut=SMALL)
    for b, length in enumerate((25, 16)):
        k[b, :, length:] = math.nan
        v[b, :, length:] = math.nan
    assert torch.equal(kernels.attention(q, k, v, intervals=bounds, cut=SMALL), expected)


def test_the_output_is_written_whole() -> None:
    given = inputs((2, 3, 1, 37, 41, 24, 40))
    poison = torch.full((2, 3, 37, 40), math.nan)
    del poison
    assert kernels.attention(*given, causal=True, cut=SMALL).isfinite().all()


STRIDES = {
    "seq before heads": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "head_dim before seq": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "every other number": lambda t: torch.stack([t, t + 9], 4).flatten(3)[..., ::2],
    "off an alignment": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "one head for all": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("change", STRIDES.values(), ids=STRIDES.keys())
def test_strides_do_not_matter(change: Any) -> None:
    given = [change(tensor) for tensor in inputs((2, 2, 2, 33, 40, 16, 24))]
    expected = kernels.attention(*(tensor.contiguous() for tensor in given), causal=True, cut=SMALL)
    assert torch.equal(kernels.attention(*given, causal=True, cut=SMALL), expected)


@pytest.mark.parametrize("resident", [1, 2, 4, 50])
@pytest.mark.parametrize("long_first", [False, True])
def test_the_order_of_tiles_does_not_matter(resident: int, long_first: bool) -> None:
    given = inputs((2, 3, 1, 40, 40, 16, 16))
    cut = Tiling(block_q=16, block_kv=16, warps=4, stages=1, resident=resident, long_first=long_first)
    expected = kernels.attention(*given, causal=True, cut=SMALL)
    assert torch.equal(kernels.attention(*given, causal=True, cut=cut), expected)


@pytest.mark.parametrize(("block_q", "block_kv"), [(16, 64), (64, 16), (128, 32), (32, 128)])
def test_tiles_of_any_size(block_q: int, block_kv: int) -> None:
    cut = Tiling(block_q=block_q, block_kv=block_kv, warps=4, stages=1)
    visible = band(100, 90, 30, 5)
    assert_right(inputs((1, 1, 1, 100, 90, 16, 16)), visible, cut=cut, window=(30, 5))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_band_and_any_intervals(data: st.DataObject) -> None:
    seq_q, seq_kv = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    side = st.one_of(st.just(-1), st.integers(0, 50))
    left, right = data.draw(side), data.draw(side)
    bound = st.lists(st.integers(-3, seq_kv + 3), min_size=seq_q, max_size=seq_q)
    bounds = listed([data.draw(bound)], [data.draw(bound)])
    sides = [EVERYTHING if side == -1 else side for side in (left, right)]
    visible = band(seq_q, seq_kv, *sides) & between(bounds, seq_kv)
    assert_right(inputs((1, 1, 1, seq_q, seq_kv, 16, 16)), visible, window=(left, right), intervals=bounds)


def test_gradients_are_refused_and_not_silently_missing() -> None:
    q, k, v = inputs((1, 1, 1, 16, 16, 16, 16))
    with pytest.raises(RuntimeError, match="no backward pass"):
        kernels.attention(q.requires_grad_(), k, v)


def test_tf32_is_refused_by_the_interpreter() -> None:
    with pytest.raises(ValueError, match="precision='tf32'"):
        kernels.attention(*inputs((1, 1, 1, 16, 16, 16, 16)), precision="tf32")


def test_facts_say_what_ran() -> None:
    facts: dict[str, Any] = {}
    kernels.attention(*inputs((1, 1, 1, 16, 16, 16, 16)), cut=SMALL, facts=facts)
    assert facts["path"] == "portable"
    assert (facts["block_q"], facts["block_kv"], facts["interpreted"]) == (16, 16, True)


PROBLEMS = {
    "none": Problem(seq_q=40, heads=2),
    "causal, unequal lengths": Problem(seq_q=30, seq_kv=50, heads=2, mask="causal"),
    "window": Problem(seq_q=50, heads=2, mask="window:7:12"),
    "causal window": Problem(seq_q=50, heads=2, mask="causal+window:7"),
    "prefix": Problem(seq_q=50, heads=2, mask="prefix:13"),
    "documents": Problem(seq_q=50, heads=2, mask="causal+document:3-30-17"),
    "padding": Problem(seq_q=40, seq_kv=50, batch=3, heads=2, mask="padding:0.4"),
    "padding and causal": Problem(seq_q=50, batch=3, heads=2, mask="causal+padding:0.4"),
    "ragged": Problem(seq_q=50, batch=3, heads=2, lengths=(50, 1, 33)),
    "ragged and causal": Problem(seq_q=50, batch=3, heads=2, mask="causal", lengths=(50, 1, 33)),
    "rows that see no key": Problem(seq_q=50, seq_kv=20, heads=2, mask="causal"),
    "shared heads, softcap, scale": Problem(
        seq_q=40, heads=4, kv_heads=2, head_dim=24, head_dim_v=40, score=Score(scale=0.2, softcap=3.0), mask="causal"
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_backend_computes_the_problem(problem: Problem) -> None:
    problem = replace(problem, returns=Returns.LSE)
    backend, case = load("triton"), Case(problem=problem, backend="triton")
    assert backend.objections(case, "cpu") == []
    p = problem
    given = inputs((p.batch, p.heads, p.kv_heads, p.seq_q, p.seq_kv, p.head_dim, p.head_dim_v))
    out, lse = backend.prepare(case, "cpu").call(*given)
    visible = torch.from_numpy(p.masking.dense(p.grid))
    assert_near(out, lse, given, visible, scale=p.scale, softcap=p.score.softcap)


def test_the_backend_is_available_here() -> None:
    probe = load("triton").probe
    assert probe is not None
    assert probe("cpu") is None
