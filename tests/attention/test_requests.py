"""Batches of requests: their grammar, their tensors and pages, and what every backend computes of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import blocks, cost, inputs, layouts, logits, reference, requests
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import RequestSize
from attnbench.attention.scores import Score, Similarity
from attnbench.backends import padded, scope
from attnbench.errors import ProblemError
from attnbench.machine.device.cpu import CpuInstrument
from attnbench.records.arm import Device
from attnbench.records.case import Case, problem_label
from attnbench.worker import correctness, expected_values
from tests import oracle

SIZES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 9)).map(lambda n: RequestSize(n[0], n[0] + n[1])),
    min_size=1,
    max_size=5,
)


def problem_of(sizes: list[RequestSize], **changes: Any) -> Problem:
    """The problem of a batch of requests."""
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 8, "mask": "causal", **changes}
    seq_q, seq_kv = map(max, zip(*sizes, strict=True))
    return Problem(batch=len(sizes), seq_q=seq_q, seq_kv=seq_kv, requests=requests.spell(tuple(sizes)), **shape)


# -- the grammar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes", "canonical"),
    [
        ("q2k", [(2048, 2048)], "q2k"),
        ("8q1s1k", [(1, 1024)] * 8, "8q1s1k"),
        ("q4kv1k", [(4, 1024)], "q4s1k"),
        ("q1_q1_q2", [(1, 1), (1, 1), (2, 2)], "2q1_q2"),
        ("q2048s2048", [(2048, 2048)], "q2k"),
        ("2q2k_32q1s1k", [(2048, 2048)] * 2 + [(1, 1024)] * 32, "2q2k_32q1s1k"),
        ("q257_7q1s1057", [(257, 257)] + [(1, 1057)] * 7, "q257_7q1s1057"),
        ("2q0s1k_q0_q1", [(0, 1024)] * 2 + [(0, 0), (1, 1)], "2q0s1k_q0_q1"),
    ],
)
def test_a_batch_is_read_in_the_grammar_of_vllm(text, sizes, canonical):
    assert requests.parse(text) == tuple(RequestSize(*size) for size in sizes)
    assert requests.spell(requests.parse(text)) == canonical


@given(SIZES)
def test_the_canonical_text_gives_the_same_requests(sizes):
    assert requests.parse(requests.spell(tuple(sizes))) == tuple(sizes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2k", "'2k' is no segment: use [count]q<queries>[s<keys>], as 4q1s2k"),
        ("q2k_", "'' is no segment"),
        ("q2k__q1", "'' is no segment"),
        ("q2s", "'q2s' is no segment"),
        ("q1s1m", "'q1s1m' is no segment"),
        ("0q1", "'0q1': the count must be at least 1; leave the segment out"),
        ("2q0s8_q0", "no request has a query: use q1 or more in one of them, as q0s8_q1s8"),
        ("q1s0", "'q1s0': 0 keys are fewer than 1 queries"),
        ("q8s4", "'q8s4': 4 keys are fewer than 8 queries; s counts all"),
        ("99999q1", "more than 65,536 requests"),
    ],
)
def test_a_malformed_segment_is_named(text, message):
    with pytest.raises(ProblemError) as caught:
        requests.parse(text)
    assert message in str(caught.value)
    assert repr(text) in str(caught.value)


def test_a_label_of_many_segments_is_short_and_distinct():
    texts = ["_".join(f"q{n}" for n in range(first, first + 40)) for first in (1, 2)]
    assert [requests.short(text)[:-5] for text in texts] == ["q820s820", "q860s860"]
    assert requests.short("2q2k_32q1s1k") == "2q2k_32q1s1k"
    label = problem_label(problem_of([RequestSize(3, 5), RequestSize(1, 2)]), Mode.FWD)
    assert label == "b2 h4/2 q3s5_q1s2 d8 causal fp32 fwd"


# -- the problem -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_q": 4}, "they are 2, 3 and 5"),
        ({"batch": 1}, "they are 2, 3 and 5"),
        ({"scope": "layer:2"}, "scope=layer:2 with requests: layers need equal lengths"),
        ({"mask": "graph:0.5"}, "q3s5: mask 'graph:0.5' needs seq_q == seq_kv"),
    ],
)
def test_what_requests_cannot_have_is_refused(change, message):
    shape = {"batch": 2, "seq_q": 3, "seq_kv": 5, "requests": "q3s5_q1s2", **change}
    with pytest.raises(ProblemError) as caught:
        Problem(**shape)
    assert message in str(caught.value)


@given(SIZES, st.sampled_from(["none", "causal", "causal+window:2", "prefix:2", "window:1:3"]))
def test_work_and_traffic_are_those_of_the_requests(sizes, mask):
    problem = problem_of(sizes, mask=mask, page_size=4)
    seen, pairs = 0, 0
    for part in problem.parts:
        visible = part.visible()[0]
        pairs, seen = pairs + int(visible.sum()), seen + int(visible.any(axis=0).sum())
    assert cost.pairs(problem) == 4 * pairs
    pages = sum(-(-keys // 4) for _, keys in sizes)
    of_kv = seen * 2 * (8 + 8) * 4 + 4 * pages
    queries = sum(queries for queries, _ in sizes)
    assert cost.traffic_bytes(problem, Mode.FWD) == of_kv + queries * 4 * 8 * 4 * 2
    assert cost.flops(problem, Mode.FWD) == 2 * 4 * pairs * 16
    assert cost.flops_dense(problem, Mode.FWD) == 2 * 4 * 16 * sum(q * keys for q, keys in sizes)


def test_a_request_has_the_diagonal_of_its_own_lengths():
    """By hand: 2 queries at the end of 4 keys see 3 and 4 of them; one query at the end of 3 sees all."""
    problem = problem_of([RequestSize(2, 4), RequestSize(1, 3)])
    assert cost.pairs(problem) == 4 * (3 + 4 + 3)


# -- requests without queries ------------------------------------------------------------------------------------------

WAITING = st.integers(0, 6).map(lambda keys: RequestSize(0, keys))


def without_waiting(problem: Problem, tensors: inputs.Inputs) -> tuple[Problem, inputs.Inputs]:
    """The batch of those requests that have queries, and its tensors."""
    sizes = [size for size in problem.sizes if size.queries]
    seq_q, seq_kv = map(max, zip(*sizes, strict=True))
    shape = {"batch": len(sizes), "seq_q": seq_q, "seq_kv": seq_kv, "requests": requests.spell(tuple(sizes))}
    asked = torch.cat([torch.arange(keys.start, keys.stop) for _, keys in problem.spans])
    k, v = (tensor[:, :, asked] for tensor in (tensors.k, tensors.v))
    return replace(problem, **shape), inputs.Inputs(q=tensors.q, k=k, v=v, dout=tensors.dout)


@settings(deadline=None, max_examples=20)
@given(st.lists(WAITING, min_size=1, max_size=3), SIZES, st.sampled_from(["none", "causal", "causal+window:2"]),
       st.sampled_from([0, 4]), st.randoms(use_true_random=False))  # fmt: skip
@pytest.mark.parametrize("name", ["naive", "sdpa:math", "sdpa:flash", "sdpa:padded", "flex:eager"])
def test_a_request_without_queries_changes_nothing(name, waiting, sizes, mask, page_size, random):
    mixed = [*waiting, *sizes]
    random.shuffle(mixed)
    problem = problem_of(mixed, mask=mask, page_size=page_size)
    alone, tensors = without_waiting(problem, inputs.make(problem, 7))
    with oracle.traced(False):
        torch.testing.assert_close(check_output(name, problem), computed(name, alone, tensors))
    for count in (cost.pairs, cost.seen_keys):
        assert count(problem) == count(alone)
    for count in (cost.flops, cost.traffic_bytes, cost.output_bytes):
        assert count(problem, Mode.FWD) == count(alone, Mode.FWD)
    assert cost.kv_bytes(problem) - cost.kv_bytes(alone) == sum(keys for _, keys in waiting) * 2 * (8 + 8) * 4


def test_outputs_beside_requests_without_queries_are_judged(tmp_path):
    sizes = [RequestSize(0, 3), RequestSize(4, 9), RequestSize(0, 0), RequestSize(2, 2)]
    problem = problem_of(sizes)
    values = expected_values.compute(problem, Mode.FWD, 0, "normal", tmp_path, 30.0)
    out = expected(problem, inputs.make(problem, 0)).float()
    assert correctness.judge(values, {"out": out}).ok
    for row in range(6):
        wrong = out.clone()
        wrong[0, 1, row] += 8.0
        judged = correctness.judge(values, {"out": wrong})
        assert not judged.ok
        assert f"[b{row // 4} h1 q{row % 4}" in judged.reason


def test_what_requests_without_queries_cannot_have_is_refused():
    sizes = [RequestSize(0, 8), RequestSize(1, 8), RequestSize(1, 8)]
    with pytest.raises(ProblemError, match="shared_prefix=4:2: a request without queries shares nothing"):
        problem_of(sizes, shared_prefix="4:2")
    case = Case(problem=problem_of(sizes), backend="naive", mode=Mode.FWD_BWD)
    reason = "backward of a batch with a request without queries unsupported"
    assert backends.load("naive").objections(case, "cpu") == [reason]
    case = Case(problem=problem_of(sizes), backend="openvino")
    assert "a request without queries unsupported" in backends.load("openvino").objections(case, "cpu")


def test_shorter_requests_still_have_no_queries():
    sizes = (RequestSize(0, 100), RequestSize(0, 0), RequestSize(1, 1000))
    assert requests.shrunk(sizes, 0.1) == (RequestSize(0, 10), RequestSize(0, 0), RequestSize(1, 100))


# -- tensors and pages -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(SIZES, st.sampled_from([1, 2, 4, 16]))
def test_pages_hold_the_keys_of_every_request_in_disorder(sizes, page_size):
    problem = problem_of(sizes, page_size=page_size)
    keys = inputs.make(problem, 3).k
    assert keys.shape == (1, 2, problem.tokens_kv, 8)
    pool, table = layouts.paged(problem, keys), layouts.page_table(problem)
    assert pool.shape == (sum(-(-keys // page_size) for _, keys in sizes), page_size, 2, 8)
    start = 0
    for b, (_, count) in enumerate(sizes):
        for t in range(count):
            assert torch.equal(pool[table[b, t // page_size], t % page_size], keys[0, :, start + t])
        start += count
    assert torch.equal(layouts.packed_keys(pool, torch.from_numpy(layouts.slots(problem))), keys)


def test_pages_are_not_in_order():
    table = layouts.page_table(problem_of([RequestSize(1, 64)] * 4, page_size=4))
    assert sorted(table.flatten().tolist()) == list(range(64))
    assert (np.diff(table.flatten()) != 1).mean() > 0.5


def expected(problem: Problem, tensors: inputs.Inputs) -> torch.Tensor:
    """The output by a loop over tokens, heads and keys, in float64."""
    out = torch.zeros(1, problem.heads, problem.tokens_q, problem.head_dim_v, dtype=torch.float64)
    q, k, v = (tensor[0].double() for tensor in (tensors.q, tensors.k, tensors.v))
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        visible = part.visible()[0]
        for head, row in itertools.product(range(problem.heads), range(part.seq_q)):
            of_head = head // (problem.heads // problem.kv_heads)
            shown = [keys.start + j for j in range(part.seq_kv) if visible[row, j]]
            if shown:
                logits = k[of_head, shown] @ q[head, queries.start + row] * problem.scale
                out[0, head, queries.start + row] = logits.softmax(0) @ v[of_head, shown]
    return out


def computed(name: str, problem: Problem, tensors: inputs.Inputs) -> torch.Tensor:
    """The output of a backend."""
    case, backend = Case(problem=problem, backend=name), backends.load(name)
    assert backend.objections(case, "cpu") == []
    prepared = scope.prepare(backend, case, "cpu")
    k, v = (prepared.stored(each) if prepared.stored else each for each in (tensors.k, tensors.v))
    return prepared.call(tensors.q, k, v)


def check_output(name: str, problem: Problem) -> torch.Tensor:
    """The output of a backend, which is compared with `expected`."""
    tensors = inputs.make(problem, 7)
    out = computed(name, problem, tensors)
    torch.testing.assert_close(out.double(), expected(problem, tensors), rtol=0, atol=1e-5)
    return out


@settings(deadline=None, max_examples=30)
@given(SIZES, st.sampled_from(["none", "causal", "causal+window:2"]))
def test_the_reference_computes_each_request(sizes, mask):
    problem = problem_of(sizes, mask=mask)
    tensors = inputs.make(problem, 5)
    right = expected(problem, tensors)
    for group in blocks.groups(problem):
        part, local, of_part = blocks.of_part(problem, group, tensors)
        out = reference.attend_group(part, of_part.q, of_part.k, of_part.v, local).out
        rows = problem.spans[group[0]][0]
        torch.testing.assert_close(out, right[0, blocks.query_heads(problem, group), rows], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(SIZES, st.sampled_from(["none", "causal", "causal+window:2"]), st.sampled_from([0, 4]))
@pytest.mark.parametrize(
    ("name", "traced"),
    [
        *((name, False) for name in ("naive", "sdpa", "sdpa:math", "sdpa:flash", "sdpa:padded", "flex:eager")),
        pytest.param("flex:eager", True, marks=pytest.mark.slow),
    ],
)
def test_every_backend_computes_the_requests(name, traced, sizes, mask, page_size):
    with oracle.traced(traced):
        check_output(name, problem_of(sizes, mask=mask, page_size=page_size))


@pytest.mark.parametrize(("mask", "page_size"), [("none", 4), ("causal", 0), ("causal+window:2", 4)])
def test_flex_is_traced_with_the_masks_of_requests(mask, page_size):
    check_output("flex:eager", problem_of([RequestSize(3, 5), RequestSize(0, 2), RequestSize(1, 9)], mask=mask,
                                          page_size=page_size))  # fmt: skip


@settings(deadline=None, max_examples=20)
@given(SIZES, st.sampled_from(["none", "causal", "causal+window:2"]))
@pytest.mark.parametrize("name", ["naive", "sdpa", "sdpa:math", "sdpa:flash", "sdpa:padded"])
def test_gradients_are_those_of_each_request(name, sizes, mask):
    """By autograd through the loop over tokens, heads and keys."""
    problem = problem_of(sizes, mask=mask)
    case, backend = Case(problem=problem, backend=name, mode=Mode.FWD_BWD), backends.load(name)
    assert backend.objections(case, "cpu") == []
    tensors = inputs.make(problem, 7)
    leaves = [getattr(tensors, letter).clone().requires_grad_() for letter in "qkv"]
    out = scope.prepare(backend, case, "cpu").call(*leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    right = expected(problem, inputs.Inputs(q=exact[0], k=exact[1], v=exact[2], dout=tensors.dout))
    found = torch.autograd.grad(out, leaves, tensors.dout)
    for gradient, truth in zip(found, torch.autograd.grad(right, exact, tensors.dout.double()), strict=True):
        torch.testing.assert_close(gradient.double(), truth, rtol=0, atol=1e-5)


MECHANISMS = {
    "rope": {"positions": "rope"},
    "sinusoidal": {"positions": "sinusoidal"},
    "cosine": {"score": Score(similarity=Similarity.COSINE)},
    "t5": {"score": Score(bias="t5")},
    "weights": {"returns": "weights"},
    "sinks": {"sinks": True},
    "dropout": {"dropout": 0.2},
    "block": {"scope": "block"},
    "int8": {"kv_dtype": "int8"},
}


@pytest.mark.parametrize("label", MECHANISMS)
@pytest.mark.parametrize("name", ["naive", "sdpa:math"])
def test_mechanisms_over_requests_are_judged_and_a_wrong_request_is_found(name, label, expected_of):
    problem = problem_of([RequestSize(4, 9), RequestSize(40, 40), RequestSize(5, 5)], **MECHANISMS[label])
    case, backend = Case(problem=problem, backend=name, mode=Mode.FWD_BWD), backends.load(name)
    if backend.objections(case, "cpu"):
        assert (name, label) == ("sdpa:math", "sinks")
        return
    values = expected_of(problem)
    tensors = inputs.make(problem, 0)
    leaves = [getattr(tensors, letter).requires_grad_() for letter in "qkv"]
    result = scope.prepare(backend, case, "cpu").call(*leaves)
    out, *others = result if isinstance(result, tuple) else (result,)
    gradients = torch.autograd.grad(out, leaves, tensors.dout)
    named = dict(zip(("out", "dq", "dk", "dv"), (out, *gradients), strict=True)) | dict.fromkeys(
        ["weights"][: len(others)], *others
    )
    outputs = {key: tensor.detach() for key, tensor in named.items()}
    judged = correctness.judge(values, outputs)
    assert judged.ok, judged.reason
    for key in outputs.keys() - {"dq", "dk"} if problem.dropout else outputs:
        wrong = outputs[key].clone()
        wrong[0, :, 1] += 8.0
        assert not correctness.judge(values, {**outputs, key: wrong}).ok, key


def test_weights_of_requests_by_hand():
    """One query over one key, and one over three: zeros beyond the keys of the first."""
    problem = problem_of([RequestSize(1, 1), RequestSize(1, 3)], returns="weights")
    tensors = inputs.make(problem, 1)
    _, weights = scope.prepare(backends.load("naive"), Case(problem=problem, backend="naive"), "cpu").call(
        tensors.q, tensors.k, tensors.v
    )
    assert weights.shape == (1, 4, 2, 3)
    assert weights[0, :, 0].tolist() == [[1.0, 0.0, 0.0]] * 4
    torch.testing.assert_close(weights[0, :, 1].sum(-1), torch.ones(4))
    assert cost.output_bytes(problem, Mode.FWD) == 4 * (2 * 4 * 8 + 4 * 2 * 3)


def test_the_positions_of_packed_requests_are_those_of_each_alone():
    problem = problem_of([RequestSize(2, 5), RequestSize(3, 3)], positions="rope")
    tensors = inputs.make(problem, 2)
    q, k = logits.positioned(problem, tensors.q, tensors.k)
    for part, (queries, keys) in zip(problem.parts, problem.spans, strict=True):
        alone = logits.positioned(part, tensors.q[:, :, queries], tensors.k[:, :, keys])
        assert torch.equal(q[:, :, queries], alone[0])
        assert torch.equal(k[:, :, keys], alone[1])


NAMES = ("naive", "sdpa:math", "sdpa:flash", "sdpa:padded", "flex:eager")
MEASURED = [*itertools.product(NAMES, ["q64_3q10s200", "q90_q100_q110", "12q1s300"], [0, 16])]


@pytest.mark.parametrize(
    ("name", "text", "page_size"), [*MEASURED, pytest.param("flex", "12q1s300", 16, marks=pytest.mark.slow)]
)
def test_predicted_memory_of_requests_is_never_below_the_measured(name, text, page_size):
    problem = problem_of(list(requests.parse(text)), page_size=page_size, head_dim=32)
    backend, tensors = backends.load(name), inputs.make(problem, 0)
    for mode in (Mode.FWD, Mode.FWD_BWD):
        case = Case(problem=problem, backend=name, mode=mode)
        if backend.objections(case, "cpu"):
            continue
        prepared = scope.prepare(backend, case, "cpu")
        k, v = (prepared.stored(each) if prepared.stored else each for each in (tensors.k, tensors.v))
        leaves = [each.clone().requires_grad_(mode.needs_grad) for each in (tensors.q, k, v)]

        def run(call=prepared.call, leaves=leaves, mode=mode):
            with torch.set_grad_enabled(mode.needs_grad):
                out = call(*leaves)
            return (out, torch.autograd.grad(out, leaves, tensors.dout)) if mode.needs_grad else out

        run()
        measured = CpuInstrument(Device(kind="cpu", threads=1)).memory(run).total
        predicted = backend.peak_bytes(case) - cost.input_bytes(problem)
        assert measured <= predicted * 1.05, mode
        assert predicted <= measured * 3 + cost.input_bytes(problem), mode


def test_padding_is_what_the_longest_request_leaves():
    """By hand: 3 + 1 queries and 5 + 2 keys, padded to 2 x 3 and 2 x 5."""
    problem = problem_of([RequestSize(3, 5), RequestSize(1, 2)])
    planned = padded.plan(problem)
    assert planned.q_places.tolist() == [0, 1, 2, 3, 0, 0]
    assert planned.kv_places.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0]
    assert planned.rows.tolist() == [0, 1, 2, 3]
    assert planned.visible[1, 0].astype(int).tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    facts = scope.prepare(backends.load("sdpa:padded"), Case(problem=problem, backend="sdpa:padded"), "cpu").facts
    assert facts["padding"] == pytest.approx(0.3)


def test_what_is_built_once_for_a_batch_is_its_plan_and_a_decode_needs_no_mask():
    decode, chunk = problem_of([RequestSize(1, 9)] * 2), problem_of([RequestSize(3, 9)])
    prepared = [
        scope.prepare(backends.load("sdpa"), Case(problem=each, backend="sdpa"), "cpu") for each in (decode, chunk)
    ]
    assert [list(each.seconds) for each in prepared] == [[], ["plan"]]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (
            "sdpa:padded",
            {"requests": "", "batch": 1, "seq_q": 3, "seq_kv": 5},
            "only a batch of requests is padded: use sdpa",
        ),
        ("flex", {"mask": "prefix:2"}, "prefix mask with requests unsupported"),
        ("flex", {"requests": "", "batch": 1, "page_size": 16}, "keys in pages unsupported but in a batch of requests"),
        ("gather", {"mask": "causal"}, "requests of different lengths in one batch unsupported"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(name, change, reason):
    shape = {"batch": 2, "seq_q": 3, "seq_kv": 5, "requests": "q3s5_q1s2", "mask": "causal", **change}
    assert reason in backends.load(name).objections(Case(problem=Problem(**shape), backend=name), "cpu")
