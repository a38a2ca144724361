"""xformers runs on no machine of this test; its mask classes do, and are tested where it is installed."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.attention.choices import Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import load, xformers
from attnbench.backends.xformers import LIMITS, AttnBias
from attnbench.records.case import Case

torch = pytest.importorskip("torch")

NAMES = tuple(xformers.BACKENDS)
HOPPER, AMPERE = (9, 0), (8, 0)
MASKS = (
    *("none", "causal", "window:5:3", "causal+window:5", "prefix:9", "padding:0.3", "causal+padding:0.3"),
    *("document:3", "causal+document:3", "causal+window:5+document:3", "window:5+document:3"),
)


def case(backend: str = "xformers", mode: Mode = Mode.FWD, **fields: Any) -> Case:
    return Case(problem=Problem(**{"seq_q": 64, "dtype": "bf16", **fields}), backend=backend, mode=mode)


@pytest.mark.parametrize(
    ("backend", "mask", "expected"),
    [
        ("xformers:fa2", "none", AttnBias.NONE),
        ("xformers:fa2", "causal", AttnBias.CAUSAL),
        ("xformers:fa2", "window:5:3", AttnBias.WINDOW),
        ("xformers:fa2", "causal+window:5", AttnBias.CAUSAL_WINDOW),
        ("xformers:fa3", "document:3", AttnBias.BLOCKS),
        ("xformers:fa3", "causal+document:3", AttnBias.CAUSAL_BLOCKS),
        ("xformers:cutlass", "causal+window:5", AttnBias.CAUSAL_WINDOW),
        ("xformers:cutlass", "causal+window:5+document:3", AttnBias.CAUSAL_WINDOW_BLOCKS),
        ("xformers:cutlass", "window:5:3", AttnBias.TENSOR),
        ("xformers:cutlass", "prefix:9", AttnBias.TENSOR),
        ("xformers:cutlass", "window:5+document:3", AttnBias.TENSOR),
        ("xformers:splitk", "causal", AttnBias.TENSOR),
        ("xformers:splitk", "padding:0.3", AttnBias.PADDED),
        ("xformers", "window:5:3", AttnBias.WINDOW),
        ("xformers", "padding:0.3", AttnBias.TENSOR),
    ],
)
def test_a_mask_is_said_by_the_class_that_the_kernel_takes(backend: str, mask: str, expected: AttnBias) -> None:
    assert xformers.attn_bias_of(case(backend, mask=mask)) is expected


def test_a_causal_window_is_a_tensor_in_the_backward_pass_of_cutlass() -> None:
    assert xformers.attn_bias_of(case("xformers:cutlass", Mode.FWD_BWD, mask="causal+window:5")) is AttnBias.TENSOR


def test_a_mask_that_hides_nothing_is_no_mask() -> None:
    assert xformers.attn_bias_of(case("xformers:splitk", seq_q=1, seq_kv=64, mask="causal")) is AttnBias.NONE


def test_float32_leaves_xformers_no_choice_but_cutlass() -> None:
    assert xformers.attn_bias_of(case(dtype="fp32", mask="window:5:3")) is AttnBias.TENSOR


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MASKS), st.integers(1, 3), st.integers(10, 40))
def test_a_bias_tensor_hides_what_the_mask_hides(mask: str, batch: int, seq: int) -> None:
    problem = Problem(seq_q=seq, batch=batch, heads=2, mask=mask)
    built = xformers.build(AttnBias.TENSOR, problem, "cpu", torch.float32)
    visible = torch.from_numpy(problem.masking.dense(problem.grid))[:, None].expand(batch, 2, seq, seq)
    assert torch.equal(built == 0, visible)
    assert torch.equal(built == -math.inf, ~visible)


@pytest.mark.parametrize("seq_kv", [1, 7, 8, 13])
def test_rows_of_a_bias_tensor_are_aligned(seq_kv: int) -> None:
    built = xformers.build(AttnBias.TENSOR, Problem(seq_q=5, seq_kv=seq_kv, mask="prefix:3"), "cpu", torch.float16)
    assert built.stride(3) == 1
    assert all(stride % 8 == 0 for stride in built.stride()[:3])


def test_heads_share_the_memory_of_a_bias_tensor() -> None:
    built = xformers.build(AttnBias.TENSOR, Problem(seq_q=8, heads=4, mask="prefix:3"), "cpu", torch.float16)
    assert built.stride(1) == 0


def tensors(problem: Problem) -> tuple[Any, Any, Any]:
    p, generator = problem, torch.Generator().manual_seed(0)
    sizes = [(p.seq_q, p.heads, p.head_dim), (p.seq_kv, p.kv_heads, p.head_dim), (p.seq_kv, p.kv_heads, p.head_dim_v)]
    q, k, v = (torch.randn(p.batch, *size, generator=generator) for size in sizes)
    return q, k, v


def test_shared_heads_are_grouped_without_a_copy() -> None:
    problem = Problem(seq_q=5, seq_kv=7, batch=2, heads=6, kv_heads=2, head_dim=8)
    q, k, v = xformers.arrange(problem, AttnBias.NONE, True, *tensors(problem))
    assert [tuple(tensor.shape) for tensor in (q, k, v)] == [(2, 5, 2, 3, 8), (2, 7, 2, 3, 8), (2, 7, 2, 3, 8)]
    assert k.stride(3) == v.stride(3) == 0


def test_query_head_h_reads_key_head_h_over_the_group_in_both_forms() -> None:
    problem = Problem(seq_q=5, seq_kv=7, heads=6, kv_heads=2, head_dim=8)
    given = tensors(problem)
    grouped = xformers.arrange(problem, AttnBias.NONE, True, *given)
    repeated = xformers.arrange(problem, AttnBias.NONE, False, *given)
    for one, other in zip(grouped, repeated, strict=True):
        assert torch.equal(one.flatten(2, 3), other)
    assert torch.equal(repeated[1][:, :, 3], given[1][:, :, 1])


def test_blocks_lie_end_to_end_in_one_sequence() -> None:
    problem = Problem(seq_q=6, batch=3, heads=2, head_dim=8, mask="document:2")
    q, _, _ = xformers.arrange(problem, AttnBias.BLOCKS, False, *tensors(problem))
    assert tuple(q.shape) == (1, 18, 2, 8)


@pytest.mark.parametrize("name", NAMES)
def test_a_cpu_is_refused(name: str) -> None:
    assert load(name).objections(case(name), "cpu") == ["runs on cuda, not on cpu"]


@pytest.mark.parametrize("name", NAMES)
def test_hopper_runs_all_of_them(name: str) -> None:
    wanted = case(name, mask="causal", kv_heads=2, seq_kv=128)
    assert load(name).objections(wanted, "cuda", HOPPER) == []


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("xformers:fa2", {"dtype": "fp32"}, "fp32 unsupported (supported: fp16, bf16)"),
        ("xformers:fa2", {"mask": "prefix:5"}, "prefix mask unsupported"),
        ("xformers:fa2", {"mask": "window:5+document:3"}, "not document with window"),
        ("xformers:fa2", {"head_dim": 60}, "head_dim 60 is not a multiple of 8"),
        ("xformers:fa2", {"head_dim_v": 128}, "head_dim_v different from head_dim unsupported"),
        ("xformers:cutlass", {"returns": Returns.LSE}, "log-sum-exp besides the output unsupported"),
        ("xformers:cutlass", {"seq_kv": 9, "mask": "causal"}, "fully masked rows unsupported"),
        ("xformers:splitk", {"mask": "document:3"}, "document mask of packed sequences unsupported"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in load(name).objections(case(name, **fields), "cuda", HOPPER)


@pytest.mark.parametrize(
    ("name", "capability", "reason"),
    [
        ("xformers:fa2", (7, 5), "needs compute capability 8.0, this device has 7.5"),
        ("xformers:fa3", AMPERE, "needs compute capability 9.0, this device has 8.0"),
        ("xformers:cutlass", (10, 0), "needs compute capability below 9.1, this device has 10.0"),
    ],
)
def test_a_gpu_of_the_wrong_generation_is_refused(name: str, capability: tuple[int, int], reason: str) -> None:
    assert load(name).objections(case(name), "cuda", capability) == [reason]


def test_split_k_has_no_backward_pass() -> None:
    name = "xformers:splitk"
    assert load(name).objections(case(name, Mode.BWD), "cuda", HOPPER) == ["backward unsupported"]


@pytest.mark.skipif(find_spec("xformers") is not None, reason="xformers is installed here")
@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_not_there_is_a_reason(name: str) -> None:
    assert "xformers" in ((load(name).probe or str)("cuda:0") or "")


def test_a_bias_tensor_counts_as_scratch() -> None:
    cutlass = load("xformers:cutlass")
    plain, dense = case("xformers:cutlass"), case("xformers:cutlass", mask="prefix:9")
    assert cutlass.scratch_bytes(dense) - cutlass.scratch_bytes(plain) == 64 * 64 * 2


# From here on with the package, where it is installed. Its classes work without a GPU.

MODES_OF = [(name, mode) for name in NAMES for mode in (Mode.FWD, Mode.FWD_BWD) if mode in LIMITS[name[9:]].modes]
installed = pytest.mark.skipif(find_spec("xformers") is None, reason="xformers is not installed")


def runnable(name: str, mode: Mode, mask: str, **fields: Any) -> Case:
    wanted = case(name, mode, batch=2, heads=4, mask=mask, **fields)
    if objections := load(name).objections(wanted, "cuda", HOPPER):
        pytest.skip("; ".join(objections))
    return wanted


@installed
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("name", "mode"), MODES_OF)
def test_the_class_hides_what_the_mask_hides(name: str, mode: Mode, mask: str) -> None:
    wanted = runnable(name, mode, mask)
    problem, kind = wanted.problem, xformers.attn_bias_of(wanted)
    visible = torch.from_numpy(problem.masking.dense(problem.grid)).expand(2, 64, 64)
    built = xformers.build(kind, problem, "cpu", torch.float32)
    if kind is AttnBias.NONE:
        assert visible.all()
    elif kind is AttnBias.TENSOR:
        assert torch.equal(built[:, 0] == 0, visible)
    elif kind.folded:
        shown = built.materialize((1, 1, 128, 128))[0, 0] == 0
        assert torch.equal(shown, torch.block_diag(*visible.int()).bool())
    else:
        shown = built.materialize((2, 4, 64, 64))[:, 0] == 0
        assert torch.equal(shown, visible)


@installed
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, mode in MODES_OF if name != "xformers"])
def test_the_kernel_has_nothing_against_its_arguments(name: str, mode: Mode, mask: str, kv_heads: int) -> None:
    from xformers.ops import fmha

    wanted = runnable(name, mode, mask, kv_heads=kv_heads)
    problem, kind = wanted.problem, xformers.attn_bias_of(wanted)
    built = xformers.build(kind, problem, "cpu", torch.bfloat16)
    grouped = kv_heads < 4 and mode is Mode.FWD
    if grouped and kind is AttnBias.TENSOR:
        built = built.unflatten(1, (kv_heads, -1))
    given = [tensor.bfloat16() for tensor in xformers.arrange(problem, kind, grouped, *tensors(problem))]
    arguments = fmha.Inputs(*given, attn_bias=built, scale=problem.scale)
    arguments.validate_inputs()
    forward, backward = xformers._operators(name[9:])
    operators = [forward] if mode is Mode.FWD else [forward, backward]
    reasons = [reason for operator in operators for reason in operator.not_supported_reasons(arguments)]
    # There is no GPU here: what it says of the device does not count.
    of_device = ("device=", "operator wasn't built", "bf16 is only supported")
    assert [reason for reason in reasons if not reason.startswith(of_device)] == []


SERVED = {"q7s40_2q1s90_q4": NAMES, "3q4s70": ("xformers:splitk", "xformers")}


@installed
@pytest.mark.parametrize("page_size", [0, 256])
@pytest.mark.parametrize("mask", ["none", "causal", "causal+window:5"])
@pytest.mark.parametrize(("text", "name"), [(text, name) for text, names in SERVED.items() for name in names])
def test_requests_are_said_by_a_class_that_the_kernel_takes(text: str, name: str, mask: str, page_size: int) -> None:
    from xformers.ops import fmha

    from attnbench.attention import layouts, requests

    queries, keys = zip(*requests.parse(text), strict=True)
    shape = {"batch": len(keys), "seq_q": max(queries), "seq_kv": max(keys), "requests": text, "page_size": page_size}
    problem = Problem(**shape, heads=4, mask=mask, dtype="bf16")
    served = Case(problem=problem, backend=name)
    if objections := load(name).objections(served, "cuda", HOPPER):
        pytest.skip("; ".join(objections))
    kind = xformers.attn_bias_of(served)
    bias = xformers.build_for_requests(kind, problem).to(torch.device("cpu"))
    rows = sum(keys) if not page_size else layouts.page_table(problem).max() * page_size + page_size
    seen = torch.zeros(sum(queries), rows, dtype=torch.bool)
    places = torch.from_numpy(layouts.slots(problem)) if page_size else torch.arange(rows)
    for part, (of_q, of_kv) in zip(problem.parts, problem.spans, strict=True):
        seen[of_q, places[of_kv]] = torch.from_numpy(part.visible()[0])
    if not page_size:
        assert torch.equal(bias.materialize((sum(queries), rows)) == 0, seen)
    if name != "xformers":
        q, k = (torch.zeros(1, count, 4, 64, dtype=torch.bfloat16) for count in seen.shape)
        arguments = fmha.Inputs(q, k, k, attn_bias=bias, scale=problem.scale)
        arguments.validate_inputs()
        reasons = xformers._operators(name[9:])[0].not_supported_reasons(arguments)
        of_device = ("device=", "operator wasn't built", "bf16 is only supported")
        assert [reason for reason in reasons if not reason.startswith(of_device)] == []


@pytest.mark.parametrize("bias", ["alibi", "t5", "span:5:4", "edge:3", "alibi:dense"])
@pytest.mark.parametrize("mask", ["none", "causal", "padding:0.3"])
def test_a_bias_is_added_by_a_tensor(bias: str, mask: str) -> None:
    if bias.startswith("span") and "padding" in mask:
        return
    problem = Problem(batch=2, seq_q=13, heads=4, head_dim=16, dtype="fp16", mask=mask, score=Score(bias=bias))
    one = Case(problem=problem, backend="xformers:cutlass")
    assert not load("xformers:cutlass").objections(one, "cuda", (9, 0))
    assert xformers.attn_bias_of(one) is AttnBias.TENSOR
    found = xformers.build(AttnBias.TENSOR, problem, "cpu", torch.float32)
    assert found.shape == (2, 4, 13, 13)
    assert found.stride(-2) % 8 == 0
    values = problem.bias.dense_tensor(problem).float()
    seen = torch.from_numpy(problem.masking.dense(problem.grid))[:, None]
    torch.testing.assert_close(found, values[None].masked_fill(~seen, float("-inf")).expand(2, 4, 13, 13))
    for name in ("xformers:fa2", "xformers:splitk"):
        assert load(name).objections(Case(problem=problem, backend=name), "cuda", (9, 0))
