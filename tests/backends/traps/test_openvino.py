"""Traps of OpenVINO."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from attnbench.attention import dense_masks
from attnbench.attention.problem import Problem
from attnbench.backends import CaseRefusedError, load
from attnbench.records.case import Case
from tests import oracle
from tests.backends.traps import CROSS, DECODE, SQUARE, computed, difference, missing, off, trap

pytestmark = pytest.mark.slow


def plain_openvino(problem: Problem, *, causal: bool, mask: torch.Tensor | None = None, **settings: Any) -> Any:
    """scaled_dot_product_attention as a user writes it: the compiled model, and out."""
    from attnbench.backends import openvino

    ov, ops = openvino.library(), openvino.opset()
    drawn = [*oracle.drawn(problem)[0], *([] if mask is None else [mask])]
    kinds = {torch.float32: ov.Type.f32, torch.float16: ov.Type.f16}
    inputs = [ops.parameter(list(t.shape), kinds[t.dtype], f"x{n}") for n, t in enumerate(drawn)]
    node = ops.scaled_dot_product_attention(*inputs, causal=causal)
    plan = ov.Core().compile_model(ov.Model([node.output(0)], inputs, "plain"), "CPU", settings)
    out = torch.from_numpy(plan([tensor.numpy() for tensor in drawn])[0].copy())
    return plan, out


def has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@trap("openvino", "its import reports itself")
def test_openvino_is_imported_without_its_telemetry():
    program = (
        "import sys; from attnbench.backends import openvino; openvino.library(); "
        "print(sys.modules['openvino_telemetry'], 'openvino.tools.ovc.telemetry_stub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["None", "True"], done.stderr


@trap("openvino", "causal is aligned")
def test_causal_of_openvino_is_top_left():
    _, out = plain_openvino(CROSS, causal=True, INFERENCE_PRECISION_HINT="f32")
    assert difference(out, CROSS) > 0.1
    assert off("openvino", CROSS) < 1e-5


@trap("openvino", "a mask is ignored")
def test_a_mask_beside_causal_is_ignored():
    problem = Problem(seq_q=64, heads=2, mask="causal+window:7")
    mask = dense_masks.added(problem, torch.float32)
    _, out = plain_openvino(problem, causal=True, mask=mask, INFERENCE_PRECISION_HINT="f32")
    assert difference(out, replace(problem, mask="causal")) < 1e-5
    assert off("openvino", problem) < 1e-5


@trap("openvino", "a CPU with bf16")
def test_fp32_is_computed_in_fp32():
    if not has_bf16():
        pytest.skip("this CPU has no bf16")
    plan, _ = plain_openvino(SQUARE, causal=False)
    assert "bfloat16" in str(plan.get_property("INFERENCE_PRECISION_HINT"))
    prepared = load("openvino").prepare(Case(problem=SQUARE, backend="openvino"), "cpu")
    assert prepared.facts["precision"] == "f32"


@trap("openvino", "the hint f16")
def test_fp16_is_computed_in_fp32():
    if not has_bf16():
        pytest.skip("this CPU has no bf16")
    problem = replace(SQUARE, dtype="fp16")
    plan, _ = plain_openvino(problem, causal=False, INFERENCE_PRECISION_HINT="f16")
    assert "bfloat16" in str(plan.get_property("INFERENCE_PRECISION_HINT"))
    assert load("openvino").prepare(Case(problem=problem, backend="openvino"), "cpu").facts["precision"] == "f32"


def test_a_setting_that_is_not_kept_is_a_refusal():
    if reason := missing("openvino"):
        pytest.skip(reason)
    from attnbench.backends import openvino

    model = openvino.sdpa_model(SQUARE).model
    with pytest.raises(CaseRefusedError, match="openvino does not keep NUM_STREAMS=1000"):
        openvino.compiled(model, SQUARE, NUM_STREAMS=1000, INFERENCE_NUM_THREADS=1)


@trap("openvino", "a row that sees no key")
def test_a_row_without_keys_is_not_a_number_in_openvino():
    problem = Problem(seq_q=50, seq_kv=20, heads=2, mask="causal")
    assert load("openvino").objections(Case(problem=problem, backend="openvino"), "cpu")
    mask = dense_masks.added(problem, torch.float32)
    assert plain_openvino(problem, causal=False, mask=mask, INFERENCE_PRECISION_HINT="f32")[1].isnan().any()


@trap("openvino", "heads that share keys")
def test_heads_that_share_keys_are_folded_where_all_keys_are_visible():
    for problem, how in ((DECODE, "folded"), (replace(CROSS, heads=4, kv_heads=2), "broadcast")):
        prepared = load("openvino").prepare(Case(problem=problem, backend="openvino"), "cpu")
        assert prepared.facts["shared_heads"] == how
        assert off("openvino", problem) < 1e-5


@trap("openvino:paged", "the operator is private")
def test_this_version_has_the_operator():
    from attnbench.backends import openvino

    assert hasattr(openvino.library().op, "_PagedAttentionExtension")


@trap("openvino:paged", "the precision of the cache")
def test_the_cache_has_eight_bits_unless_told_otherwise():
    from attnbench.backends import openvino

    ov = openvino.library()
    model = openvino.paged_model(replace(DECODE, dtype="fp32"))
    plan = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert "uint8" in str(plan.get_property("KV_CACHE_PRECISION"))
    assert off("openvino:paged", DECODE) < 1e-5


@trap("openvino:paged", "with a number as window")
def test_a_window_of_aggregated_scores_leaves_the_output_unwritten(monkeypatch):
    from attnbench.backends import openvino

    monkeypatch.setattr(openvino, "_EMPTY", (("i32", ()), *openvino._EMPTY[1:]))
    monkeypatch.setattr(openvino.Inference, "run", marked(openvino.Inference.run))
    try:
        out, _ = computed("openvino:paged", DECODE)
    except RuntimeError:
        return
    assert (out == 7).all()


def marked(run: Any) -> Any:
    return lambda self, out: run(self, out.fill_(7))


@trap("openvino:paged", "fp16")
def test_a_cache_that_is_converted_at_every_call_is_refused():
    problem = replace(DECODE, dtype="fp16")
    assert load("openvino:paged").objections(Case(problem=problem, backend="openvino:paged"), "cpu")
    with pytest.raises(CaseRefusedError, match="converts the whole cache"):
        computed("openvino:paged", problem, torch.float16)


@trap("openvino:paged", "bf16 fails on a CPU")
def test_a_bf16_cache_is_refused_where_the_cpu_lacks_bf16(monkeypatch):
    from attnbench.backends import openvino

    monkeypatch.setattr(openvino, "capabilities", lambda: ("FP32", "INT8"))
    case = Case(problem=replace(DECODE, dtype="bf16"), backend="openvino:paged")
    with pytest.raises(CaseRefusedError, match="no bf16 cache on this CPU"):
        load("openvino:paged").prepare(case, "cpu")
