"""Traps of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from msgspec.structs import replace

from attnbench.attention import dense_masks
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.backends import CaseRefusedError, load
from attnbench.machine.device import process_memory
from attnbench.records.case import Case
from tests import oracle
from tests.backends.traps import CROSS, DECODE, SQUARE, computed, difference, off, trap

pytestmark = pytest.mark.slow
MIB = 1024**2


def run_node(made: Any, problem: Problem, shape: tuple[int, ...], fixed: dict[str, Any]) -> torch.Tensor:
    """One node on the oracle's inputs."""
    from attnbench.backends import ort

    flat = made.op != "Attention"
    drawn = [t.transpose(1, 2).flatten(2) if flat else t for t in oracle.drawn(problem)[0]]
    tensors = {n: t.contiguous() for n, t in zip("qkv", drawn, strict=True)} | fixed
    session, _ = ort.session_of(made.op, ort.model_of(made, tensors, {"out": shape}))
    return ort.Bindings(session, tensors).run(out=torch.empty(shape))["out"]


@trap("ort:attention", "without nonpad_kv_seqlen")
def test_a_causal_mask_without_lengths_is_another_one():
    from attnbench.backends import ort

    made = ort.node(Case(problem=CROSS, backend="ort:attention"))
    bare = made._replace(inputs=tuple("" if name == "lengths" else name for name in made.inputs))
    assert difference(run_node(bare, CROSS, (1, 2, 20, 64), {}), CROSS) > 0.1
    assert off("ort:attention", CROSS) < 1e-5


@trap("ort:attention", "opset 25")
def test_an_operator_without_a_kernel_is_refused(monkeypatch):
    from attnbench.backends import ort

    monkeypatch.setattr(ort, "OPSET", 25)
    with pytest.raises(CaseRefusedError, match="no kernel for this Attention"):
        computed("ort:attention", SQUARE)


@trap("ort:gqa", "several queries of a batch")
def test_several_queries_of_a_batch_need_their_number(monkeypatch):
    from attnbench.backends import ort

    problem = Problem(seq_q=5, seq_kv=77, heads=4, kv_heads=2, batch=2, mask="causal")
    assert off("ort:gqa", problem) < 1e-5
    assert off("ort:gqa", replace(problem, mask="causal+window:9")) < 1e-5
    biased = replace(problem, score=Score(bias="alibi:dense"))
    outputs = [computed(name, biased)[0] for name in ("ort:gqa", "ort:attention")]
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5
    made = ort.node(Case(problem=problem, backend="ort:gqa"))
    assert made.inputs[-1] == "rows"
    monkeypatch.setattr(ort, "node", lambda case: made._replace(inputs=made.inputs[:12]))
    with pytest.raises(Exception, match=r"query_seqlens|batch"):
        computed("ort:gqa", problem)


@trap("ort:gqa", "new keys and values are written")
def test_the_past_gets_the_new_keys():
    prepared = load("ort:gqa").prepare(Case(problem=DECODE, backend="ort:gqa"), "cpu")
    q, k, v = oracle.drawn(DECODE)[0]
    before = k.clone(), v.clone()
    out = prepared.call(q.transpose(1, 2), k, v)
    assert torch.equal(k, before[0])
    assert torch.equal(v, before[1])
    assert difference(out.transpose(1, 2), DECODE) < 1e-5


@trap("ort:mha", "unidirectional")
def test_unidirectional_is_another_mask_where_lengths_differ():
    from attnbench.backends import ort

    options = {"num_heads": 2, "scale": CROSS.scale, "unidirectional": 1}
    made = ort.Node("MultiHeadAttention", ort.CONTRIBUTED, ("q", "k", "v"), ("out",), options)
    out = run_node(made, CROSS, (1, 20, 128), {}).view(1, 20, 2, 64).transpose(1, 2)
    assert difference(out, CROSS) > 0.1
    assert off("ort:mha", CROSS) < 1e-5


@trap("ort:mha", "a row that sees no key")
def test_a_row_without_keys_is_not_a_number_in_mha():
    from attnbench.backends import ort

    problem = Problem(seq_q=50, seq_kv=20, heads=2, mask="causal")
    assert load("ort:mha").objections(Case(problem=problem, backend="ort:mha"), "cpu") == [
        "fully masked rows unsupported"
    ]
    made = ort.node(Case(problem=problem, backend="ort:mha"))
    mask = {"mask": dense_masks.added(problem, torch.float32)}
    assert run_node(made, problem, (1, 50, 128), mask).isnan().any()


@trap("ort:mha", "fp16")
def test_mha_in_fp16_is_refused_for_its_casts():
    with pytest.raises(CaseRefusedError, match="other nodes"):
        computed("ort:mha", replace(SQUARE, dtype="fp16"), torch.float16)


@trap("ort:attention", "its arena keeps freed memory")
@pytest.mark.parametrize("arena", [False, True])
def test_memory_that_the_arena_keeps_is_not_seen_in_a_later_call(monkeypatch, arena):
    """The logits of all heads, 64 MiB, are freed after each call."""
    import onnxruntime

    problem = replace(SQUARE, seq_q=2048, seq_kv=2048, heads=4, head_dim=16, head_dim_v=16)
    if arena:
        plain = onnxruntime.InferenceSession

        def with_arena(model, options, **more):
            options.enable_cpu_mem_arena = True
            return plain(model, options, **more)

        monkeypatch.setattr(onnxruntime, "InferenceSession", with_arena)
        with pytest.raises(CaseRefusedError, match="does not keep its settings"):
            computed("ort:attention", SQUARE)
        monkeypatch.setattr(
            "attnbench.backends.ort._read_back", lambda session: {"library_threads": torch.get_num_threads()}
        )
    call = load("ort:attention").prepare(Case(problem=problem, backend="ort:attention"), "cpu").call
    inputs = oracle.drawn(problem)[0]
    call(*inputs)
    before = process_memory.reset()
    call(*inputs)
    assert before is None or (process_memory.grown(before) > 60 * MIB) is not arena


@trap("ort:mha", "bf16 has no kernel")
def test_bf16_has_no_kernel_in_mha():
    import onnx
    import onnxruntime

    from attnbench.backends import ort

    case = Case(problem=SQUARE, backend="ort:mha")
    assert "bf16 unsupported (supported: fp32)" in load("ort:mha").objections(
        replace(case, problem=replace(SQUARE, dtype="bf16")), "cpu"
    )
    tensors = {name: torch.zeros(1, 64, 128) for name in "qkv"}
    model = onnx.load_from_string(ort.model_of(ort.node(case), tensors, {"out": (1, 64, 128)}))
    for each in (*model.graph.input, *model.graph.output):
        each.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
