"""The problems of drawn steps, and the times of steps from results."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.analysis.traffic import Draw, TrafficSteps
from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.engine.sweep import Request
from attnbench.errors import UsageError
from attnbench.records.result import sample
from attnbench.studies import replayed_steps
from attnbench.studies.replayed_steps import StepProblems
from attnbench.suite.models.decoder import Decoder, DecoderLayer, Weights
from attnbench.suite.models.layers import Layer
from tests import samples

FULL = DecoderLayer(kind=Layer.FULL, count=2, heads=8, kv_heads=2, head_dim=16, head_dim_v=16)
WINDOW = DecoderLayer(kind=Layer.SLIDING, count=3, heads=8, kv_heads=2, head_dim=16, head_dim_v=16, window=128)


def decoder(*layers: DecoderLayer) -> Decoder:
    return Decoder(name="made", layers=layers, weights=Weights(embedding=1, dense=1), dtype=Dtype.BF16)


def problem(text: str, mask: str = "causal") -> Problem:
    (step,) = replayed_steps.problems_of([(1, 40)], decoder(FULL), dtype=Dtype.FP32, page_size=16).layers
    assert step[0].requests == "q1s40"
    return Problem(
        batch=1, seq_q=1, seq_kv=40, heads=8, kv_heads=2, head_dim=16, mask=mask, requests=text, page_size=16
    )


def test_every_kind_of_layer_is_a_problem_that_counts_by_its_layers():
    step = replayed_steps.problems_of(
        [(4, 300), (1, 50), (1, 50)], decoder(FULL, WINDOW), dtype=Dtype.FP32, page_size=16
    )
    (full, full_layers), (window, window_layers) = step.layers
    assert (full_layers, window_layers) == (2, 3)
    assert (full.requests, full.mask, full.batch, full.seq_q, full.seq_kv) == ("q4s300_2q1s50", "causal", 3, 4, 300)
    # A window of 128 keys has 127 beside the diagonal one.
    assert window.mask == "causal+window:127"
    assert (full.heads, full.kv_heads, full.page_size, full.dtype) == (8, 2, 16, "fp32")


def test_a_latent_cache_is_that_of_the_model():
    """DeepSeek-V3: 512 numbers and 64 of RoPE for each token, queries of 128 + 64, values of 128."""
    mla = DecoderLayer(
        kind=Layer.FULL, count=61, heads=128, kv_heads=128, head_dim=192, head_dim_v=128, latent=(576, 512)
    )
    ((problem, layers),) = replayed_steps.problems_of([(1, 5)], decoder(mla), dtype=Dtype.BF16, page_size=16).layers
    assert (problem.kv, problem.kv_heads, problem.head_dim, problem.head_dim_v) == ("latent:512+64", 1, 192, 128)
    assert layers == 61
    planned = replayed_steps.plan(
        Request(backend=replayed_steps.LATENT_BACKENDS, device="cpu:threads=1"),
        [StepProblems(layers=((problem, layers),))],
    )
    assert planned.plan.cases == 3
    assert not planned.plan.refusals


def test_chunks_are_refused_with_what_to_use():
    chunked = DecoderLayer(kind=Layer.CHUNKED, count=1, heads=8, kv_heads=2, head_dim=16, head_dim_v=16, chunk=64)
    with pytest.raises(UsageError, match="chunks of 64 tokens cannot be measured: use --simulate-only"):
        replayed_steps.problems_of([(1, 5)], decoder(chunked), dtype=Dtype.FP32, page_size=16)


def test_the_plan_has_each_problem_once_and_no_other():
    wide = DecoderLayer(kind=Layer.SLIDING, count=1, heads=4, kv_heads=4, head_dim=32, head_dim_v=32, window=9)
    batches = [[(1, 40)], [(3, 3), (1, 40)], [(1, 40)]]
    steps = [replayed_steps.problems_of(each, decoder(FULL, wide), dtype=Dtype.FP32, page_size=16) for each in batches]
    planned = replayed_steps.plan(Request(backend="naive,sdpa", device="cpu:threads=1"), steps)
    wanted = {problem for step in steps for problem, _ in step.layers}
    assert len(wanted) == 4
    assert {group.problem for group in planned.plan.groups} == wanted
    assert planned.plan.cases == 2 * 4


def drawn(count: int) -> tuple[Draw, TrafficSteps]:
    steps = np.arange(count)
    ones = np.ones(count)
    table = TrafficSteps(kinds=0 * steps, requests=ones, max_q=ones, context=ones, predicted_s=ones)
    return Draw(steps=steps, weights=ones, certain=0), table


def test_a_step_takes_all_its_layers_round_by_round_and_its_plan_once():
    full, window = problem("q1s40"), problem("q1s40", "causal+window:127")
    steps = [StepProblems(layers=((full, 2), (window, 3)))]
    planned = samples.result([0.5, 0.6], "sdpa", problem=window, group="w")
    planned.samples["plan"] = sample("s", [7.0])
    results = [
        samples.result([1.0, 1.1, 1.2], problem=full, group="f"),
        samples.result([2.0, 2.1, 2.2], "sdpa", problem=full, group="f"),
        samples.result([0.1, 0.2], problem=window, group="w"),
        planned,
    ]
    measured = replayed_steps.times_of(steps, results, *drawn(1))
    assert measured.backends == ("naive", "sdpa")
    np.testing.assert_allclose(measured.times_s[0], [[2.3, 2.8], [12.5, 13.0]])
    assert measured.refusals == {}


def test_a_step_without_one_of_its_times_has_the_reason():
    full, window = problem("q1s40"), problem("q1s40", "causal+window:127")
    steps = [StepProblems(layers=((full, 2),)), StepProblems(layers=((full, 2), (window, 3)))]
    results = [
        samples.result([1.0, 1.0], problem=full),
        samples.result([2.0, 2.0], "sdpa", problem=full),
        samples.result([], "sdpa", problem=window, reason="out of memory"),
    ]
    measured = replayed_steps.times_of(steps, results, *drawn(2))
    assert measured.refusals == {(1, "naive"): "not measured", (1, "sdpa"): "error: out of memory"}
    assert np.isnan(measured.times_s[1]).all()
    assert measured.times_s[0].tolist() == [[2.0, 2.0], [4.0, 4.0]]


def test_a_backend_of_a_later_pass_is_scaled_by_the_reference_of_both():
    """By hand: the machine was twice as slow in the later pass, where the reference took 2 s in place of 1 s."""
    full = problem("q1s40")
    late = samples.result([3.0, 4.0], "flex", problem=full, group="late", facts={"reference": "naive@cpu:threads=1"})
    late.samples["reference_time"] = samples.timed([2.0, 2.0])
    results = [samples.result([1.0, 1.0], problem=full, facts={"reference": "naive@cpu:threads=1"}), late]
    measured = replayed_steps.times_of([StepProblems(layers=((full, 1),))], results, *drawn(1))
    assert measured.times_s[0].tolist() == [[1.0, 1.0], [1.5, 2.0]]
