"""Batches of requests by the CUDA libraries: what an adapter hands over, computed by stand-ins, against float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from attnbench.attention import latent, requests
from attnbench.attention.problem import Problem
from attnbench.attention.requests import RequestSize
from attnbench.attention.scores import Score
from attnbench.backends import load
from attnbench.records.case import Case

torch = pytest.importorskip("torch")

from tests import oracle, reference  # noqa: E402
from tests.backends import libraries  # noqa: E402

HOPPER = (9, 0)
# Page sizes that a library reads; 0: packed keys.
PAGES = {
    "varlen": (0, 256, 512),
    "flash-attn:2": (0, 256, 512),
    "flash-attn:3": (0, 1, 16, 256),
    "flash-attn:4": (0, 1, 16, 256),
    "flashinfer": (0, 1, 16, 256),
    "xformers": (0, 64, 256),
    "xformers:fa2": (0, 256, 512),
    "xformers:fa3": (0, 1, 16, 256),
    "xformers:splitk": (0, 64, 256),
}
FIELDS: dict[str, dict[str, Any]] = {
    "full": {"mask": "none"},
    "causal": {"mask": "causal"},
    "window": {"mask": "causal+window:5"},
    "shared heads": {"mask": "causal", "kv_heads": 1},
    "scale": {"mask": "causal", "score": Score(scale=0.3)},
    "softcap": {"mask": "causal", "score": Score(softcap=2.0)},
    "lse": {"mask": "causal", "returns": "lse"},
}
WIDE = ("xformers", "flashinfer")  # of head_dim 64 and more
SPLIT_K = ("xformers", "xformers:splitk")  # take causal requests with equal numbers of queries
GRADIENTS = ("varlen", "flash-attn:2", "flash-attn:3", "flash-attn:4", "xformers:fa2")


def module(name: str, **functions: Any) -> ModuleType:
    stand_in = ModuleType(name)
    stand_in.__path__ = []
    for function, body in functions.items():
        setattr(stand_in, function, body)
    return stand_in


def public(holder: type) -> dict[str, Any]:
    return {name: getattr(holder, name) for name in vars(holder) if not name.startswith("_")}


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr("torch.nn.attention.varlen.varlen_attn", libraries.varlen_attn)
    modules = {
        "flash_attn": module("flash_attn"),
        "flash_attn.flash_attn_interface": module("2", **public(libraries.FlashAttention2)),
        "flash_attn_interface": module("3", **public(libraries.FlashAttention3)),
        "flash_attn.cute": module("4", **public(libraries.FlashAttention4)),
        "flashinfer": module("flashinfer", **libraries.FLASHINFER),
        "xformers": module("xformers"),
        "xformers.ops": module("xformers.ops", fmha=libraries.fmha()),
        "xformers.ops.fmha": libraries.fmha(),
    }
    for name, stand_in in modules.items():
        patch.setitem(sys.modules, name, stand_in)
    yield
    patch.undo()


def batch_of(sizes: tuple[RequestSize, ...], name: str = "", **fields: Any) -> Problem:
    queries, keys = zip(*sizes, strict=True)
    shape = {"batch": len(sizes), "seq_q": max(queries), "seq_kv": max(keys), "requests": requests.spell(sizes)}
    width = 64 if name.startswith(WIDE) else 8
    return Problem(**{"heads": 2, "head_dim": width, "dtype": "bf16", **shape, **fields})


SIZES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 300)).map(lambda size: RequestSize(size[0], sum(size))),
    min_size=1,
    max_size=4,
).map(tuple)
MIXED = (RequestSize(7, 7), RequestSize(1, 300), RequestSize(4, 261), RequestSize(1, 1))
SPLIT_K_REASON = (
    "different numbers of queries, or more than 16, with a causal mask unsupported: use xformers:fa2 or xformers:fa3"
)
WAITING = (RequestSize(0, 0), RequestSize(3, 300), RequestSize(0, 70), RequestSize(1, 261), RequestSize(0, 0))
ALIKE = (RequestSize(4, 300), RequestSize(4, 4), RequestSize(4, 261))


def assert_right(name: str, problem: Problem) -> None:
    out, lse, packed = libraries.computed(name, problem)
    right, right_lse = oracle.attend(problem, *packed)
    torch.testing.assert_close(out.double(), right, rtol=0, atol=1e-5)
    if lse is not None:
        torch.testing.assert_close(lse.double(), right_lse, rtol=0, atol=1e-5)


def refusal(name: str, label: str, paged: bool) -> list[str]:
    """Why a library does not take a problem of FIELDS; empty: it does."""
    of_xformers = name.startswith("xformers")
    if label == "softcap" and (of_xformers or name == "varlen"):
        return ["soft cap on the logits unsupported"]
    if label == "lse" and of_xformers:
        return ["log-sum-exp besides the output unsupported"]
    if label == "window" and of_xformers and (paged or name == "xformers:splitk"):
        what = "keys in pages" if paged else "requests"
        return [f"mask causal+window:5 with {what} unsupported: use causal or none, or flash-attn"]
    return []


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("label", FIELDS)
@pytest.mark.parametrize("name", PAGES)
def test_what_is_handed_over_is_the_problem(name: str, label: str, paged: bool) -> None:
    sizes = ALIKE if name in SPLIT_K else MIXED
    problem = batch_of(sizes, name, page_size=PAGES[name][paged], **FIELDS[label])
    objections = load(name).objections(Case(problem=problem, backend=name), "cuda", HOPPER)
    assert objections == refusal(name, label, paged)
    if not objections:
        assert_right(name, problem)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("name", PAGES)
def test_requests_without_queries_have_no_output(name: str, queries: int, paged: bool) -> None:
    """They are empty sequences of a packed call, or have no place in a plan; xformers does not document them."""
    sizes = tuple(RequestSize(min(size.queries, queries), size.keys) for size in WAITING)
    problem = batch_of(sizes, name, mask="causal", page_size=PAGES[name][paged], kv_heads=1)
    objections = load(name).objections(Case(problem=problem, backend=name), "cuda", HOPPER)
    if name.startswith("xformers"):
        assert "a request without queries unsupported" in objections
    elif name in ("varlen", "flash-attn:2") and queries == 1:
        assert objections == ["a request without queries beside decodes of grouped heads unsupported"]
    else:
        assert objections == []
        assert_right(name, problem)


@pytest.mark.parametrize("name", PAGES)
@settings(max_examples=12, deadline=None)
@given(sizes=SIZES, data=st.data())
def test_any_batch_with_any_pages(name: str, sizes: tuple[RequestSize, ...], data: st.DataObject) -> None:
    if name in SPLIT_K:
        sizes = tuple(RequestSize(3, 3 + size.keys) for size in sizes)
    page_size = data.draw(st.sampled_from(PAGES[name]))
    labels = [label for label in ("full", "causal", "window") if not refusal(name, label, page_size > 0)]
    fields = FIELDS[data.draw(st.sampled_from(labels))]
    assert_right(name, batch_of(sizes, name, page_size=page_size, **fields))


def test_slopes_of_alibi_are_handed_over_with_pages() -> None:
    problem = batch_of(MIXED, page_size=256, mask="causal", score=Score(bias="alibi"))
    out, _, packed = libraries.computed("flash-attn:2", problem)
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        of_part = [tensor[:, :, span] for tensor, span in zip(packed, (queries, keys, keys), strict=True)]
        right = reference.attend(replace(part, page_size=0), *of_part).out
        torch.testing.assert_close(out[:, :, queries].double(), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PAGES if name not in SPLIT_K])
def test_pages_of_an_even_batch(name: str) -> None:
    packed = batch_of((RequestSize(3, 300),) * 2, name, mask="causal", page_size=256)
    even = replace(packed, requests="")
    assert load(name).objections(Case(problem=even, backend=name), "cuda", HOPPER) == []
    prepared, (q, k, v), _ = libraries.prepared_batch(name, packed)
    of_even = load(name).prepare(Case(problem=even, backend=name), "cpu")
    assert torch.equal(of_even.call(q.unflatten(1, (2, 3))[0], k, v), prepared.call(q, k, v).unflatten(1, (2, 3))[0])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_packed_requests(name: str) -> None:
    problem = batch_of((RequestSize(3, 20), RequestSize(5, 5)), name, mask="causal")
    prepared, placed, packed = libraries.prepared_batch(name, problem)
    leaves = [tensor.requires_grad_() for tensor in placed]
    out = prepared.call(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((out * weight).sum(), leaves)
    for number, (queries, keys) in enumerate(problem.spans):
        spans = queries, keys, keys
        part = [tensor[:, :, span] for tensor, span in zip(packed, spans, strict=True)]
        right = reference.gradients(problem.parts[number], *part, weight.transpose(1, 2)[:, :, queries].contiguous())
        for gradient, span, exact in zip(found, spans, right, strict=True):
            torch.testing.assert_close(gradient.transpose(1, 2)[:, :, span].double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        (
            "flash-attn:2",
            {"page_size": 16},
            "page_size=16 is not a multiple of 256: use page_size=256, or flash-attn:3",
        ),
        ("varlen", {"page_size": 128}, "page_size=128 is not a multiple of 256: use page_size=256"),
        ("flash-attn:3", {"requests": "q7_3q4", "seq_kv": 7, "mask": "document:2"}, "not document with requests"),
        ("flash-attn:3", {"dtype": "fp32"}, "fp32 unsupported (supported: fp16, bf16)"),
        ("flash-attn:4", {"head_dim": 60}, "head_dim 60 is not a multiple of 8"),
        ("varlen", {"mask": "prefix:3"}, "prefix mask unsupported"),
        ("flashinfer", {"head_dim": 96}, "head_dim 96 unsupported: use 64, 128, 256"),
        (
            "flashinfer",
            {"mask": "window:5:3"},
            "mask window:5:3 unsupported: a window needs causal, as causal+window:5",
        ),
        ("xformers:cutlass", {"page_size": 16}, "keys in pages unsupported"),
        (
            "xformers:fa2",
            {"page_size": 16},
            "page_size=16 is not a multiple of 256: use page_size=256, or xformers:fa3",
        ),
        (
            "xformers:splitk",
            {"page_size": 16},
            "page_size=16 is not a multiple of 64: use page_size=64, or xformers:fa3",
        ),
        ("xformers:splitk", {"mask": "causal"}, SPLIT_K_REASON),
        ("xformers", {"mask": "causal", "page_size": 64}, SPLIT_K_REASON),
        ("xformers:cutlass", {"mask": "prefix:3"}, "prefix mask with requests unsupported"),
    ],
)
def test_what_a_library_does_not_take_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in load(name).objections(Case(problem=batch_of(MIXED, **fields), backend=name), "cuda", HOPPER)


DECODES = (RequestSize(1, 300), RequestSize(1, 1), RequestSize(1, 256))


@pytest.mark.parametrize("label", FIELDS)
@pytest.mark.parametrize("page_size", [1, 16])
def test_decodes_in_pages_are_given_to_the_decode_kernels_of_flashinfer(label: str, page_size: int) -> None:
    problem = batch_of(DECODES, "flashinfer", page_size=page_size, **FIELDS[label])
    assert_right("flashinfer", problem)
    assert libraries.prepared_batch("flashinfer", problem)[0].facts["wrapper"] == "BatchDecodeWithPagedKVCacheWrapper"


@pytest.mark.parametrize("label", FIELDS)
@pytest.mark.parametrize("sizes", [MIXED, (*DECODES, RequestSize(3, 300), RequestSize(2, 2)), WAITING], ids=str)
def test_decodes_and_prefills_of_a_step_are_given_to_flashinfer_apart(
    label: str, sizes: tuple[RequestSize, ...]
) -> None:
    """Interleaved, one after the other, and beside requests without queries."""
    problem = batch_of(sizes, "flashinfer", page_size=16, **FIELDS[label])
    assert_right("flashinfer", problem)
    prepared = libraries.prepared_batch("flashinfer", problem)[0]
    assert prepared.facts["wrapper"] == "BatchDecodeWithPagedKVCacheWrapper and BatchPrefillWithPagedKVCacheWrapper"
    assert prepared.facts["use_tensor_cores"] is False
    assert prepared.seconds.keys() == {"plan", "compile"}


@pytest.mark.parametrize(("heads", "kv_heads", "tensor_cores"), [(32, 8, True), (12, 4, False), (7, 1, True)])
def test_decodes_of_large_groups_of_heads_are_given_tensor_cores(heads: int, kv_heads: int, tensor_cores: bool) -> None:
    problem = batch_of(DECODES, "flashinfer", page_size=16, heads=heads, kv_heads=kv_heads)
    assert libraries.prepared_batch("flashinfer", problem)[0].facts["use_tensor_cores"] is tensor_cores
    assert_right("flashinfer", problem)


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("fields", [{}, {"kv_heads": 1}, {"score": Score(scale=0.3, softcap=2.0)}], ids=str)
def test_a_prefix_is_a_level_of_flashinfer(mask: str, page_size: int, fields: dict[str, Any]) -> None:
    """Groups of three and two, of five, or of two, two and one; of 40 keys, two pages of 16 are shared."""
    sizes = (RequestSize(1, 41), RequestSize(4, 60), RequestSize(2, 50), RequestSize(1, 44), RequestSize(3, 90))
    for text in ("40:3", "40:5", "40:2"):
        problem = batch_of(sizes, "flashinfer", page_size=page_size, shared_prefix=text, mask=mask, **fields)
        case = Case(problem=problem, backend="flashinfer:cascade")
        assert load("flashinfer:cascade").objections(case, "cuda", HOPPER) == []
        assert_right("flashinfer:cascade", problem)


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("page_size", [0, 1, 64])
@pytest.mark.parametrize("sizes", [MIXED, DECODES, WAITING], ids=["mixed", "decodes", "waiting"])
def test_a_latent_cache_is_given_to_flashinfer_absorbed(
    sizes: tuple[RequestSize, ...], page_size: int, mask: str
) -> None:
    name = "flashinfer:mla"
    problem = batch_of(
        sizes, head_dim=80, head_dim_v=16, kv="latent:512+64", page_size=page_size, mask=mask, dtype="bf16"
    )
    assert load(name).objections(Case(problem=problem, backend=name), "cuda", HOPPER) == []
    prepared, placed, (q, cache, _) = libraries.prepared_batch(name, problem)
    weights = latent.Matrices(*(part.float() for part in latent.matrices(problem)))
    with pytest.MonkeyPatch.context() as patch:  # the others are float32 too
        patch.setattr(latent, "matrices", lambda _: weights)
        prepared = load(name).prepare(Case(problem=problem, backend=name), "cpu")
    out = prepared.call(*placed).transpose(1, 2)
    k, v = latent.expand(weights, cache)
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        plain = replace(latent.expanded(part), page_size=0)
        right = oracle.attend(plain, q[:, :, queries], k[:, :, keys], v[:, :, keys])[0]
        torch.testing.assert_close(out[:, :, queries].double(), right, rtol=0, atol=1e-4)
    assert prepared.seconds.keys() == {"plan", "compile"}


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("flashinfer", {"kv": "latent:512+64", "head_dim": 192, "head_dim_v": 128}, "latent KV unsupported"),
        ("flashinfer:mla", {}, "only a latent cache: use flashinfer"),
        ("flashinfer:mla", {"kv": "latent:16+4", "head_dim": 12}, "kv=latent:16+4 unsupported: use kv=latent:512+64"),
        ("flashinfer:cascade", {}, "no shared prefix: use --requests and --set shared_prefix=2k:8"),
        (
            "flashinfer:cascade",
            {"requests": "2q1s50_q20", "batch": 3, "seq_q": 20, "shared_prefix": "20:2", "page_size": 16}
            | {"seq_kv": 50},
            "a request without the prefix, or groups with gaps or unlike prefixes, unsupported: use sdpa:cascade",
        ),
        (
            "flashinfer:cascade",
            {"requests": "2q1s50", "batch": 2, "seq_q": 1, "seq_kv": 50, "shared_prefix": "20:2"},
            "it reads a prefix from pages: use --set page_size=16",
        ),
    ],
)
def test_what_a_wrapper_of_flashinfer_does_not_take_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in load(name).objections(Case(problem=batch_of(MIXED, "flashinfer", **fields), backend=name), "cuda")


def test_a_probe_says_why_a_library_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = load("flashinfer").probe or str
    assert probe("cpu") is None
    monkeypatch.delattr(sys.modules["flashinfer"], "BatchPrefillWithRaggedKVCacheWrapper")
    assert probe("cpu") == "AttributeError: module 'flashinfer' has no attribute 'BatchPrefillWithRaggedKVCacheWrapper'"


@pytest.mark.parametrize("name", PAGES)
def test_planning_is_a_sample_and_a_cpu_has_no_transfer(name: str) -> None:
    prepared, _, _ = libraries.prepared_batch(name, batch_of(MIXED, name, page_size=256))
    assert prepared.seconds.keys() == ({"plan", "compile"} if name == "flashinfer" else {"plan"})


def test_a_transfer_to_a_gpu_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbench.backends import planned

    order: list[object] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: order.append("wait"))
    tables, seconds = planned(
        lambda: order.append("plan") or 3, lambda plan: order.append("move") or plan + 1, "cuda:0"
    )
    assert (tables, seconds.keys()) == (4, {"plan", "transfer"})
    assert order == ["plan", "wait", "move", "wait"]
