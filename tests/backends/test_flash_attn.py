"""The packages run on no machine of this test: stand-ins with their documented signatures take their place."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.attention.choices import Mode, Returns
from attnbench.attention.layouts import is_packed, segments
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import flash_attn as backend
from attnbench.backends import load
from attnbench.records.case import Case

torch = pytest.importorskip("torch")

NAMES = ("flash-attn:2", "flash-attn:3", "flash-attn:4")
HOPPER, BLACKWELL, AMPERE = (9, 0), (10, 0), (8, 0)


def case(backend: str = "flash-attn:2", mode: Mode = Mode.FWD, **fields: Any) -> Case:
    return Case(problem=Problem(**{"seq_q": 64, "dtype": "bf16", **fields}), backend=backend, mode=mode)


# What the documentation of flash_attn_func says: key j is seen by query i if it lies in
# [i + seqlen_k - seqlen_q - window_size[0], i + seqlen_k - seqlen_q + window_size[1]], -1 for no bound.


def documented(seq_q: int, seq_kv: int, causal: bool, window_size: tuple[int, int]) -> Any:
    left, right = window_size
    right = 0 if causal else right
    diagonal = torch.arange(seq_q)[:, None] + seq_kv - seq_q
    key = torch.arange(seq_kv)[None]
    after_left = torch.ones(seq_q, seq_kv, dtype=torch.bool) if left == -1 else key >= diagonal - left
    return after_left if right == -1 else after_left & (key <= diagonal + right)


def formula(
    q: Any, k: Any, v: Any, visible: Any, scale: float, softcap: float, slopes: Any = None, sink: Any = None
) -> tuple[Any, Any]:
    """[batch, seq, heads, head_dim] in and out; lse: [batch, heads, seq_q]; slopes and sink: [heads]."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(2, 3) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if slopes is not None:  # "-alibi_slope * |i + seqlen_k - seqlen_q - j|"
        rows, keys = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        logits = logits - slopes[:, None, None] * (rows + len(keys) - len(rows) - keys).abs()
    blind = ~visible.any(-1, keepdim=True)
    logits = logits.masked_fill(~visible, -math.inf)
    if sink is not None:
        every = torch.cat([logits, sink[:, None, None].to(logits).expand(*logits.shape[:3], 1)], -1)
        return (every.softmax(-1)[..., :-1] @ v).transpose(1, 2), every.logsumexp(-1)
    weights = logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return (weights @ v).transpose(1, 2), logits.logsumexp(-1)


def attend(
    q: Any, k: Any, v: Any, softmax_scale: Any, causal: bool, window_size: Any, softcap: float, **terms: Any
) -> tuple[Any, Any]:
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return formula(q, k, v, documented(q.shape[1], k.shape[1], causal, window_size), scale, softcap, **terms)


def attend_ragged(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int, **options: Any
) -> tuple[Any, Any]:
    """q: [tokens, heads, head_dim]; lse: [heads, tokens]."""
    assert cu_seqlens_q.dtype is cu_seqlens_k.dtype is torch.int32
    assert max_seqlen_q >= int(cu_seqlens_q.diff().max())
    assert max_seqlen_k >= int(cu_seqlens_k.diff().max())
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = [
        attend(q[None, a:b], k[None, c:d], v[None, c:d], **options)
        for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False)
    ]
    return torch.cat([out[0] for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], 1)


GIVEN: dict[str, Any] = {}  # of the last call


class Release2:
    @staticmethod
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
        alibi_slopes=None, return_attn_probs=False,
    ):  # fmt: skip
        GIVEN["dropout_p"] = dropout_p
        assert alibi_slopes is None or alibi_slopes.dtype is torch.float32
        out, lse = attend(q, k, v, softmax_scale, causal, window_size, softcap, slopes=alibi_slopes)
        return (out, lse, None) if return_attn_probs else out

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, return_attn_probs=False,
    ):  # fmt: skip
        out, lse = attend_ragged(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip
        return (out, lse, None) if return_attn_probs else out


class Release3:
    @staticmethod
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, window_size=(-1, -1), softcap=0.0, return_attn_probs=False
    ):
        out, lse = attend(q, k, v, softmax_scale, causal, window_size, softcap)
        return (out, lse) if return_attn_probs else out

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, window_size=(-1, -1), softcap=0.0, return_attn_probs=False,
    ):  # fmt: skip
        out, lse = attend_ragged(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip
        return (out, lse) if return_attn_probs else out


class Release4:
    @staticmethod
    def flash_attn_func(
        q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0, return_lse=False,
    ):  # fmt: skip
        out, lse = attend(q, k, v, softmax_scale, causal, window_size, softcap, sink=learnable_sink)
        return out, lse if return_lse else None

    @staticmethod
    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        softmax_scale=None, causal=False, window_size=(None, None), softcap=0.0, return_lse=False,
    ):  # fmt: skip
        out, lse = attend_ragged(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip
        return out, lse if return_lse else None


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins = {
        "flash_attn": None,
        "flash_attn.flash_attn_interface": Release2,
        "flash_attn_interface": Release3,
        "flash_attn.cute": Release4,
    }
    for name, functions in stand_ins.items():
        module = ModuleType(name)
        module.__path__ = []
        if functions is not None:
            module.flash_attn_func = functions.flash_attn_func
            module.flash_attn_varlen_func = functions.flash_attn_varlen_func
        monkeypatch.setitem(sys.modules, name, module)


def inputs(problem: Problem) -> tuple[Any, Any, Any]:
    p, generator = problem, torch.Generator().manual_seed(0)
    sizes = [(p.seq_q, p.heads, p.head_dim), (p.seq_kv, p.kv_heads, p.head_dim), (p.seq_kv, p.kv_heads, p.head_dim_v)]
    q, k, v = (torch.randn(p.batch, *size, generator=generator, dtype=torch.float64) for size in sizes)
    return q, k, v


def expected(problem: Problem, given: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    visible = torch.from_numpy(problem.masking.dense(problem.grid))[:, None]
    return formula(*given, visible, problem.scale, problem.softcap or 0.0)


PROBLEMS = {
    "none": {},
    "causal": {"mask": "causal"},
    "causal, more keys": {"seq_kv": 90, "mask": "causal"},
    "causal, rows that see no key": {"seq_kv": 20, "mask": "causal"},
    "window": {"mask": "window:5:9", "seq_kv": 70},
    "causal window": {"mask": "causal+window:5"},
    "documents": {"batch": 2, "mask": "document:3"},
    "causal documents": {"batch": 2, "mask": "causal+document:30-1-33"},
    "window in documents": {"mask": "window:4+document:5"},
    "shared heads, scale, softcap": {"heads": 4, "kv_heads": 2, "score": Score(scale=0.3, softcap=2.0)},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_call_computes_the_problem(name: str, fields: dict[str, Any], packages: None) -> None:
    wanted = case(name, heads=fields.get("heads", 2), head_dim=8, **{k: v for k, v in fields.items() if k != "heads"})
    given = inputs(wanted.problem)
    out = load(name).prepare(wanted, "cpu").call(*given)
    torch.testing.assert_close(out, expected(wanted.problem, given)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_lse_is_by_batch_head_and_row(name: str, fields: dict[str, Any], packages: None) -> None:
    wanted = case(name, **{"heads": 2, "head_dim": 8, "returns": Returns.LSE, **fields})
    given = inputs(wanted.problem)
    _, lse = load(name).prepare(wanted, "cpu").call(*given)
    torch.testing.assert_close(lse, expected(wanted.problem, given)[1])


def test_gradients_pass_through_documents(packages: None) -> None:
    wanted = case(mode=Mode.BWD, heads=2, head_dim=8, **PROBLEMS["documents"])
    given = tuple(tensor.requires_grad_() for tensor in inputs(wanted.problem))
    out = load("flash-attn:2").prepare(wanted, "cpu").call(*given)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((out * weight).sum(), given)
    right = torch.autograd.grad((expected(wanted.problem, given)[0] * weight).sum(), given)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 14), st.integers(0, 14), st.booleans())
def test_a_window_shows_the_keys_that_the_mask_shows(
    seq_q: int, seq_kv: int, left: int, right: int, causal: bool
) -> None:
    problem = Problem(seq_q=seq_q, seq_kv=seq_kv, mask=f"window:{left}:{right}" + "+causal" * causal)
    given = backend.arguments(problem)
    shown = documented(seq_q, seq_kv, given["causal"], given["window_size"])
    assert torch.equal(shown, torch.from_numpy(problem.masking.dense(problem.grid))[0])


def test_arguments_of_a_plain_problem() -> None:
    assert backend.arguments(Problem(seq_q=8, head_dim=16)) == {
        "softmax_scale": 0.25,
        "causal": False,
        "window_size": (-1, -1),
        "softcap": 0.0,
    }


def test_documents_of_two_sequences_lie_end_to_end() -> None:
    problem = Problem(seq_q=10, batch=2, mask="document:3-7")
    assert segments(problem) == ((0, 3, 10, 13, 20), (0, 3, 10, 13, 20), 7, 7)


def test_requests_have_their_own_queries_and_keys() -> None:
    problem = Problem(batch=3, seq_q=4, seq_kv=9, requests="q4_q1s9_q2s5")
    assert segments(problem) == ((0, 4, 5, 7), (0, 4, 13, 18), 4, 9)
    assert segments(problem).lengths_kv == (4, 9, 5)


def test_a_plain_problem_is_not_packed() -> None:
    assert not is_packed(Problem(seq_q=4, mask="causal"))


@pytest.mark.parametrize("name", NAMES)
def test_a_cpu_is_refused(name: str) -> None:
    assert load(name).objections(case(name), "cpu") == ["runs on cuda, not on cpu"]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", NAMES)
def test_hopper_runs_all_three_both_ways(name: str, mode: Mode) -> None:
    wanted = case(name, mode, mask="causal", kv_heads=2, seq_kv=128, score=Score(softcap=30.0))
    assert load(name).objections(wanted, "cuda", HOPPER) == []


@pytest.mark.parametrize(
    ("name", "capability", "reason"),
    [
        ("flash-attn:2", (7, 5), "needs compute capability 8.0, this device has 7.5"),
        ("flash-attn:3", AMPERE, "needs compute capability 9.0, this device has 8.0"),
        ("flash-attn:3", BLACKWELL, "needs compute capability below 10.0, this device has 10.0"),
        ("flash-attn:4", AMPERE, "needs compute capability 9.0, this device has 8.0"),
        ("flash-attn:4", (12, 0), "needs compute capability below 12.0, this device has 12.0"),
    ],
)
def test_a_gpu_of_the_wrong_generation_is_refused(name: str, capability: tuple[int, int], reason: str) -> None:
    assert load(name).objections(case(name), "cuda", capability) == [reason]


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("flash-attn:2", {"dtype": "fp32"}, "fp32 unsupported (supported: fp16, bf16)"),
        ("flash-attn:2", {"head_dim": 264}, "head_dim 264 is over 256"),
        ("flash-attn:2", {"mask": "prefix:5"}, "prefix mask unsupported"),
        ("flash-attn:2", {"mask": "padding:0.2"}, "key padding unsupported"),
        ("flash-attn:2", {"seq_kv": 9, "mask": "causal", "returns": Returns.LSE}, "not blind_rows with lse"),
        ("flash-attn:3", {"head_dim": 60}, "head_dim 60 is not a multiple of 8"),
        ("flash-attn:3", {"requests": "q64", "mask": "document:2"}, "not document with requests"),
    ],
)
def test_what_a_package_cannot_do_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in load(name).objections(case(name, **fields), "cuda", HOPPER)


def test_odd_head_dims_are_padded_by_the_second_release_itself() -> None:
    assert load("flash-attn:2").objections(case(head_dim=60), "cuda", AMPERE) == []


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is installed here")
@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_not_there_is_a_reason(name: str) -> None:
    assert "Error" in (load(name).probe or str)("cuda:0")


def test_a_package_that_works_gives_no_reason(packages: None) -> None:
    assert (load("flash-attn:3").probe or str)("cpu") is None


def test_a_backward_pass_needs_more_scratch_than_a_forward_pass() -> None:
    backend_2 = load("flash-attn:2")
    assert backend_2.scratch_bytes(case(mode=Mode.BWD)) > backend_2.scratch_bytes(case())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("flash-attn:2", {"score": Score(bias="alibi")}),
        ("flash-attn:2", {"score": Score(bias="alibi", temperature=2.0), "mask": "causal", "seq_kv": 80}),
        ("flash-attn:4", {"sinks": True, "mask": "causal+window:8"}),
    ],
)
def test_biases_and_sinks_are_translated(name, fields, packages):
    from attnbench.attention.inputs import make
    from tests import reference

    one = case(name, heads=4, **fields)
    assert not load(name).objections(one, "cuda")
    made = make(one.problem, 0)
    qkv = [tensor.float() for tensor in (made.q, made.k, made.v)]
    out = load(name).prepare(one, "cpu").call(*(tensor.transpose(1, 2) for tensor in qkv))
    torch.testing.assert_close(out.transpose(1, 2).double(), reference.attend(one.problem, *qkv).out, rtol=0, atol=2e-2)


def test_dropout_is_handed_on(packages):
    one = case("flash-attn:2", dropout=0.1)
    made = torch.randn(1, 64, 8, 64)
    load("flash-attn:2").prepare(one, "cpu").call(made, made, made)
    assert GIVEN["dropout_p"] == 0.1
    assert load("flash-attn:3").objections(case("flash-attn:3", dropout=0.1), "cuda") == ["dropout unsupported"]
