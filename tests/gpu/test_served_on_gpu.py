"""Batches of requests by every backend on a GPU, packed and in pages, judged as a run judges them."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.attention import requests
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import load, scope
from attnbench.records.case import Case
from tests.gpu.test_backends_on_gpu import DEVICE, available
from tests.gpu.test_mechanisms_on_gpu import ON_GPU, assert_right

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

BATCHES = {
    "decode": "4q1s700_2q1s33",
    "speculative": "3q4s300",
    "chunked prefill": "2q64s500_q100s257",
    "mixed": "q100_q30s400_3q1s257",
    "system prompt": "6q1s600_2q8s700",
    "decodes and requests that wait": "q0s300_4q1s700_q0",
    "requests that wait": "q0s300_4q1s700_q0_q40s90",
}
MORE: dict[str, dict[str, Any]] = {
    "window": {"mask": "causal+window:40"},
    "full": {"mask": "none"},
    "lse": {"returns": "lse"},
}


def batch_of(label: str, **fields: Any) -> Problem:
    text = BATCHES[label]
    queries, keys = zip(*requests.parse(text), strict=True)
    shape = {"batch": len(keys), "seq_q": max(queries), "seq_kv": max(keys), "requests": text}
    return Problem(**{"heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "bf16", "mask": "causal", **shape, **fields})


# Shapes of a latent cache and of prefixes; every backend that takes one has them among its features.
LATENT = {"kv": "latent:512+64", "heads": 16, "kv_heads": 1, "head_dim": 192, "head_dim_v": 128}
SPECIAL: dict[str, dict[str, Any]] = {
    "a prefix of two groups": {"label": "system prompt", "shared_prefix": "512:4", "page_size": 16},
    "a prefix without pages": {"label": "system prompt", "shared_prefix": "512:8"},
    "a latent cache in pages": {"label": "mixed", "page_size": 64, **LATENT},
    "decodes of a latent cache": {"label": "decode", "page_size": 16, **LATENT},
    "a packed latent cache": {"label": "decode", **LATENT},
    "a prefix of a latent cache": {"label": "system prompt", "shared_prefix": "512:4", "page_size": 16, **LATENT},
}


@pytest.mark.parametrize("page_size", [0, 16, 256])
@pytest.mark.parametrize("label", ["decode", "speculative", "chunked prefill", "mixed"])
@pytest.mark.parametrize("backend", ON_GPU)
def test_a_served_batch(backend: str, label: str, page_size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    if load(backend).compiles and (label, page_size) not in (("mixed", 0), ("mixed", 16)):
        pytest.skip("compiles for many seconds: a few batches are enough here")
    assert_right(Case(problem=batch_of(label, page_size=page_size), backend=backend), tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("page_size", [0, 16, 256])
@pytest.mark.parametrize("label", ["decodes and requests that wait", "requests that wait"])
@pytest.mark.parametrize("backend", [name for name in ON_GPU if not load(name).compiles])
def test_requests_without_queries(
    backend: str, label: str, page_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert_right(Case(problem=batch_of(label, page_size=page_size), backend=backend), tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("page_size", [0, 256])
@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("backend", [name for name in ON_GPU if not load(name).compiles])
def test_a_mixed_batch(backend: str, more: str, page_size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_right(
        Case(problem=batch_of("mixed", page_size=page_size, **MORE[more]), backend=backend),
        tmp_path_factory.getbasetemp(),
    )


@pytest.mark.parametrize("backend", [name for name in ON_GPU if not load(name).compiles])
def test_gradients_of_a_packed_batch(backend: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_right(
        Case(problem=batch_of("chunked prefill"), backend=backend, mode=Mode.FWD_BWD), tmp_path_factory.getbasetemp()
    )


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("backend", [name for name in ON_GPU if not load(name).compiles])
def test_latent_caches_and_shared_prefixes(backend: str, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert_right(Case(problem=batch_of(**SPECIAL[name]), backend=backend), tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("backend", ["sdpa:padded", "sdpa:cascade", "triton", "triton:cascade"])
def test_planning_and_moving_the_tables_are_samples(backend: str) -> None:
    case = Case(problem=batch_of("system prompt", shared_prefix="512:4", page_size=16), backend=backend)
    chosen, reason = available(backend)
    if reason := reason or "; ".join(chosen.objections(case, "cuda", torch.cuda.get_device_capability())):
        pytest.skip(reason)
    seconds = scope.prepare(chosen, case, DEVICE).seconds
    assert seconds.keys() == {"plan", "transfer"}
    assert all(0 < value < 60 for value in seconds.values())


def test_an_even_latent_batch(tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = {"batch": 4, "seq_q": 2, "seq_kv": 900, "mask": "causal", "dtype": "bf16"}
    for page_size in (0, 64):
        problem = Problem(page_size=page_size, **shape, **LATENT)
        assert_right(Case(problem=problem, backend="triton"), tmp_path_factory.getbasetemp())
