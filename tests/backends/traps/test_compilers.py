"""Traps of jax, zentorch and torch.compile."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import requires, version

import pytest
import torch
from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.backends import CaseRefusedError, load
from attnbench.records.case import Case
from attnbench.records.result import Status
from attnbench.worker.failures import request_failed
from tests import oracle
from tests.backends.traps import CROSS, SQUARE, computed, difference, off, trap

pytestmark = pytest.mark.slow


@trap("jax", "fp16")
def test_fp16_is_an_error_in_jax():
    problem = replace(SQUARE, dtype="fp16")
    assert load("jax").objections(Case(problem=problem, backend="jax"), "cpu")
    with pytest.raises(Exception, match=r"F16|float16|precision"):
        computed("jax", problem, torch.float16)


@trap("jax", "is_causal is aligned")
def test_is_causal_of_jax_is_top_left():
    import jax

    q, k, v = (tensor.transpose(1, 2).numpy() for tensor in oracle.drawn(CROSS)[0])
    out = torch.tensor(jax.nn.dot_product_attention(q, k, v, is_causal=True).tolist()).transpose(1, 2)
    assert difference(out, CROSS) > 0.1
    assert off("jax", CROSS) < 1e-5


@trap("jax", "a row that sees no key")
def test_a_row_without_keys_is_a_mean_in_jax():
    problem = Problem(seq_q=50, seq_kv=20, heads=2, mask="causal")
    assert load("jax").objections(Case(problem=problem, backend="jax"), "cpu")
    out = (
        load("jax")
        .prepare(Case(problem=problem, backend="jax"), "cpu")
        .call(*(tensor.transpose(1, 2).contiguous() for tensor in oracle.drawn(problem)[0]))
    )
    mean = oracle.drawn(problem)[0][2].mean(2)
    assert (out[:, 0] - mean).abs().max() < 1e-5


@trap("jax", "denormal numbers")
def test_denormals_become_zero_in_jax():
    prepared = load("jax").prepare(Case(problem=SQUARE, backend="jax"), "cpu")
    zeros = torch.zeros(1, 64, 2, 64)
    assert (prepared.call(zeros, zeros, torch.full_like(zeros, 1e-39)) == 0).all()
    assert prepared.facts["denormals"] == "flushed"


@trap("jax", "the threads follow")
@pytest.mark.parametrize(("variable", "message"), [("2", "2"), ("3", "CaseRefusedError")])
def test_threads_of_jax_are_read_back(variable, message):
    program = (
        "import torch; torch.set_num_threads(2); from tests.backends import traps as t; "
        "from attnbench.backends import load; from attnbench.records.case import Case; "
        "p = load('jax').prepare(Case(problem=t.SQUARE, backend='jax'), 'cpu'); z = torch.zeros(1, 64, 2, 64); "
        "p.call(z, z, z); print(p.late_facts()['library_threads'])"
    )
    variables = os.environ | {"PJRT_NPROC": variable}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables, check=False)
    assert message in done.stdout + done.stderr


@trap("jax", "the process needs")
def test_jax_needs_memory_beside_its_tensors():
    program = (
        "import re; size = lambda: int(re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
        "before = size(); import jax; jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0)); print(size() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert int(done.stdout) > 100 * 1024, done.stderr


def test_gradients_of_jax_are_those_of_the_formula():
    pytest.importorskip("jax")
    problem = Problem(seq_q=24, heads=2, mask="causal")
    prepared = load("jax").prepare(Case(problem=problem, backend="jax", mode="fwd_bwd"), "cpu")
    qkv, dout = oracle.drawn(problem)
    leaves = [tensor.transpose(1, 2).contiguous().requires_grad_() for tensor in qkv]
    gradients = torch.autograd.grad(prepared.call(*leaves), leaves, dout.transpose(1, 2).contiguous())
    exact = [tensor.double().requires_grad_() for tensor in qkv]
    expected = torch.autograd.grad(oracle.attend(problem, *exact)[0], exact, dout.double())
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient.transpose(1, 2) - other).abs().max() < 1e-4


@trap("zentorch", "is_causal is aligned")
def test_is_causal_of_zentorch_is_top_left():
    import zentorch  # type: ignore[import-not-found]  # noqa: F401

    out = torch.ops.zentorch.zentorch_sdpa(*oracle.drawn(CROSS)[0], is_causal=True)[0]
    assert difference(out, CROSS) > 0.1
    assert off("zentorch", CROSS) < 1e-5


@trap("zentorch", "the lse that it returns")
def test_the_lse_of_zentorch_is_refused():
    case = Case(problem=replace(SQUARE, returns="lse"), backend="zentorch")
    assert load("zentorch").objections(case, "cpu") == ["log-sum-exp besides the output unsupported"]


@trap("zentorch", "a last dimension")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_last_dimension_that_is_not_contiguous_is_read_wrong_or_fails(dtype):
    """Its kernel reads beyond such a tensor: q, k and v are parts of larger ones."""
    import zentorch  # noqa: F401

    memory = torch.zeros(3, 1, 2, 64 * 80, 64, dtype=dtype)
    q, k, v = memory[:, :, :, :64].normal_().transpose(-1, -2)
    right = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    out, failure = None, ""
    try:
        out = torch.ops.zentorch.zentorch_sdpa(q, k, v)[0]
    except RuntimeError as wrong:  # in bf16 and fp32 on some CPUs
        failure = str(wrong)
    if out is None:
        assert "sdpa_direct failed" in failure
        assert dtype is not torch.float16
    else:
        assert not torch.allclose(out.float(), right, atol=0.1)


@trap("zentorch", "each version belongs")
def test_the_pinned_version_is_for_this_torch():
    assert version("zentorch").split(".")[:2] == torch.__version__.split(".")[:2], requires("zentorch")


@trap("compile", "inductor rewrites")
@trap("compile:formula", "inductor rewrites")
def test_the_formula_is_rewritten_or_not_as_its_label_says(monkeypatch, tmp_path):
    from attnbench.backends import compile as compiled

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    problem = Problem(seq_q=64, heads=2, mask="causal")
    labels = (("compile", "to SDPA"), ("compile:formula", "no"))
    for name, rewritten in (*labels, *labels):  # the second time from torch's caches
        prepared = load(name).prepare(Case(problem=problem, backend=name), "cpu")
        with torch.no_grad():
            out = prepared.call(*oracle.drawn(problem)[0])
        assert difference(out, problem) < 1e-5
        assert prepared.late_facts
        assert prepared.late_facts()["rewritten"] == rewritten
    monkeypatch.setattr(compiled, "formula", lambda problem: lambda q, k, v, *_: v + 0)
    prepared = load("compile").prepare(Case(problem=problem, backend="compile"), "cpu")
    prepared.call(*oracle.drawn(problem)[0])
    with pytest.raises(CaseRefusedError, match="does not rewrite this formula") as caught:
        prepared.late_facts()
    assert request_failed(caught.value, "prepare").status is Status.UNSUPPORTED
