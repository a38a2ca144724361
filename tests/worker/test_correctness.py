"""The rule that judges outputs: correct kernels pass, and each classical mistake fails."""

from __future__ import annotations

import json
import re
from functools import cache

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnbench import backends
from attnbench.attention import inputs, transformations
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import scope
from attnbench.records.case import Case
from attnbench.worker import correctness, expected_values, reference_outputs

DTYPES = ("fp32", "bf16", "fp16")
SHAPES = ({"seq_q": 96}, {"seq_q": 40, "seq_kv": 88}, {"seq_q": 33, "seq_kv": 1})
MASKS = ("none", "causal", "causal+window:20")


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    """Expected values of both passes by problem and distribution, computed once for all kernels."""
    return cache(
        lambda problem, distribution: expected(problem, tmp_path_factory.mktemp("truth"), distribution=distribution)
    )


def expected(problem, folder, mode=Mode.FWD_BWD, distribution="normal", budget_s=60.0):
    expected_values.compute(problem, mode, 5, distribution, folder, budget_s)
    return expected_values.load(folder)


def sdpa(problem, q, k, v, scale=None, mask=None):
    seen = torch.from_numpy(problem.masking.dense(problem.grid))[:, None] if mask is None else mask
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=seen,
        scale=problem.scale if scale is None else scale,
        enable_gqa=problem.heads > problem.kv_heads,
    )


@pytest.mark.parametrize("kernel", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=["math", "flash"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("distribution", ["normal", "peaked"])
def test_right_kernels_pass_forward_and_backward(kernel, dtype, shape, distribution, truths):
    for mask in MASKS:
        problem = Problem(heads=4, kv_heads=2, head_dim=32, dtype=dtype, mask=mask, **shape)
        tensors = inputs.make(problem, 5, distribution)
        truth = truths(problem, distribution)
        nothing = transformations.identity(problem, gradients=True)
        allowed = transformations.freedom(problem, gradients=True)
        for change in (nothing, *(transformations.step(problem, allowed, seed, nothing) for seed in range(2))):
            qkv = [change.applied(name, getattr(tensors, name)).requires_grad_() for name in "qkv"]
            with sdpa_kernel(kernel):
                out = sdpa(problem, *qkv)
                grads = torch.autograd.grad(out, qkv, change.applied("dout", tensors.dout))
            outputs = {"out": out, **dict(zip(("dq", "dk", "dv"), grads, strict=True))}
            judged = correctness.judge(truth, outputs, change.inverse())
            assert judged.ok, (mask, judged.reason)
            if change is not nothing:
                zero = ("dq", "dk") if problem.seq_kv == 1 else ()
                changed = {name: output for name, output in outputs.items() if name not in zero}
                assert all(not correctness.judge(truth, {name: output}).ok for name, output in changed.items())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 150), distribution=st.sampled_from(["outlier", "large"]),
    shape=st.sampled_from([(1, 17, 8), (3, 7, 16), (4, 9, 64)]),
)  # fmt: skip
@example(seed=44, distribution="outlier", shape=(4, 9, 64))
@example(seed=131, distribution="outlier", shape=(4, 9, 64))
def test_right_kernels_pass_on_few_extreme_numbers(tmp_path_factory, seed, distribution, shape):
    """Another order of the channels gives other roundings of large logits, of which none is more right."""
    seq_q, seq_kv, head_dim = shape
    problem = Problem(seq_q=seq_q, seq_kv=seq_kv, heads=2, head_dim=head_dim)
    q, k, v = (getattr(inputs.make(problem, seed, distribution), name) for name in "qkv")
    folder = tmp_path_factory.mktemp("few")
    expected_values.compute(problem, Mode.FWD, seed, distribution, folder, 60.0)
    truth = expected_values.load(folder)
    for number in range(10):
        order = torch.randperm(head_dim, generator=torch.Generator().manual_seed(number))
        with sdpa_kernel(SDPBackend.MATH):
            out = sdpa(problem, q[..., order].contiguous(), k[..., order].contiguous(), v)
        judged = correctness.judge(truth, {"out": out})
        assert judged.ok, (number, judged.reason)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", ["normal", "uniform", "peaked"])
def test_several_computations_widen_the_rule_little_for_usual_inputs(dtype, distribution, tmp_path, monkeypatch):
    problem = Problem(seq_q=20, seq_kv=60, heads=2, head_dim=64, dtype=dtype)
    several = expected(problem, tmp_path / "several", distribution=distribution).tolerances
    monkeypatch.setattr(reference_outputs, "ORDERS", 1)
    for name, single in expected(problem, tmp_path / "single", distribution=distribution).tolerances.items():
        budgets = [2 * each.plain_max + each.rounding for each in (several[name], single)]
        assert budgets[0] < 2 * budgets[1], name
        assert several[name].rms_error < 2 * single.rms_error, name


def test_many_logits_are_computed_once(tmp_path, monkeypatch):
    problem = Problem(seq_q=200, heads=1, head_dim=16)
    tolerances = expected(problem, tmp_path / "several").tolerances
    monkeypatch.setattr(reference_outputs, "ORDERS", 1)
    assert expected(problem, tmp_path / "single").tolerances == tolerances


@pytest.mark.parametrize("distribution", ["peaked", "outlier"])
def test_logits_of_tf32_fail_on_extreme_inputs(distribution, tmp_path):
    """As by tensor cores with operands of tf32."""
    problem = Problem(seq_q=16, seq_kv=40, heads=2, head_dim=64)
    tensors = inputs.make(problem, 5, distribution)
    short = [(tensor.view(torch.int32) & ~0x1FFF).view(torch.float32) for tensor in (tensors.q, tensors.k)]
    truth = expected(problem, tmp_path, Mode.FWD, distribution)
    assert correctness.judge(truth, {"out": sdpa(problem, tensors.q, tensors.k, tensors.v)}).ok
    assert not correctness.judge(truth, {"out": sdpa(problem, *short, tensors.v)}).ok


def wrong_outputs(problem, q, k, v):
    """Wrong outputs by mistake, as far as the mistake changes this problem's output."""
    right = sdpa(problem, q, k, v)
    rows = torch.arange(problem.seq_q)
    shifted_mask = torch.from_numpy(problem.masking.dense(problem.grid))[:, None].roll(1, -1)
    top_left = torch.ones(problem.seq_q, problem.seq_kv, dtype=torch.bool).tril()
    wrong = {
        "zeros": torch.zeros_like(right),
        "mean of v": v.mean(-2, keepdim=True).repeat_interleave(2, 1).expand_as(right),
        "rows shifted": right[:, :, rows.roll(1)],
        "scale off": sdpa(problem, q, k, v, scale=problem.scale * 2**0.5),
        "heads mixed up": sdpa(problem, q, k[:, [1, 0]], v[:, [1, 0]]),
        "one wrong tile": right.index_fill(2, rows[16:32], 0.0),
        "nan": right.masked_fill(torch.arange(right.numel()).view_as(right) == 77, float("nan")),
    }
    if problem.mask != "none":
        wrong["mask shifted"] = sdpa(problem, q, k, v, mask=shifted_mask)
        wrong["top left"] = sdpa(problem, q, k, v, mask=top_left)
        wrong["no mask"] = sdpa(problem, q, k, v, mask=torch.ones_like(top_left))
    return wrong


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("distribution", ["normal", "peaked"])
def test_negative_controls_fail(dtype, mask, distribution, tmp_path):
    problem = Problem(seq_q=64, seq_kv=200, heads=4, kv_heads=2, head_dim=32, dtype=dtype, mask=mask)
    tensors = inputs.make(problem, 5, distribution)
    truth = expected(problem, tmp_path, Mode.FWD, distribution)
    passed = [
        name
        for name, out in wrong_outputs(problem, tensors.q, tensors.k, tensors.v).items()
        if correctness.judge(truth, {"out": out}).ok
    ]
    assert not passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_mean_of_v_are_incorrect_where_scores_are_flat(dtype, tmp_path):
    # Thousands of keys: every output is near the mean of v, and v's mean near 0.
    problem = Problem(seq_q=16, seq_kv=4096, heads=2, head_dim=32, dtype=dtype)
    tensors = inputs.make(problem, 5)
    truth = expected(problem, tmp_path, Mode.FWD)
    mean = tensors.v.mean(-2, keepdim=True).expand(1, 2, 16, 32)
    assert correctness.judge(truth, {"out": sdpa(problem, tensors.q, tensors.k, tensors.v)}).ok
    assert not correctness.judge(truth, {"out": torch.zeros_like(mean)}).ok
    assert not correctness.judge(truth, {"out": mean}).ok


def test_nan_is_never_within_budget(tmp_path):
    problem = Problem(seq_q=16, heads=1, head_dim=16)
    truth = expected(problem, tmp_path, Mode.FWD)
    judged = correctness.judge(truth, {"out": torch.full((1, 1, 16, 16), float("nan"))})
    assert not judged.ok
    assert judged.reason == "out: nan at [b0 h0 q0 d0], not finite in 256 of 256 numbers"
    assert judged.errors["out"].max_abs is None


def test_shape_and_dtype_are_named(tmp_path):
    problem = Problem(seq_q=16, heads=1, head_dim=16)
    truth = expected(problem, tmp_path, Mode.FWD)
    judged = correctness.judge(truth, {"out": torch.zeros(1, 16, 1, 16, dtype=torch.float64)})
    assert judged.reason == "out: is float64 [1, 16, 1, 16] and should be float32 [1, 1, 16, 16]"


def test_a_small_budget_checks_a_part_and_says_which(tmp_path):
    problem = Problem(seq_q=2048, heads=8, head_dim=64)
    truth = expected(problem, tmp_path, Mode.FWD, budget_s=1e-4)
    assert 0 < truth.share < 1
    tensors = inputs.make(problem, 5)
    out = sdpa(problem, tensors.q, tensors.k, tensors.v)
    assert correctness.judge(truth, {"out": out}).ok
    broken = out.clone()
    broken[:, :, truth.selection.spans[0][0]] *= 1.01
    assert not correctness.judge(truth, {"out": broken}).ok


def test_the_lse_must_be_minus_infinity_just_where_no_key_is_seen(tmp_path):
    problem = Problem(seq_q=9, seq_kv=4, heads=1, head_dim=16, mask="causal", returns="lse")
    truth = expected(problem, tmp_path, Mode.FWD)
    right = torch.from_numpy(truth.array("lse")[0, ..., 0].copy()).float()[None]
    assert correctness.judge(truth, {"lse": right}).ok
    assert not correctness.judge(truth, {"lse": right.nan_to_num(neginf=-1e30)}).ok
    assert not correctness.judge(truth, {"lse": right + 1e-3}).ok


def test_the_keys_of_expected_values_are_those_that_other_versions_read(tmp_path):
    values = expected(Problem(seq_q=8, heads=1), tmp_path)
    record = json.loads((tmp_path / "expected.json").read_text())
    assert record["digest"] == values.digest == inputs.digest(inputs.make(values.problem, 5))
    assert msgspec.to_builtins(values.problem) == record["problem"]
    assert {"yardstick_max", "yardstick_mean", "yardstick_rms", "rounding", "rms", "rms_error"} <= set(
        record["tolerances"]["out"]
    )


@pytest.mark.parametrize(
    ("rate", "inputs_"),
    [
        (0.1, "peaked"),
        (0.5, "normal"),
        pytest.param(0.1, "normal", marks=pytest.mark.slow),
        pytest.param(0.5, "peaked", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["naive", "sdpa:math"])
def test_dropout_is_judged_by_its_mean_and_variance(truths, name, rate, inputs_):
    problem = Problem(batch=2, heads=8, seq_q=240, seq_kv=256, head_dim=16, mask="causal", dropout=rate)
    truth = truths(problem, inputs_)
    tensors = inputs.make(problem, 5, inputs_)
    leaves = [tensor.requires_grad_() for tensor in (tensors.q, tensors.k, tensors.v)]

    def outputs(of):
        case = Case(problem=of, backend=name, mode=Mode.FWD_BWD)
        out = backends.load(name).prepare(case, "cpu").call(*leaves)
        gradients = torch.autograd.grad(out, leaves, tensors.dout)
        return {"out": out.detach(), **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}

    torch.manual_seed(0)
    for _ in range(20):
        judged = correctness.judge(truth, outputs(problem))
        assert judged.ok, judged.reason
    wrong = {
        "none at all": (replace(problem, dropout=0.0), 1.0, "variance"),
        "another rate": (replace(problem, dropout=rate / 2), 1.0, "variance"),
        "not scaled up": (problem, 1 - rate, "variance|mean"),
        "scaled twice": (problem, 1 / (1 - rate), "variance|mean|row"),
    }
    for of, factor, hint in wrong.values():
        scaled = {key: tensor * factor for key, tensor in outputs(of).items()}
        judged = correctness.judge(truth, scaled)
        assert not judged.ok
        assert re.search(hint, judged.reason)
    broken = outputs(problem)
    broken["out"][1, 2, 5] = 30.0
    assert "a row is off" in correctness.judge(truth, broken).reason


def of_requests(**changes):
    shape = {"batch": 3, "seq_q": 20, "seq_kv": 50, "requests": "q20s30_q1s50_q4", "mask": "causal", **changes}
    return Problem(heads=4, kv_heads=2, head_dim=16, **shape)


@pytest.mark.parametrize("mode", [Mode.FWD, Mode.FWD_BWD])
def test_requests_are_judged_one_by_one_and_the_wrong_one_is_named(mode, tmp_path):
    problem = of_requests()
    truth, tensors = expected(problem, tmp_path, mode), inputs.make(problem, 5)
    qkv = [tensor.clone().requires_grad_() for tensor in (tensors.q, tensors.k, tensors.v)]
    case = Case(problem=problem, backend="sdpa:math", mode=mode)
    out = scope.prepare(backends.load("sdpa:math"), case, "cpu").call(*qkv)
    outputs = {"out": out}
    if mode.needs_grad:
        outputs |= dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, qkv, tensors.dout), strict=True))
    assert truth.share == 1.0
    assert (judged := correctness.judge(truth, outputs)).ok, judged.reason
    for name, place, where in (("out", 21, "[b2 h3 q0 d5]"), ("dk", 30, "[b1 h1 k0 d5]")):
        if name in outputs:
            wrong = {**outputs, name: outputs[name].detach().clone()}
            wrong[name][0, -1, place, 5] += 0.5
            assert where in correctness.judge(truth, wrong).reason
            wrong[name][0, -1, place, 5] = float("nan")
            assert f"nan at {where}" in correctness.judge(truth, wrong).reason


@pytest.mark.parametrize("shared_prefix", ["", "10:2"])
def test_a_small_budget_checks_some_requests_and_counts_their_rows(shared_prefix, tmp_path):
    problem = of_requests(requests="q20s30_q1s50_q4s14", shared_prefix=shared_prefix)
    truth = expected(problem, tmp_path, Mode.FWD, budget_s=1e-9)
    ((request, _),), rows = truth.selection.groups, sum(stop - first for first, stop in truth.selection.spans)
    assert rows == problem.sizes[request].queries
    assert truth.share == pytest.approx(rows / (2 * (20 + 1 + 4)))


def added_in_order(problem, q, k, v):
    """A decode by float32 products whose terms are added one after the other."""
    group = problem.heads // problem.kv_heads
    k, v = (tensor.repeat_interleave(group, 1) for tensor in (k, v))
    weights = (q @ k.transpose(-1, -2) * problem.scale).softmax(-1)
    terms = (weights[0, :, 0, :, None] * v[0]).numpy()
    return torch.from_numpy(terms.cumsum(1)[:, -1])[None, :, None]  # torch's own adds in float64


@pytest.mark.parametrize("keys", [4096, 16384])
def test_a_decode_may_add_its_terms_in_order(keys, tmp_path):
    """The plain formula adds blocks of terms, and is up to ten times as near to the reference."""
    problem = Problem(seq_q=1, seq_kv=keys, heads=8, kv_heads=2, head_dim=64, dtype="fp32")
    wanted = expected(problem, tmp_path, Mode.FWD, "heavy")
    tensors = inputs.make(problem, 5, "heavy")
    out = added_in_order(problem, tensors.q, tensors.k, tensors.v)
    verdict = correctness.judge(wanted, {"out": out})
    assert verdict.ok, verdict.reason
    assert not correctness.judge(wanted, {"out": out * (1 + 1e-4)}).ok
    assert not correctness.judge(
        wanted, {"out": added_in_order(problem, tensors.q, tensors.k[:, :, 1:], tensors.v[:, :, 1:])}
    ).ok
