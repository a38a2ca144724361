"""SDPA: each kernel alone, proved by the operator that ran."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import profile

from attnbench import backends
from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from tests import oracle

OPERATORS = {
    "sdpa:math": "aten::_scaled_dot_product_attention_math",
    "sdpa:flash": "aten::_scaled_dot_product_flash_attention_for_cpu",
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("mask", ["none", "causal", "window:4"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_that_was_asked_for_is_the_one_that_runs(name, mask, kv_heads):
    problem = Problem(seq_q=24, seq_kv=32, heads=4, kv_heads=kv_heads, mask=mask)
    prepared = backends.load(name).prepare(Case(problem=problem, backend=name), "cpu")
    qkv, _ = oracle.drawn(problem)
    with profile() as profiler:
        prepared.call(*qkv)
    ran = {event.key for event in profiler.key_averages()} & set(OPERATORS.values())
    assert ran == {OPERATORS[name]}


def test_torch_says_what_it_picks_and_it_is_what_runs():
    problem = Problem(seq_q=24, heads=2, head_dim=16, head_dim_v=8)
    prepared = backends.load("sdpa").prepare(Case(problem=problem, backend="sdpa"), "cpu")
    assert prepared.late_facts
    assert prepared.late_facts()["resolved"] == "math"
    plain = backends.load("sdpa").prepare(Case(problem=Problem(seq_q=24, heads=2), backend="sdpa"), "cpu")
    assert plain.late_facts
    assert plain.late_facts()["resolved"] == "flash"


def test_a_kernel_that_is_switched_off_cannot_run():
    problem = Problem(seq_q=8, heads=1)
    call = backends.load("sdpa:flash").prepare(Case(problem=problem, backend="sdpa:flash"), "cpu").call
    q, k, v = oracle.drawn(problem)[0]
    with pytest.raises(RuntimeError):
        call(q, k, v[..., :8])  # flash takes no other width of v, and nothing else is allowed to step in
    assert torch.is_tensor(call(q, k, v))


def test_cuda_limits_are_data():
    flash = backends.load("sdpa:flash")
    dense = Case(problem=Problem(seq_q=8, dtype="bf16", mask="prefix:3"), backend="sdpa:flash")
    assert flash.objections(dense, "cuda", (9, 0)) == ["prefix mask unsupported"]
    crossed = Case(problem=Problem(seq_q=8, seq_kv=9, dtype="bf16", mask="causal"), backend="sdpa:flash")
    assert flash.objections(crossed, "cuda", (9, 0)) == ["not causal with cross"]
    plain = Case(problem=Problem(seq_q=8, dtype="bf16", mask="causal"), backend="sdpa:flash")
    assert flash.objections(plain, "cuda", (9, 0)) == []
    assert flash.objections(plain, "cuda", (7, 5)) == ["needs compute capability 8.0, this device has 7.5"]
    assert backends.load("sdpa:cudnn").objections(plain, "cpu") == ["runs on cuda, not on cpu"]
