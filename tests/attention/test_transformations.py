"""Transformed inputs give transformed outputs, against the float64 reference of every kind of problem."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.attention import blocks, inputs, layouts, transformations
from attnbench.attention.choices import Dtype, Mode, Positions
from attnbench.attention.inputs import Inputs
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score, Similarity
from attnbench.attention.transformations import Channels, Transformation
from attnbench.errors import ProblemError
from attnbench.worker.reference_outputs import group_outputs

MASKS = (
    "none",
    "causal",
    "window:3:2",
    "causal+window:4",
    "prefix:5",
    "causal+padding:0.4",
    "document:3",
    "dilated:2:2",
)
BIASES = ("none", "alibi", "t5", "xl", "shaw:4", "span:3:2", "edge:3", "alibi:dense")
SIMILARITIES = (Similarity.DOT, Similarity.DOT, Similarity.COSINE, Similarity.BILINEAR, Similarity.ADDITIVE)
WEIGHTINGS = ("softmax", "softmax", "topp:0.9", "raw", "sigmoid", "sparsemax", "hard:topk=3", "hard:sample")
SHAPES: tuple[dict[str, Any], ...] = (
    {"seq_q": 9, "batch": 2},
    {"seq_q": 5, "seq_kv": 11},
    {"seq_q": 11, "seq_kv": 5, "batch": 3},
    {"seq_q": 1, "seq_kv": 7, "batch": 2},
)
REQUESTS: tuple[dict[str, Any], ...] = (
    {"requests": "2q1s9_q5", "batch": 3, "seq_q": 5, "seq_kv": 9},
    {"requests": "q3s8_q8", "batch": 2, "seq_q": 8, "seq_kv": 8, "page_size": 4},
    {"requests": "3q1s9", "batch": 3, "seq_q": 1, "seq_kv": 9, "shared_prefix": "4:2"},
)
HEADS = ({"heads": 4, "kv_heads": 2}, {"heads": 3}, {"heads": 4, "kv_heads": 1}, {"heads": 1})


def problem_of(**fields: Any) -> Problem | None:
    """The problem, or None where these values exclude one another."""
    try:
        return Problem(**fields)
    except ProblemError:
        return None


AXES: dict[str, tuple[Any, ...]] = {
    "mask": MASKS,
    "score": tuple(Score(similarity=kind) for kind in SIMILARITIES),
    "weighting": WEIGHTINGS,
    "returns": ("out", "lse", "weights"),
    "positions": ("none", "none", "rope", "sinusoidal"),
    "sinks": (False, True),
    "dropout": (0.0, 0.1),
    "kv_dtype": ("same", "same", "int8", "nvfp4"),
}


@st.composite
def cores(draw: st.DrawFn) -> Problem:
    """Attention alone: any mask, score, bias, weighting and shape, added one after the other where they fit."""
    shape = {**draw(st.sampled_from((*SHAPES, *REQUESTS))), **draw(st.sampled_from(HEADS))}
    shape |= {"head_dim": draw(st.sampled_from((8, 6, 2))), "head_dim_v": draw(st.sampled_from((8, 5, 1)))}
    problem = Problem(**shape)
    changes = [{name: draw(st.sampled_from(values))} for name, values in AXES.items()]
    for change in draw(st.permutations(changes)):
        problem = problem_of(**{**msgspec.structs.asdict(problem), **change}) or problem
    of_score = {"softcap": (None, None, 2.0), "temperature": (None, 0.7), "bias": BIASES}
    for name, values in of_score.items():
        score = msgspec.structs.replace(problem.score, **{name: draw(st.sampled_from(values))})
        problem = problem_of(**{**msgspec.structs.asdict(problem), "score": score}) or problem
    return problem


SCOPED = tuple(
    Problem(seq_q=6, heads=2, head_dim=4, batch=2, **fields)
    for fields in (
        {"scope": "block", "mask": "causal"},
        {"scope": "block", "seq_kv": 9, "positions": "rope"},
        {"scope": "block", "positions": "sinusoidal"},
        {"scope": "block", "score": Score(bias="xl")},
        {"scope": "layer:2", "mask": "causal"},
        {"scope": "layer:1", "seq_kv": 9},
    )
)
LATENT = tuple(
    Problem(seq_q=3, seq_kv=7, heads=4, head_dim=8, head_dim_v=4, kv="latent:6+4", **fields)
    for fields in ({"batch": 2}, {"mask": "causal", "page_size": 4, "batch": 2}, {"returns": "lse"})
)


def outputs_of(problem: Problem, mode: Mode, tensors: Inputs) -> dict[str, torch.Tensor]:
    """Every output of the float64 reference, in the shape that a backend returns."""
    parts: dict[str, list[tuple[blocks.Group, torch.Tensor]]] = {}
    for group in blocks.groups(problem):
        for output in group_outputs(problem, mode, tensors, group, None):
            parts.setdefault(output.name, []).append((group, output.reference))
    axis = 1 if problem.requests else 0
    joined = {}
    for name, groups in parts.items():
        sequences = [torch.cat([part for (b, _), part in groups if b == number]) for number in range(problem.batch)]
        joined[name] = torch.cat(sequences, 1)[None] if axis else torch.stack(sequences)
    joined["lse"] = joined["lse"][..., 0] if "lse" in joined else torch.zeros(1, 1, 1)
    return joined


def changed(problem: Problem, tensors: Inputs, total: Transformation) -> Inputs:
    return Inputs(**{name: total.applied(name, getattr(tensors, name)) for name in ("q", "k", "v", "dout")})


def drawn(problem: Problem, seed: int, steps: int, *, gradients: bool, reorder: bool = True) -> Transformation:
    total, allowed = (
        transformations.identity(problem, gradients=gradients),
        transformations.freedom(problem, gradients=gradients, reorder=reorder),
    )
    for number in range(steps):
        total = transformations.step(problem, allowed, seed + number, total).after(total)
    return total


def assert_known(problem: Problem, seed: int, steps: int) -> None:
    """The outputs of transformed inputs are the transformed outputs; undoing gives the outputs before."""
    gradients = not (problem.kv or (problem.requests and problem.page_size) or problem.returns == "weights")
    mode = Mode.FWD_BWD if gradients else Mode.FWD
    tensors = inputs.make(problem, 3)
    total = drawn(problem, seed, steps, gradients=gradients)
    before = outputs_of(problem, mode, tensors)
    after = outputs_of(problem, mode, changed(problem, tensors, total))
    back = total.inverse()
    for name, values in before.items():
        if name == "lse" and values.shape == (1, 1, 1):
            continue
        torch.testing.assert_close(after[name], total.applied(name, values), equal_nan=True, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(back.applied(name, after[name]), values, equal_nan=True, rtol=1e-9, atol=1e-9)


@settings(max_examples=25)
@given(cores(), st.integers(0, 2**63), st.integers(1, 3))
def test_outputs_and_gradients_of_transformed_inputs_are_known(problem: Problem, seed: int, steps: int) -> None:
    assert_known(problem, seed, steps)


@pytest.mark.parametrize("problem", [*SCOPED, *LATENT], ids=lambda problem: problem.kv or problem.scope)
@pytest.mark.parametrize("seed", range(3))
def test_blocks_layers_and_latent_caches_have_fewer_transformations(problem: Problem, seed: int) -> None:
    assert_known(problem, seed, steps=2)


ROPE = Problem(seq_q=6, heads=2, head_dim=8, positions=Positions.ROPE)
WRONG: dict[str, tuple[Problem, dict[str, Any]]] = {
    "rope": (ROPE, {"logits": Channels.PERMUTED}),
    "bilinear": (
        Problem(seq_q=6, heads=2, head_dim=8, score=Score(similarity=Similarity.BILINEAR)),
        {"logits": Channels.SIGNED},
    ),
    "relative bias": (Problem(seq_q=6, heads=2, head_dim=8, score=Score(bias="xl")), {"logits": Channels.NEGATED}),
    "slopes of heads": (Problem(seq_q=6, heads=4, head_dim=8, score=Score(bias="alibi")), {"heads": True}),
    "sinks": (Problem(seq_q=6, heads=4, head_dim=8, sinks=True), {"heads": True}),
    "padding": (Problem(seq_q=6, heads=2, head_dim=8, batch=4, mask="padding:0.5"), {"sequences": True}),
    "block": (SCOPED[0], {"values": Channels.PERMUTED}),
    "layer": (SCOPED[4], {"values": Channels.NEGATED}),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_allowed_does_not_hold(name: str) -> None:
    problem, beyond = WRONG[name]
    tensors, nothing = inputs.make(problem, 3), transformations.identity(problem, gradients=True)
    allowed = transformations.freedom(problem, gradients=True)
    step = transformations.step(problem, allowed._replace(**beyond), 7, nothing)
    before = outputs_of(problem, Mode.FWD_BWD, tensors)
    after = outputs_of(problem, Mode.FWD_BWD, changed(problem, tensors, step))
    assert not torch.allclose(after["out"], step.applied("out", before["out"]), rtol=1e-9, atol=1e-9)


LAYOUTS = (
    Problem(seq_q=7, seq_kv=9, heads=4, kv_heads=2, head_dim=8, batch=2, page_size=4),
    Problem(heads=4, kv_heads=2, head_dim=8, **REQUESTS[1]),
)


@pytest.mark.parametrize("problem", LAYOUTS, ids=("batch", "requests"))
def test_keys_in_pages_change_as_keys_in_a_row(problem: Problem) -> None:
    tensors, total = inputs.make(problem, 3), drawn(problem, 11, 2, gradients=False)
    for name in "kv":
        tensor = getattr(tensors, name)
        pages = total.applied(name, layouts.paged(problem, tensor), head_axis=2)
        assert torch.equal(pages, layouts.paged(problem, total.applied(name, tensor)))


@pytest.mark.parametrize("dtype", [Dtype.FP32, Dtype.BF16, Dtype.FP16, Dtype.FP8_E4M3])
def test_any_layout_and_dtype_changes_without_a_rounding(dtype: Dtype) -> None:
    problem = Problem(seq_q=7, heads=4, kv_heads=2, head_dim=8, batch=3, dtype=dtype)
    tensors, total = inputs.make(problem, 3), drawn(problem, 2, 3, gradients=False)
    for name in ("q", "k", "v"):
        tensor = getattr(tensors, name)
        new = total.applied(name, tensor)
        heads_last = total.applied(name, tensor.transpose(1, 2).contiguous(), head_axis=2).transpose(1, 2)
        assert torch.equal(new.view(torch.uint8), heads_last.contiguous().view(torch.uint8))
        assert not torch.equal(new.view(torch.uint8), tensor.view(torch.uint8))
        assert torch.equal(total.inverse().applied(name, new).float(), tensor.float())


def test_shared_prefixes_stay_shared() -> None:
    problem = Problem(heads=4, kv_heads=2, head_dim=8, **REQUESTS[2])
    tensors, total = inputs.make(problem, 3), drawn(problem, 2, 2, gradients=False)
    k = total.applied("k", tensors.k)
    first, second = (keys for _, keys in problem.spans[:2])
    assert torch.equal(k[:, :, first][:, :, :4], k[:, :, second][:, :, :4])


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("mask", ["none", "causal"])
def test_without_another_order_of_sums_outputs_keep_their_bits(mask: str, gradients: bool) -> None:
    problem = Problem(seq_q=24, seq_kv=16, heads=4, kv_heads=2, head_dim=16, batch=2, mask=mask)
    tensors, total = inputs.make(problem, 3), drawn(problem, 2, 3, gradients=gradients, reorder=False)

    def plain(of: Inputs) -> dict[str, torch.Tensor]:
        q, k, v = (getattr(of, name).requires_grad_(gradients) for name in "qkv")
        hidden = torch.from_numpy(~problem.visible())[:, None]
        keys, values = (tensor.repeat_interleave(2, 1) for tensor in (k, v))
        logits = (q[..., None, :] * keys[:, :, None]).sum(-1).masked_fill(hidden, -1e30)
        out = ((logits.softmax(-1) * ~hidden)[..., None] * values[:, :, None]).sum(-2)
        if not gradients:
            return {"out": out}
        return {"out": out, **dict(zip(("dq", "dk", "dv"), torch.autograd.grad(out, (q, k, v), of.dout), strict=True))}

    before, after = plain(tensors), plain(changed(problem, tensors, total))
    for name, values in before.items():
        assert torch.equal(total.inverse().applied(name, after[name]), values), name


def test_a_draw_cannot_be_foretold_and_repeats_by_its_seed() -> None:
    problem = Problem(seq_q=8, heads=8, head_dim=64)
    first, again, other = (drawn(problem, seed, 1, gradients=True) for seed in (1, 1, 2))
    assert all(
        np.array_equal(a.factor, b.factor) for a, b in zip(first.maps.values(), again.maps.values(), strict=True)
    )
    assert not np.array_equal(first.maps["q"].factor, other.maps["q"].factor)
    assert not np.array_equal(first.maps["v"].source, other.maps["v"].source)


P, S, N, F = Channels.PERMUTED, Channels.SIGNED, Channels.NEGATED, Channels.FIXED
ALLOWED: tuple[tuple[dict[str, Any], Channels, Channels], ...] = (
    ({}, P, P),
    ({"mask": "causal", "sinks": True, "dropout": 0.1, "score": Score(softcap=3.0, bias="alibi")}, P, P),
    ({"score": Score(similarity=Similarity.COSINE)}, P, P),
    ({"dtype": "fp8_e4m3"}, S, S),
    ({"kv_dtype": "nvfp4"}, S, S),
    ({"positions": "rope"}, N, P),
    ({"score": Score(similarity=Similarity.BILINEAR)}, N, P),
    ({"score": Score(similarity=Similarity.ADDITIVE)}, F, P),
    ({"score": Score(bias="xl")}, F, P),
    ({"scope": "block"}, N, N),
    ({"scope": "layer:2"}, F, F),
)


@pytest.mark.parametrize(("fields", "logits", "values"), ALLOWED, ids=lambda value: str(value)[:40])
def test_what_a_problem_allows(fields: dict[str, Any], logits: Channels, values: Channels) -> None:
    allowed = transformations.freedom(Problem(seq_q=8, **fields), gradients=True)
    assert (allowed.logits, allowed.values) == (logits, values)
    scaled = "fp8" not in fields.get("dtype", "") and "kv_dtype" not in fields
    assert (len(allowed.exponents[1]) > 1) is scaled


def test_powers_of_two_stay_within_the_range_of_fp16() -> None:
    halves = Problem(seq_q=8, dtype=Dtype.FP16)
    assert transformations.freedom(halves, gradients=False).exponents == (range(3), range(1), range(1))
    assert transformations.freedom(halves, gradients=True).exponents == (range(1),) * 3
    raw = msgspec.structs.replace(halves, weighting="raw")
    assert transformations.freedom(raw, gradients=False).exponents == (range(1),) * 3
