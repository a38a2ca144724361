"""Batches of requests by the CUDA libraries: what an adapter hands over, computed by stand-ins, against float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.attention import requests
from attnbench.attention.problem import Problem
from attnbench.attention.requests import Request
from attnbench.attention.scores import Score
from attnbench.backends import load
from attnbench.records.case import Case

torch = pytest.importorskip("torch")

from tests.backends import libraries  # noqa: E402

HOPPER = (9, 0)
# Page sizes that a library reads; 0: packed keys.
PAGES = {
    "varlen": (0, 256, 512),
    "flash-attn:2": (0, 256, 512),
    "flash-attn:3": (0, 1, 16, 256),
    "flash-attn:4": (0, 1, 16, 256),
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
REFUSED = {("varlen", "softcap"): ["soft cap on the logits unsupported"]}


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
    }
    for name, stand_in in modules.items():
        patch.setitem(sys.modules, name, stand_in)
    yield
    patch.undo()


def batch_of(sizes: tuple[Request, ...], **fields: Any) -> Problem:
    queries, keys = zip(*sizes, strict=True)
    shape = {"batch": len(sizes), "seq_q": max(queries), "seq_kv": max(keys), "requests": requests.spell(sizes)}
    return Problem(**{"heads": 2, "head_dim": 8, "dtype": "bf16", **shape, **fields})


SIZES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 300)).map(lambda size: Request(size[0], sum(size))),
    min_size=1,
    max_size=4,
).map(tuple)
MIXED = (Request(7, 7), Request(1, 300), Request(4, 261), Request(1, 1))


def assert_right(name: str, problem: Problem) -> None:
    out, lse, packed = libraries.computed(name, problem)
    right, right_lse = libraries.expected(problem, *packed)
    torch.testing.assert_close(out.double(), right, rtol=0, atol=1e-5)
    if lse is not None:
        torch.testing.assert_close(lse.double(), right_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("label", FIELDS)
@pytest.mark.parametrize("name", PAGES)
def test_what_is_handed_over_is_the_problem(name: str, label: str, paged: bool) -> None:
    problem = batch_of(MIXED, page_size=PAGES[name][paged], **FIELDS[label])
    if objections := load(name).objections(Case(problem=problem, backend=name), "cuda", HOPPER):
        assert objections == REFUSED[name, label]
    else:
        assert_right(name, problem)


@pytest.mark.parametrize("name", PAGES)
@settings(max_examples=12, deadline=None)
@given(sizes=SIZES, data=st.data())
def test_any_batch_with_any_pages(name: str, sizes: tuple[Request, ...], data: st.DataObject) -> None:
    mask = data.draw(st.sampled_from(("none", "causal", "causal+window:5")))
    assert_right(name, batch_of(sizes, page_size=data.draw(st.sampled_from(PAGES[name])), mask=mask))


def test_slopes_of_alibi_are_handed_over_with_pages() -> None:
    problem = batch_of(MIXED, page_size=256, mask="causal", score=Score(bias="alibi"))
    out, _, packed = libraries.computed("flash-attn:2", problem)
    torch.testing.assert_close(out.double(), libraries.expected(problem, *packed)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["varlen", "flash-attn:2", "flash-attn:3", "flash-attn:4"])
def test_pages_of_an_even_batch(name: str) -> None:
    even = Problem(batch=2, seq_q=3, seq_kv=300, heads=2, head_dim=8, dtype="bf16", mask="causal", page_size=256)
    packed = batch_of((Request(3, 300),) * 2, mask="causal", page_size=256)
    assert load(name).objections(Case(problem=even, backend=name), "cuda", HOPPER) == []
    prepared, (q, k, v), _ = libraries.prepared_batch(name, packed)
    of_even = load(name).prepare(Case(problem=even, backend=name), "cpu")
    assert torch.equal(of_even.call(q.unflatten(1, (2, 3))[0], k, v), prepared.call(q, k, v).unflatten(1, (2, 3))[0])


@pytest.mark.parametrize("name", PAGES)
def test_gradients_of_packed_requests(name: str) -> None:
    problem = batch_of((Request(3, 20), Request(5, 5)), mask="causal")
    prepared, placed, packed = libraries.prepared_batch(name, problem)
    leaves = [tensor.requires_grad_() for tensor in placed]
    out = prepared.call(*leaves)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((out * weight).sum(), leaves)
    for number, (queries, keys) in enumerate(problem.spans):
        spans = queries, keys, keys
        part = [tensor[:, :, span] for tensor, span in zip(packed, spans, strict=True)]
        right = libraries.reference.gradients(
            problem.parts[number], *part, weight.transpose(1, 2)[:, :, queries].contiguous()
        )
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
    ],
)
def test_what_a_library_does_not_take_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in load(name).objections(Case(problem=batch_of(MIXED, **fields), backend=name), "cuda", HOPPER)


@pytest.mark.parametrize("name", PAGES)
def test_planning_is_a_sample_and_a_cpu_has_no_transfer(name: str) -> None:
    prepared, _, _ = libraries.prepared_batch(name, batch_of(MIXED, page_size=256))
    assert prepared.seconds.keys() == {"plan"}


def test_a_transfer_to_a_gpu_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbench.backends import planned

    order: list[object] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: order.append("wait"))
    tables, seconds = planned(
        lambda: order.append("plan") or 3, lambda plan: order.append("move") or plan + 1, "cuda:0"
    )
    assert (tables, seconds.keys()) == (4, {"plan", "transfer"})
    assert order == ["plan", "wait", "move", "wait"]
