"""Biases, scores, weightings, sinks and positions: against their definitions, on every backend that supports them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import backends, suite
from attnbench.attention import autograd_reference, biases, cost, fixed_random, inputs, weightings
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.reference import attend_group, attend_group_same_dtype, gradients_group
from attnbench.attention.scores import Score
from attnbench.backends import scope
from attnbench.errors import ProblemError, UnknownNameError, UsageError
from attnbench.records.case import Case
from attnbench.suite.readers import parse_score
from tests import definitions, oracle, reference

SUM_OF_X = 18.8266
SHAPE = {"batch": 2, "heads": 6, "kv_heads": 3, "seq_q": 7, "seq_kv": 11, "head_dim": 8, "head_dim_v": 5}
BIASES = ("alibi", "t5", "xl", "shaw:3", "span:3:2", "alibi:dense")
WEIGHTINGS = ("hard:argmax", "hard:topk=3", "topp:0.7", "raw", "sparsemax", "sigmoid")
# Every mechanism alone and some together, with masks that matter to them.
PROBLEMS = {
    **{bias: {"score": Score(bias=bias)} for bias in BIASES},
    **{f"{bias} causal": {"score": Score(bias=bias), "mask": "causal"} for bias in ("t5", "xl", "alibi")},
    "t5 with softcap and temperature": {"score": Score(bias="t5", softcap=2.0, temperature=2.0), "mask": "causal"},
    "xl with temperature": {"score": Score(bias="xl", temperature=3.0)},
    **{weighting: {"weighting": weighting, "mask": "causal"} for weighting in WEIGHTINGS},
    "sinks": {"sinks": True, "mask": "causal"},
    "sinks lse": {"sinks": True, "returns": "lse"},
    "sinks alibi window": {"sinks": True, "score": Score(bias="alibi"), "mask": "causal+window:2"},
    **{name: {"score": parse_score(name)} for name in ("cosine", "cosine:scale=3", "bilinear", "additive")},
    "rope": {"positions": "rope", "mask": "causal"},
    "sinusoidal": {"positions": "sinusoidal", "mask": "window:3"},
    "rope cosine": {"positions": "rope", "score": parse_score("cosine")},
    "weights": {"returns": "weights", "mask": "causal"},
    "weights hard": {"returns": "weights", "weighting": "hard:topk=2"},
    "t5 padding": {"score": Score(bias="t5"), "mask": "padding:0.4"},
    "t5 with rows that see no key": {"score": Score(bias="t5"), "mask": "causal", "seq_q": 11, "seq_kv": 7},
    "sparsemax with rows that see no key": {"weighting": "sparsemax", "mask": "causal", "seq_q": 11, "seq_kv": 7},
    "sinks with rows that see no key": {"sinks": True, "mask": "causal", "seq_q": 11, "seq_kv": 7, "returns": "lse"},
}
NAMES = ("naive", "sdpa", "sdpa:math", "sdpa:flash", "flex:eager", "gather")
# A bias from a table, one of the queries, and a score with a mask; `make test-slow` traces each of PROBLEMS.
TRACED = ("t5 with softcap and temperature", "xl", "sinks alibi window")


def problem_of(name: str, **more) -> Problem:
    return Problem(**{**SHAPE, **PROBLEMS[name], **more})


def drawn(problem: Problem):
    return oracle.drawn(problem)


@lru_cache(maxsize=2)
def exact_output(problem: Problem):
    """Of the drawn q, k and v: the backends of a problem follow one another."""
    return reference.attend(problem, *drawn(problem)[0])


@lru_cache(maxsize=2)
def exact_gradients(problem: Problem):
    """Of the drawn q, k and v."""
    qkv, dout = drawn(problem)
    return reference.gradients(problem, *qkv, dout)


@pytest.mark.parametrize("name", PROBLEMS)
def test_reference_equals_the_definition(name):
    problem = problem_of(name)
    qkv, _ = drawn(problem)
    out, lse, weights = definitions.attend(problem, *qkv)
    forward = reference.attend(problem, *qkv)
    torch.testing.assert_close(forward.out, torch.from_numpy(out), rtol=0, atol=1e-12)
    if problem.weighting == "softmax":
        torch.testing.assert_close(forward.lse, torch.from_numpy(lse), rtol=0, atol=1e-12)
    if problem.returns == "weights":
        group = autograd_reference.forward_group(problem, *qkv, (1, 2), None, None)
        np.testing.assert_allclose(group.weights.numpy(), weights[1, 4:6], atol=1e-12)


@pytest.mark.parametrize(("name", "dtype", "backend"), oracle.forward_grid(PROBLEMS, NAMES))
def test_backends_equal_the_reference_or_refuse(name, dtype, backend, request):
    problem = problem_of(name, dtype=dtype)
    if backend != "naive":
        problem = problem_of(name, dtype=dtype, head_dim_v=8)
    case = Case(problem=problem, backend=backend)
    chosen = backends.load(backend)
    if chosen.objections(case, "cpu"):
        assert backend != "naive"
        return
    if problem.weighting.startswith("topp") and dtype != "fp32":
        pytest.skip("rounding decides which keys reach the share; tests/cli/test_verify.py checks it")
    qkv, _ = drawn(problem)
    with oracle.traced(name in TRACED or oracle.whole_grid(request)):
        result = scope.prepare(chosen, case, "cpu").call(*qkv)
    out, *rest = result if isinstance(result, tuple) else (result,)
    assert out.dtype == oracle.DTYPES[dtype]
    within = oracle.WITHIN[dtype] * (3 if dtype != "fp32" else 1)
    expected = exact_output(problem)
    torch.testing.assert_close(out.double(), expected.out, rtol=2e-2 if dtype == "bf16" else 2e-3, atol=within)
    if problem.returns == "lse":
        torch.testing.assert_close(rest[0].double(), expected.lse, rtol=0, atol=within)
    if problem.returns == "weights" and problem.weighting == "softmax":
        torch.testing.assert_close(rest[0].double() @ _wide(problem, qkv[2]), expected.out, rtol=0, atol=within)


def _wide(problem, v):
    return v.double().repeat_interleave(problem.heads // problem.kv_heads, 1)


@pytest.mark.parametrize("backend", ["naive", "sdpa:math", "sdpa:flash", "gather"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_equal_the_reference(name, backend):
    problem = problem_of(name, head_dim_v=8)
    case = Case(problem=problem, backend=backend, mode=Mode.FWD_BWD)
    chosen = backends.load(backend)
    if chosen.objections(case, "cpu"):
        return
    qkv, dout = drawn(problem)
    leaves = [tensor.requires_grad_() for tensor in qkv]
    out = scope.prepare(chosen, case, "cpu").call(*leaves)
    gradients = torch.autograd.grad(out[0] if isinstance(out, tuple) else out, leaves, dout)
    for gradient, truth in zip(gradients, exact_gradients(problem), strict=True):
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if "hard" not in name and "topp" not in name])
def test_gradients_of_the_reference_equal_finite_differences(name):
    problem = problem_of(name, batch=1, heads=2, kv_heads=1, dtype="fp32")
    qkv, dout = drawn(problem)
    qkv = [tensor.double() for tensor in qkv]
    gradients = reference.gradients(problem, *qkv, dout)
    torch.manual_seed(1)
    for place, gradient in enumerate(gradients):
        along = torch.randn_like(qkv[place])

        def value(step, place=place, along=along):
            moved = [tensor + step * along if n == place else tensor for n, tensor in enumerate(qkv)]
            return float((reference.attend(problem, *moved).out * dout.double()).sum())

        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        assert float((gradient * along).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_reference_equals_the_autograd_reference():
    for mask in ("none", "causal+window:3", "padding:0.4"):
        problem = Problem(**{**SHAPE, "mask": mask, "score": Score(softcap=2.0)})
        qkv, dout = drawn(problem)
        for group in ((0, 1), (1, 2)):
            plain = attend_group(problem, *qkv, group)
            forward = autograd_reference.forward_group(problem, *qkv, group, None, None)
            torch.testing.assert_close(forward.out, plain.out, rtol=0, atol=1e-13)
            torch.testing.assert_close(forward.lse, plain.lse, rtol=0, atol=1e-13)
            gradients = autograd_reference.gradients_group(problem, *qkv, dout, group, None).gradients
            for left, right in zip(gradients, gradients_group(problem, *qkv, dout, group), strict=True):
                torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
            _, mass = attend_group_same_dtype(problem, *qkv, group)
            rounded = autograd_reference.forward_group(
                problem, *qkv, group, None, autograd_reference.steps_for(problem)
            )
            torch.testing.assert_close(rounded.mass, mass, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weighting", ["softmax", *WEIGHTINGS])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weights_of_a_row_equal_the_definition(weighting, data):
    count = data.draw(st.integers(1, 12))
    numbers = st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1.0, -np.inf]))
    row = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    weights = weightings.parse(weighting).weights(torch.from_numpy(row)[None])[0].numpy()
    expected = definitions.weigh(weighting, row)
    if weighting.startswith("topp"):  # the last bit of a sum may decide which keys reach the share
        assert weights.sum() == pytest.approx(expected.sum())
        assert abs((weights > 0).sum() - (expected > 0).sum()) <= 1
    else:
        np.testing.assert_allclose(weights, expected, atol=1e-9)


def test_topp_keeps_the_smallest_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert (weightings.parse("topp:0.6").weights(logits) > 0).sum() == 2
    assert (weightings.parse("topp:1").weights(logits) > 0).sum() == 4


def test_keys_are_sampled_with_the_frequency_of_their_weights():
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).double().log()
    rows = torch.arange(20_000)
    noise = weightings.GumbelMax.noise(0, slice(0, 1), rows, torch.arange(4))[0]
    drawn = weightings.parse("hard:sample").weights(logits + noise).mean(0)
    torch.testing.assert_close(drawn, logits.exp(), rtol=0, atol=0.015)  # four standard errors


def test_biases_by_distance_equal_those_of_pairs():
    for text in ("alibi", "t5", "span:3:2"):
        problem = problem_of(text)
        dense, listed = problem.bias.dense_tensor(problem), problem.bias.distances(problem)
        for i, j in np.ndindex(problem.seq_q, problem.seq_kv):
            entry = j - (i + problem.seq_kv - problem.seq_q) + problem.seq_kv - 1
            torch.testing.assert_close(dense[:, i, j], listed[:, entry])


@pytest.mark.parametrize("one_sided", [False, True])
def test_buckets_of_t5_equal_the_published_ones(one_sided):
    bias = biases.parse("t5")
    for relative in range(-300, 300):
        assert int(bias.bucket(torch.tensor(relative), one_sided)) == definitions.bucket(relative, one_sided)


def test_edges_are_symmetric_and_of_every_type():
    problem = Problem(seq_q=40, heads=2, score=Score(bias="edge:3"), mask="graph:0.3")
    dense = problem.bias.dense_tensor(problem)
    torch.testing.assert_close(dense, dense.mT)
    counts = [int((dense[0] == value).sum()) for value in dense[0].unique()]
    assert len(counts) == 3
    assert min(counts) > 40 * 40 / 3 * 0.8


def test_parameters_are_fixed_by_their_name():
    """The sum pins the generator: another generator would change every result with a bias."""
    first = fixed_random.normal("x", 1000)
    assert first.tolist() == fixed_random.normal("x", 1000).tolist()
    assert first.tolist() != fixed_random.normal("y", 1000).tolist()
    assert float(first.sum()) == pytest.approx(SUM_OF_X, abs=1e-3)


WRONG = {
    "bias=alibbi": ({"score": {"bias": "alibbi"}}, "alibi"),
    "shaw without a clip": ({"score": {"bias": "shaw"}}, "shaw:16"),
    "xl as a tensor": ({"score": {"bias": "xl:dense"}}, "depends on the queries"),
    "span with padding": ({"score": {"bias": "span:4:2"}, "mask": "padding:0.3"}, "no padding"),
    "too few buckets": ({"score": {"bias": "t5:2"}}, "at least 4 buckets"),
    "hard": ({"weighting": "hard:first"}, "argmax"),
    "top none": ({"weighting": "hard:topk=0"}, "at least 1"),
    "top of more than all": ({"weighting": "topp:1.5"}, "at most 1"),
    "sinks without softmax": ({"sinks": True, "weighting": "sigmoid"}, "denominator"),
    "lse without softmax": ({"returns": "lse", "weighting": "raw"}, "denominator"),
    "odd rope": ({"positions": "rope", "head_dim": 7}, "even"),
    "all dropped": ({"dropout": 1.0}, "below 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_problems_are_refused(name):
    values, hint = WRONG[name]
    with pytest.raises((ProblemError, UnknownNameError), match=hint):
        Problem(**{**SHAPE, **values, "score": Score(**values.get("score", {}))})


def test_scores_of_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def squared(q, k):\n    return -(q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)\n"
        "def wrong(q, k):\n    return q\n"
    )
    problem = Problem(**SHAPE, score=parse_score(f"{file}:squared"))
    qkv, _ = drawn(problem)
    out = scope.prepare(backends.load("naive"), Case(problem=problem, backend="naive"), "cpu").call(*qkv)
    torch.testing.assert_close(out.double(), reference.attend(problem, *qkv).out, rtol=0, atol=2e-5)
    plain = torch.cdist(qkv[0].double(), _wide(problem, qkv[1])).square().neg().softmax(-1) @ _wide(problem, qkv[2])
    torch.testing.assert_close(out.double(), plain, rtol=0, atol=2e-5)
    for name, hint in {
        f"{file}:wrong": "it must return",
        f"{file}:none": "there are squared, wrong",
        "no.py:f": "no file",
    }.items():
        with pytest.raises(UsageError, match=hint):
            reference.attend(Problem(**SHAPE, score=parse_score(name)), *qkv)


@pytest.mark.parametrize(("kv_dtype", "worst"), [("int8", 0.5 / 127), ("fp8_e4m3", 2.0**-4)])
def test_quantisation_error_is_bounded(kv_dtype, worst):
    """int8: at most half a step of 1/127 of the largest number; fp8: half a spacing of 2^-3 of the number."""
    wide = Problem(**SHAPE)
    narrow = Problem(**SHAPE, kv_dtype=kv_dtype)
    before, after = inputs.make(wide, 0), inputs.make(narrow, 0)
    assert torch.equal(before.q, after.q)
    for name in "kv":
        old, new = getattr(before, name), getattr(after, name)
        size = old.abs().amax(-1, keepdim=True) if kv_dtype == "int8" else old.abs().clamp_min(old.abs().amax() / 2**8)
        error = ((new - old).abs() / size).max()
        assert 0 < float(error) <= worst * 1.01
        levels = (new / (new.abs().amax(-1, keepdim=True) / 127)).double()
        if kv_dtype == "int8":
            torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    numbers = 2 * 3 * 11 * (8 + 5)
    assert cost.kv_bytes(narrow) == numbers + 2 * 4 * 2 * 3 * 11
    assert cost.kv_bytes(wide) == 4 * numbers
    assert before.q.dtype is after.k.dtype is torch.float32


def test_tensor_parallelism_divides_the_heads():
    table = {"seq": "64", "heads": "8", "kv_heads": "2", "tp": "1,2,4,3", "mask": "none"}
    cells = list(suite.expand(suite.from_flags(table), kind="cpu", dtype=Dtype.FP32))
    shapes = [(cell.problem.heads, cell.problem.kv_heads) for cell in cells if hasattr(cell, "problem")]
    assert shapes == [(8, 2), (4, 1), (2, 1)]
    assert ["cannot be shared out among tp=3" in cell.reason for cell in cells if hasattr(cell, "reason")] == [True]


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("backend", ["naive", "sdpa:math", "sdpa:flash"])
@pytest.mark.parametrize(
    "fields",
    [
        {"score": Score(bias="alibi")}, {"score": Score(bias="xl")}, {"score": Score(bias="shaw:16")},
        {"weighting": "hard:topk=8"}, {"weighting": "topp:0.9"}, {"weighting": "sparsemax"}, {"weighting": "sigmoid"},
        {"sinks": True}, {"dropout": 0.1}, {"score": parse_score("additive"), "seq_q": 64}, {"positions": "rope"},
        {"returns": "weights"}, {"scope": "block"}, {"scope": "layer:2"}, {"scope": "layer:2", "autocast": "bf16"},
    ],
    ids=str,
)  # fmt: skip
def test_predicted_memory_is_never_below_the_measured(fields, backend, mode):
    from attnbench.machine.device.cpu import CpuInstrument
    from attnbench.records.arm import Device

    problem = Problem(**{"seq_q": 256, "heads": 4, **fields})
    case, chosen = Case(problem=problem, backend=backend, mode=mode), backends.load(backend)
    if chosen.objections(case, "cpu"):
        return
    qkv, dout = drawn(problem)
    prepared = scope.prepare(chosen, case, "cpu")
    leaves = [tensor.requires_grad_(mode != "fwd") for tensor in qkv]

    def run():
        if mode == "fwd":
            with torch.no_grad():
                return prepared.call(*leaves)
        result = prepared.call(*leaves)
        out = result[0] if isinstance(result, tuple) else result
        return result, torch.autograd.grad(out, [*leaves, *prepared.weights], dout, materialize_grads=True)

    run()
    measured = CpuInstrument(Device(kind="cpu", threads=1)).memory(run).peak
    assert measured <= chosen.extra_bytes(case) * 1.1 + 3 * cost.input_bytes(problem)
