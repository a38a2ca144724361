"""Paged KV cache: written and read back, and attention through the page table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench import backends
from attnbench.attention import layouts
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import ProblemError
from attnbench.records.case import Case
from tests import oracle, reference

SHAPE = {"batch": 3, "seq_q": 2, "seq_kv": 37, "heads": 4, "kv_heads": 2, "head_dim": 16, "mask": "causal"}


@pytest.mark.parametrize("page_size", [1, 8, 16, 64])
def test_read_returns_what_was_written(page_size: int) -> None:
    problem = Problem(**SHAPE, page_size=page_size)
    table = layouts.page_table(problem)
    per_sequence = -(-37 // page_size)
    assert sorted(table.flatten().tolist()) == list(range(3 * per_sequence))
    tensor = torch.randn(3, 2, 37, 16)
    stored = layouts.paged(problem, tensor)
    assert stored.shape == (3 * per_sequence, page_size, 2, 16)
    assert torch.equal(layouts.gathered(problem, stored, torch.from_numpy(table).long()), tensor)
    # By hand: token 20 of sequence 1, head 1.
    assert torch.equal(stored[table[1, 20 // page_size], 20 % page_size, 1], tensor[1, 1, 20])
    if 3 * per_sequence > 3:
        assert (table.flatten()[1:] != table.flatten()[:-1] + 1).any()


def test_naive_attention_over_pages() -> None:
    problem = Problem(**SHAPE, page_size=16)
    qkv, _ = oracle.drawn(problem)
    prepared = backends.load("naive").prepare(Case(problem=problem, backend="naive"), "cpu")
    out = prepared.call(qkv[0], *map(prepared.stored, qkv[1:]))
    torch.testing.assert_close(out.double(), reference.attend(problem, *qkv).out, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "fields", "mode", "hint"),
    [
        ("sdpa:flash", {}, Mode.FWD, "keys in pages unsupported"),
        ("naive", {}, Mode.FWD_BWD, "backward of keys in pages unsupported"),
        ("triton", {"seq_q": 30}, Mode.FWD, "decode kernel"),
        ("triton", {"page_size": 512}, Mode.FWD, "page_size 512 is over 256"),
        ("triton", {"mask": "padding:0.3"}, Mode.FWD, "padding over pages unsupported"),
    ],
)
def test_unsupported_problems_are_refused(name: str, fields: dict[str, Any], mode: Mode, hint: str) -> None:
    problem = Problem(**{**SHAPE, "page_size": 16, **fields})
    objections = backends.load(name).objections(Case(problem=problem, backend=name, mode=mode), "cpu")
    assert any(hint in why for why in objections)


@pytest.mark.parametrize("fields", [{"page_size": 24}, {"page_size": 16, "positions": "rope"}, {"page_size": -16}])
def test_invalid_page_sizes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProblemError, match="page_size"):
        Problem(**SHAPE, **fields)
