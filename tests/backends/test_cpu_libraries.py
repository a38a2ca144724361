"""Libraries for CPUs without the libraries: translation of a problem, refusals, settings, what is outside a call."""

from __future__ import annotations

import sys

import pytest
import torch
from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import layouts
from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import CaseRefusedError, Layout, Prepared, ggml, jax, openvino, ort, scope, vllm_cpu, zentorch
from attnbench.backends import compile as compiled_formula
from attnbench.engine import interpreters
from attnbench.machine.device.cpu import CpuInstrument
from attnbench.machine.worker_environment import arm_environment
from attnbench.records.arm import Device
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Status
from attnbench.worker import prepared_case, process
from attnbench.worker.failures import request_failed
from attnbench.worker.prepared_case import PreparedCase
from attnbench.worker.process_state import ProcessState

SQUARE = Problem(seq_q=64, heads=4)
CAUSAL = replace(SQUARE, mask="causal")
CROSS = Problem(seq_q=20, seq_kv=50, heads=4, kv_heads=2, mask="causal")
DECODE = Problem(seq_q=1, seq_kv=70, heads=4, kv_heads=2, batch=2, mask="causal")
WINDOW = replace(SQUARE, mask="causal+window:7")


def objections(name: str, problem: Problem, mode: str = "fwd") -> list[str]:
    return backends.load(name).objections(Case(problem=problem, backend=name, mode=mode), "cpu")


def node(name: str, problem: Problem) -> ort.Node:
    return ort.node(Case(problem=problem, backend=name))


def test_a_causal_mask_of_ort_attention_has_the_lengths_of_keys():
    made = node("ort:attention", CROSS)
    assert made.attributes == {"scale": CROSS.scale, "is_causal": 1}
    assert made.inputs == ("q", "k", "v", "", "", "", "lengths")
    assert ort.constants(DECODE, ("lengths",))["lengths"].tolist() == [70, 70]


def test_a_decode_needs_neither_mask_nor_flag():
    assert node("ort:attention", DECODE).attributes["is_causal"] == 0
    assert node("ort:gqa", DECODE).attributes["causal"] == 0
    assert not ort.uses_mask(DECODE, "ort:mha")


def test_other_masks_of_ort_are_a_tensor():
    made = node("ort:attention", WINDOW)
    assert made.inputs[3] == "mask"
    assert made.attributes["is_causal"] == 0
    mask = ort.constants(WINDOW, made.inputs)["mask"]
    assert mask.shape == (1, 1, 64, 64)
    assert (mask[0, 0, 20] == 0).nonzero().flatten().tolist() == list(range(13, 21))


def test_gqa_counts_the_diagonal_key_of_a_window():
    made = node("ort:gqa", replace(WINDOW, score=Score(softcap=5.0)))
    assert made.attributes["local_window_size"] == 8
    assert made.attributes["softcap"] == 5.0
    assert made.inputs[10] == ""


def test_gqa_gets_the_number_of_new_tokens_of_a_batch():
    assert node("ort:gqa", replace(CROSS, batch=2)).inputs[-1] == "rows"
    assert "rows" not in node("ort:gqa", CROSS).inputs
    biased = node("ort:gqa", replace(CROSS, batch=2, score=Score(bias="alibi:dense")))
    assert (biased.attributes["causal"], biased.inputs[10]) == (1, "mask")
    fixed = ort.constants(replace(CROSS, batch=2), ("last", "total", "rows"))
    assert fixed["last"].tolist() == [49, 49]
    assert fixed["rows"].tolist() == [20, 20]
    assert fixed["total"].item() == 50


def test_mha_is_causal_by_its_flag_only_where_lengths_agree():
    assert node("ort:mha", CAUSAL).attributes["unidirectional"] == 1
    assert node("ort:mha", replace(CROSS, kv_heads=4)).inputs[-1] == "mask"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("ort:attention", {"dtype": "bf16"}, "bf16 unsupported (supported: fp32, fp16)"),
        ("ort:mha", {"kv_heads": 2}, "fewer kv_heads than heads unsupported"),
        ("ort:gqa", {"head_dim": 20, "head_dim_v": 20}, "head_dim 20 is not a multiple of 8"),
        ("ort:gqa", {"mask": "window:7"}, "mask window:7 unsupported: a window needs causal"),
        ("ort:gqa", {"seq_kv": 32}, "seq_q 64 is over seq_kv 32: new tokens are the last keys"),
        (
            "ort:gqa",
            {"batch": 2, "seq_kv": 128},
            "mask none unsupported: several queries of a batch after a past need causal",
        ),
        ("openvino", {"seq_kv": 32, "mask": "causal"}, "fully masked rows unsupported"),
        ("openvino:paged", {}, "mask none unsupported: causal only, as causal+window:128"),
        ("openvino:paged", {"mask": "causal", "page_size": 16}, "page_size=16 unsupported: use page_size=32"),
        ("openvino:paged", {"mask": "causal", "dtype": "fp16"}, "fp16 unsupported (supported: fp32, bf16)"),
        ("vllm-cpu", {"head_dim_v": 32}, "head_dim_v different from head_dim unsupported"),
        ("vllm-cpu", {"seq_kv": 32}, "more queries than keys: new tokens are the last keys"),
        ("ggml", {"dtype": "bf16"}, "bf16 unsupported (supported: fp32)"),
        ("ggml", {"score": Score(bias="alibi")}, "ALiBi bias unsupported"),
        ("jax", {"dtype": "fp16"}, "fp16 unsupported (supported: fp32, bf16)"),
        ("zentorch", {"returns": "lse"}, "log-sum-exp besides the output unsupported"),
        ("compile", {"score": Score(bias="shaw:16")}, "Shaw's relative bias unsupported"),
    ],
)  # fmt: skip
def test_a_library_refuses_with_its_reason(name, changes, expected):
    assert expected in objections(name, replace(SQUARE, **changes))


def test_only_jax_and_compiled_formulas_have_a_backward_pass():
    names = ("ort:attention", "ort:gqa", "ort:mha", "openvino", "openvino:paged", "vllm-cpu", "ggml", "zentorch")
    assert all("backward unsupported" in objections(name, CAUSAL, "fwd_bwd") for name in names)
    assert not any(objections(name, CAUSAL, "fwd_bwd") for name in ("jax", "compile", "compile:formula"))
    assert objections("jax", replace(CAUSAL, returns="lse"), "fwd_bwd") == ["backward with the lse unsupported"]


def test_the_precision_of_openvino_is_never_below_the_dtype():
    assert openvino.hint(Dtype.FP32, ("BF16",)) == "f32"
    assert openvino.hint(Dtype.FP16, ("BF16", "FP16")) == "f32"
    assert openvino.hint(Dtype.BF16, ("BF16",)) == "bf16"
    assert openvino.hint(Dtype.BF16, ("FP32",)) == "f32"


def test_openvino_folds_heads_only_without_a_mask():
    assert openvino.folds(DECODE)
    assert not openvino.folds(CROSS)
    assert openvino.is_free_of_masks(CAUSAL)
    assert not openvino.is_free_of_masks(CROSS)


def test_pages_of_openvino_are_named_in_the_order_of_the_sequences():
    problem = Problem(batch=3, seq_q=40, seq_kv=50, heads=2, mask="causal", requests="1q40_1q3s50_1q1s33")
    cache = layouts.cache_of(problem, openvino.PAGE_SIZE)
    past, begins, pages, page_begins, longest = openvino.tables(problem, cache)
    assert past.tolist() == [0, 47, 32]
    assert begins.tolist() == [0, 40, 43, 44]
    assert sorted(pages.tolist()) == list(range(6))
    assert page_begins.tolist() == [0, 2, 4, 6]
    assert int(longest) == 50


def test_the_new_keys_of_a_cache_are_the_last_ones_of_each_sequence():
    cache = layouts.cache_of(DECODE, 32)
    assert cache.new.tolist() == [69, 139]
    assert cache.has_past
    assert cache.pages == 6
    assert not layouts.cache_of(CAUSAL, 32).has_past
    rows = torch.arange(140.0)[:, None, None].expand(-1, 2, 3)
    stored = layouts.with_new_rows(torch.zeros(6, 32, 2, 3), rows, cache)
    pages, new = layouts.pages_and_new_rows(stored, (6, 32, 2, 3))
    assert pages.shape == (6, 32, 2, 3)
    assert new.view(2, 2, 3)[:, 0, 0].tolist() == [69, 139]
    stored.neg_()
    assert new[0] == -69  # a view: inputs that are negated in place are negated here as well


def test_pages_of_openvino_hold_every_key():
    cache = layouts.cache_of(DECODE, openvino.PAGE_SIZE)
    keys = torch.randn(2, 2, 70, 8)
    pages, new = layouts.pages_and_new_rows(openvino.pooled(DECODE, cache, keys), (6, 2, 32, 8))
    assert torch.equal(pages[cache.table[1, 2], :, :6], keys[1, :, 64:])
    assert torch.equal(new.view(2, 2, 8), keys[:, :, -1])


@pytest.mark.parametrize(
    ("isa", "avx512", "bf16", "expected"),
    [
        ("", True, True, "_C.abi3.so"),
        ("", True, False, "_C_AVX512.abi3.so"),
        ("", False, False, "_C_AVX2.abi3.so"),
        ("AVX2", True, True, "_C_AVX2.abi3.so"),
        ("AVX512", True, False, "_C_AVX512.abi3.so"),
    ],
)
def test_vllm_loads_the_library_of_the_instruction_set(isa, avx512, bf16, expected):
    assert vllm_cpu.library(isa, avx512, bf16) == expected


def test_vllm_has_no_library_for_a_cpu_without_avx2():
    with pytest.raises(ValueError, match="has no kernels for the instruction set DEFAULT: use isa=avx2"):
        vllm_cpu.library("DEFAULT", True, True)


def test_vllm_counts_the_diagonal_key_of_a_window():
    assert vllm_cpu.arguments(WINDOW)["sliding_window_size"] == 8
    assert vllm_cpu.arguments(CAUSAL)["sliding_window_size"] == -1
    assert vllm_cpu.tables(DECODE, layouts.cache_of(DECODE, 32))["query_start_loc"].tolist() == [0, 1, 2]


def test_vllm_is_looked_up_and_not_imported(monkeypatch):
    monkeypatch.setattr(interpreters, "_installed", lambda module: module == "torch")
    assert interpreters.missing(backends.load("vllm-cpu")) == ["vllm"]
    assert "vllm" not in sys.modules


def test_ggml_always_has_a_mask():
    assert ggml.mask_of(SQUARE).eq(0).all()
    hidden = ggml.mask_of(CROSS).isinf()
    assert hidden.shape == (1, 1, 20, 50)
    assert hidden[0, 0, 0].nonzero().flatten().tolist() == list(range(31, 50))


def test_windows_of_jax_do_not_count_the_diagonal_key():
    assert jax.arguments(WINDOW) == {"scale": WINDOW.scale, "is_causal": True, "local_window_size": (7, 0)}
    assert jax.arguments(replace(SQUARE, mask="window:7")) == {
        "scale": SQUARE.scale, "is_causal": False, "local_window_size": (7, 7),
    }  # fmt: skip
    assert jax.arguments(CROSS) == {"scale": CROSS.scale, "is_causal": False, "mask": True}
    assert "mask" not in jax.arguments(DECODE)


def test_zentorch_is_causal_by_its_flag_only_where_lengths_agree():
    assert zentorch.arguments(CAUSAL) == {"is_causal": True, "scale": CAUSAL.scale, "mask": False}
    assert zentorch.arguments(CROSS) == {"is_causal": False, "scale": CROSS.scale, "mask": True}
    assert zentorch.arguments(DECODE) == {"is_causal": False, "scale": DECODE.scale, "mask": False}


def test_the_formula_that_is_compiled_shares_key_heads():
    q, k, v = (torch.randn(2, heads, 8, 16) for heads in (4, 2, 2))
    out = compiled_formula.formula(Problem(seq_q=8, heads=4, kv_heads=2, head_dim=16, batch=2))(q, k, v)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(out, expected, atol=1e-5)


def test_a_refusal_while_a_case_is_prepared_is_no_error():
    reply = request_failed(CaseRefusedError("openvino does not keep NUM_STREAMS=1:\n it uses 2"), "prepare")
    assert reply.status is Status.UNSUPPORTED
    assert reply.reason == "openvino does not keep NUM_STREAMS=1: it uses 2"


def test_a_library_that_chooses_its_instruction_set_refuses_another_one(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert backends.isa_objection("cpu") is None
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert backends.isa_objection("cpu") == "has no setting for the instruction set avx2: leave isa out of --device"


def test_telemetry_is_off_in_every_worker():
    variables = arm_environment(Device(kind="cpu", threads=2))
    assert {variables[name] for name in ("DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE")} == {"1"}
    assert variables["PJRT_NPROC"] == "2"


@pytest.mark.parametrize("layout", Layout)
def test_a_cache_is_written_inside_the_call_where_keys_are_projected_there(monkeypatch, layout):
    """In a block or with positions, k and v are results of the same call."""
    stored = []

    def store(tensor):
        stored.append(tuple(tensor.shape))
        return tensor.transpose(1, 2) if layout is Layout.BSHD else tensor

    naive = backends.load("naive")
    problem = Problem(seq_q=4, seq_kv=6, heads=2, head_dim=8, positions="rope")

    def prepare(case, device):
        flip = layout is Layout.BSHD
        inner = naive.prepare(case, device).call

        def call(q, k, v):
            out = inner(*((tensor.transpose(1, 2) for tensor in (q, k, v)) if flip else (q, k, v)))
            return out.transpose(1, 2) if flip else out

        return Prepared(call=call, stored=store)

    storing = replace(naive, prepare=prepare, layout=layout)
    case = Case(problem=problem, backend="naive")
    prepared = scope.prepare(storing, case, "cpu")
    assert prepared.stored is None
    q, k, v = (torch.randn(1, 2, seq, 8) for seq in (4, 6, 6))
    expected = scope.prepare(naive, case, "cpu").call(q, k, v)
    flipped = [tensor.transpose(1, 2) if layout is Layout.BSHD else tensor for tensor in (q, k, v)]
    out = prepared.call(*flipped)
    assert torch.allclose(out.transpose(1, 2) if layout is Layout.BSHD else out, expected)
    assert stored == [(1, 2, 6, 8)] * 2


@pytest.mark.parametrize("way", ["change", "shift"])
def test_inputs_that_a_library_stores_in_a_form_of_its_own_are_changed_before_it_stores_them(way):
    """Its form may hide tokens and channels, as that of keys packed for vector instructions."""
    naive = backends.load("naive")
    problem = Problem(seq_q=2, seq_kv=6, heads=4, kv_heads=2, head_dim=8, batch=2, mask="causal")

    def prepare(case, device):
        inner, shape = naive.prepare(case, device).call, (2, 2, 6, 8)
        hide = torch.randperm(2 * 2 * 6 * 8)
        places = torch.argsort(hide)
        call = lambda q, k, v: inner(q, *(tensor[places].view(shape) for tensor in (k, v)))  # noqa: E731
        return Prepared(call=call, stored=lambda tensor: tensor.flatten()[hide], library_cache=True)

    case = Case(problem=problem, backend="naive")
    instrument = CpuInstrument(Device(kind="cpu", threads=1))
    hiding, plain = (
        PreparedCase(case, Procedure(), backend, instrument) for backend in (replace(naive, prepare=prepare), naive)
    )
    before = hiding.attend(*hiding.qkv)
    for prepared in (hiding, plain):
        if way == "change":
            prepared.change(3, moves=True, reorder=True)
        else:
            prepared.shift((1, 2, 3))
    out, expected = (prepared.attend(*prepared.qkv) for prepared in (hiding, plain))
    assert not torch.allclose(out, before)
    assert torch.allclose(out, expected, atol=1e-6)


def test_writing_the_whole_cache_is_a_sample_of_its_own():
    naive, problem = backends.load("naive"), Problem(seq_q=1, seq_kv=6, heads=2, head_dim=8)

    def prepare(case, device):
        return replace(naive.prepare(case, device), stored=lambda tensor: tensor.clone(), library_cache=True)

    instrument = CpuInstrument(Device(kind="cpu", threads=1))
    for backend, packs in ((naive, False), (replace(naive, prepare=prepare), True)):
        case = Case(problem=problem, backend="naive")
        reply = prepared_case.prepare(case, Procedure(), backend, instrument, ProcessState())[1]
        assert ("pack" in reply.seconds) is packs


def test_what_a_library_does_not_report_is_read_back_from_its_process(monkeypatch):
    outside = replace(backends.load("naive"), outside_torch=True)
    case, instrument = Case(problem=SQUARE, backend="naive"), CpuInstrument(Device(kind="cpu", threads=1))
    facts = prepared_case.prepare(case, Procedure(), outside, instrument, ProcessState())[1].facts
    assert {name: facts[name] for name in ("denormals", "affinity")} == {"denormals": "kept", "affinity": "kept"}
    monkeypatch.setattr(process, "flushes_denormals", lambda: True)
    assert (
        prepared_case.prepare(case, Procedure(), outside, instrument, ProcessState())[1].facts["denormals"] == "flushed"
    )


def test_threads_of_a_library_on_cpus_of_other_arms_are_a_refusal(monkeypatch):
    """Here every thread of the process may run on CPU 1, and the arm has CPU 0."""
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda task: {0} if task == 0 else {0, 1}, raising=False)
    outside = replace(backends.load("naive"), outside_torch=True)
    case, instrument = Case(problem=SQUARE, backend="naive"), CpuInstrument(Device(kind="cpu", threads=1))
    with pytest.raises(CaseRefusedError, match="its threads run on CPUs that are not the arm's: "):
        prepared_case.prepare(case, Procedure(), outside, instrument, ProcessState())


def test_a_precision_of_torch_that_is_not_exact_is_refused_by_zentorch():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(CaseRefusedError, match="torch's precision of products is medium, not highest"):
            zentorch.prepare(Case(problem=SQUARE, backend="zentorch"), "cpu")
    finally:
        torch.set_float32_matmul_precision(before)
