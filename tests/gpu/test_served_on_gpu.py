"""Batches of requests by every backend on a GPU, packed and in pages, judged as a run judges them."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.attention import requests
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import load
from attnbench.records.case import Case
from tests.gpu.test_mechanisms_on_gpu import ON_GPU, assert_right

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

BATCHES = {
    "decode": "4q1s700_2q1s33",
    "speculative": "3q4s300",
    "chunked prefill": "2q64s500_q100s257",
    "mixed": "q100_q30s400_3q1s257",
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


@pytest.mark.parametrize("page_size", [0, 16, 64, 256])
@pytest.mark.parametrize("label", BATCHES)
@pytest.mark.parametrize("backend", ON_GPU)
def test_a_served_batch(backend: str, label: str, page_size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    if load(backend).compiles and (label, page_size) not in (("mixed", 0), ("mixed", 16)):
        pytest.skip("compiles for many seconds: a few batches are enough here")
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
