"""The problems of drawn steps, and the times of steps from results."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest

from attnbench import cli
from attnbench.analysis.traffic import Draw, TrafficSteps
from attnbench.analysis.traffic_totals import PolicyName
from attnbench.attention import cost
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import RequestSize
from attnbench.engine.sweep import Request
from attnbench.errors import UsageError
from attnbench.records import run_directory
from attnbench.records.result import Cause, Result, Status, sample
from attnbench.records.run_directory import Run
from attnbench.studies import replayed_steps, traffic_answer
from attnbench.studies.replayed_steps import StepProblems
from attnbench.suite.models.decoder import Decoder, DecoderLayer, Weights
from attnbench.suite.models.layers import Layer
from attnbench.suite.serving import step_cost
from attnbench.suite.serving.scheduler import Batch
from attnbench.suite.serving.step_requests import StepRequest
from tests import samples
from tests.report.canned import store

FULL = DecoderLayer(kind=Layer.FULL, count=2, heads=8, kv_heads=2, head_dim=16, head_dim_v=16)
WINDOW = DecoderLayer(kind=Layer.SLIDING, count=3, heads=8, kv_heads=2, head_dim=16, head_dim_v=16, window=128)
MLA = DecoderLayer(kind=Layer.FULL, count=1, heads=4, kv_heads=4, head_dim=24, head_dim_v=16, latent=(40, 32))


def decoder(*layers: DecoderLayer) -> Decoder:
    return Decoder(name="made", layers=layers, weights=Weights(embedding=1, dense=1), dtype=Dtype.BF16)


def batch(*sizes: tuple[int, int]) -> list[StepRequest]:
    return [StepRequest(RequestSize(*size)) for size in sizes]


def problem(text: str, mask: str = "causal") -> Problem:
    (step,) = replayed_steps.problems_of(batch((1, 40)), decoder(FULL), dtype=Dtype.FP32, page_size=16).layers
    assert step[0].requests == "q1s40"
    return Problem(
        batch=1, seq_q=1, seq_kv=40, heads=8, kv_heads=2, head_dim=16, mask=mask, requests=text, page_size=16
    )


def test_every_kind_of_layer_is_a_problem_that_counts_by_its_layers():
    step = replayed_steps.problems_of(
        batch((4, 300), (1, 50), (1, 50)), decoder(FULL, WINDOW), dtype=Dtype.FP32, page_size=16
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
    ((problem, layers),) = replayed_steps.problems_of(
        batch((1, 5)), decoder(mla), dtype=Dtype.BF16, page_size=16
    ).layers
    assert (problem.kv, problem.kv_heads, problem.head_dim, problem.head_dim_v) == ("latent:512+64", 1, 192, 128)
    assert layers == 61
    planned = replayed_steps.plan(
        Request(backend=replayed_steps.LATENT_BACKENDS, device="cpu:threads=1"),
        [StepProblems(layers=((problem, layers),))],
    )
    assert planned.plan.cases == 3
    assert not planned.plan.refusals


def test_a_layer_with_chunks_has_the_parts_of_a_request_as_requests():
    """By hand, chunks of 64: queries 60 to 129 of the first request lie in three chunks, the second in its second."""
    chunked = DecoderLayer(kind=Layer.CHUNKED, count=1, heads=8, kv_heads=2, head_dim=16, head_dim_v=16, chunk=64)
    ((problem, _),) = replayed_steps.problems_of(
        batch((70, 130), (1, 65)), decoder(chunked), dtype=Dtype.FP32, page_size=16
    ).layers
    assert problem.requests == "q4s64_q64_q2_q1"
    assert problem.mask == "causal"
    # The pairs are those that the predicate of such layers shows: the same chunk, and no later key.
    pairs = sum(
        1 for q, kv in ((70, 130), (1, 65)) for i in range(kv - q, kv) for j in range(i + 1) if i // 64 == j // 64
    )
    assert cost.pairs(problem) == 8 * pairs
    assert step_cost.work(chunked, Batch(np.array([70, 1]), np.array([130, 65])), 4)[0] == 4 * 16 * 8 * pairs


def test_a_prefix_in_the_cache_is_shared_in_every_kind_of_layer():
    """Requests 0 and 2 hold blocks 7 and 8, of 16 tokens; in chunks of 16, only the second of them is in the last."""
    held = np.array([7, 8])
    step = [
        StepRequest(RequestSize(1, 40), held),
        StepRequest(RequestSize(5, 5)),
        StepRequest(RequestSize(1, 35), held),
    ]
    chunks = DecoderLayer(kind=Layer.CHUNKED, count=1, heads=8, kv_heads=2, head_dim=16, head_dim_v=16, chunk=32)
    made = replayed_steps.problems_of(step, decoder(FULL, WINDOW, MLA, chunks), dtype=Dtype.FP32, page_size=16)
    problems = [problem for problem, _ in made.layers]
    assert [problem.requests for problem in problems] == ["q1s40_q1s35_q5"] * 3 + ["q1s8_q5_q1s3"]
    assert [problem.shared_prefix for problem in problems] == ["32:2_0:1"] * 3 + [""]
    assert [(each.keys, each.measured) for each in made.sharing] == [(32, 32)] * 3 + [(0, 0)]
    for problem in problems[:3]:
        shown = cost.traffic_bytes(problem, Mode.FWD)
        assert shown < cost.traffic_bytes(msgspec.structs.replace(problem, shared_prefix=""), Mode.FWD)
    planned = replayed_steps.plan(Request(backend="naive,sdpa:cascade", device="cpu:threads=1"), [made])
    assert {group.problem for group in planned.plan.groups} == set(problems)
    refused = {refusal.case.problem for refusal in planned.plan.refusals}
    assert refused == set(problems[1:])  # cascade computes no window, latent cache or batch without a prefix


def test_cascade_without_a_prefix_is_what_its_library_has_else():
    plain = problem("q1s40")
    shared = msgspec.structs.replace(plain, requests="2q1s40", batch=2, shared_prefix="16:2")
    steps = [StepProblems(layers=((each, 2),)) for each in (plain, shared)]
    results = [
        samples.result([3.0, 3.0], "sdpa:flash", problem=plain),
        samples.result([], "sdpa:cascade", problem=plain, status=Status.UNSUPPORTED),
        samples.result([8.0, 8.0], "sdpa:flash", problem=shared, group="h"),
        samples.result([5.0, 5.0], "sdpa:cascade", problem=shared, group="h"),
    ]
    measured = replayed_steps.times_of(steps, results, *drawn(2))
    assert measured.backends == ("sdpa:flash", "sdpa:cascade")
    assert measured.times_s[..., 0].tolist() == [[6.0, 6.0], [16.0, 10.0]]
    failed = [samples.result([], "sdpa:cascade", problem=plain, status=Status.ERROR), *results[:1], *results[2:]]
    assert (0, "sdpa:cascade") in replayed_steps.times_of(steps, failed, *drawn(2)).refusals


@pytest.mark.parametrize(
    ("backend", "layer", "once"),
    [
        ("", FULL, True), ("naive,sdpa:cascade", FULL, True), ("naive,sdpa", FULL, False), ("auto", FULL, True),
        ("", MLA, False), ("naive,sdpa:cascade", MLA, False), ("naive,triton:cascade", MLA, True),
    ],
)  # fmt: skip
def test_steps_are_weighed_with_prefixes_read_once_where_a_backend_does(
    backend: str, layer: DecoderLayer, once: bool
) -> None:
    request = Request(backend=backend, device="cpu:threads=1")
    assert replayed_steps.reads_prefix_once(request, decoder(layer)) is once


def test_the_plan_has_each_problem_once_and_no_other():
    wide = DecoderLayer(kind=Layer.SLIDING, count=1, heads=4, kv_heads=4, head_dim=32, head_dim_v=32, window=9)
    batches = [batch((1, 40)), batch((3, 3), (1, 40)), batch((1, 40))]
    steps = [replayed_steps.problems_of(each, decoder(FULL, wide), dtype=Dtype.FP32, page_size=16) for each in batches]
    planned = replayed_steps.plan(Request(backend="naive,sdpa", device="cpu:threads=1"), steps)
    wanted = {problem for step in steps for problem, _ in step.layers}
    assert len(wanted) == 4
    assert {group.problem for group in planned.plan.groups} == wanted
    assert planned.plan.cases == 2 * 4
    assert planned.name == "replay"  # and not that of a suite of options


def drawn(count: int) -> tuple[Draw, TrafficSteps]:
    steps = np.arange(count)
    ones = np.ones(count)
    table = TrafficSteps(kinds=0 * steps, requests=ones, max_q=ones, context=ones, predicted_s=ones)
    return Draw(steps=steps, weights=ones, strata=0 * steps), table


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
    assert measured.plan_s.tolist() == [[0, 7]]
    assert measured.layers == 5


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


def test_steps_are_measured_in_the_order_of_their_sample_and_not_cheapest_first() -> None:
    """The first and the last step share the problem of their window; flex compiles, and follows in the same step."""
    sizes = [[(1, 400)], [(1, 40)], [(64, 900)], [(1, 40), (1, 41)]]
    steps = [
        replayed_steps.problems_of(batch(*each), decoder(FULL, WINDOW), dtype=Dtype.FP32, page_size=16)
        for each in sizes
    ]
    planned = replayed_steps.plan(Request(backend="naive,flex", device="cpu:threads=1"), steps)
    ordered = replayed_steps.in_order(planned, steps, [2, 0, 3, 1])
    assert [(group.problem.requests, group.problem.mask, group.late) for group in ordered.plan.groups] == [
        (text, mask, late)
        for text in ("q64s900", "q1s400", "q1s40_q1s41", "q1s40")
        for mask in ("causal", "causal+window:127")
        for late in (False, True)
    ]
    assert set(ordered.plan.groups) == set(planned.plan.groups)
    assert ordered.settings.in_order


def test_a_step_lacks_a_time_without_each_planned_case_or_where_the_budget_cut_one() -> None:
    steps = [
        replayed_steps.problems_of(batch((1, 40 + n)), decoder(FULL), dtype=Dtype.FP32, page_size=16) for n in range(4)
    ]
    planned = replayed_steps.plan(Request(backend="naive,sdpa", device="cpu:threads=1"), steps)
    arms = {arm.backend: arm for arm in planned.plan.arms}
    results = [
        msgspec.structs.replace(samples.result([1.0, 1.0], name, problem=step.layers[0][0]), arm=arms[name])
        for step, name in product(steps[:3], arms)
    ]
    results[2] = msgspec.structs.replace(results[2], status=Status.SKIPPED, cause=Cause.BUDGET, samples={})
    results[5] = msgspec.structs.replace(results[5], status=Status.ERROR, reason="broken", samples={})
    for groups in ((), planned.plan.groups):
        assert replayed_steps.lacking(steps, results, groups).tolist() == [False, True, False, True]
    missing = results[:1] + results[2:]
    assert replayed_steps.lacking(steps, missing, planned.plan.groups).tolist() == [True, True, False, True]


# -- shards ------------------------------------------------------------------------------------------------------------


def shards(folder: Path, **tags: str) -> tuple[traffic_answer.TrafficAnswer, list[Run]]:
    """Four drawn steps of 50: the answer for all their results, and two runs, each with the results of two steps."""
    batches = [batch((1, 40 + n)) for n in range(3)] + [batch((9, 30))]
    steps = [replayed_steps.problems_of(each, decoder(FULL), dtype=Dtype.FP32, page_size=16) for each in batches]
    kinds = np.array([0] * 49 + [1])
    table = TrafficSteps(
        kinds=kinds, requests=1 + kinds, max_q=1 + 8 * kinds, context=30.0 + np.arange(50), predicted_s=1 + 3.0 * kinds
    )
    draw = Draw(steps=np.array([49, 3, 20, 40]), weights=np.array([1, 16.0, 17, 16]), strata=np.zeros(3, int))
    results = [
        samples.result([cost * (n + 1 + r / 50) for r in range(4)], name, problem=step.layers[0][0], group=f"g{n}")
        for n, step in enumerate(steps)
        for name, cost in (("naive", 2.0), ("sdpa", 1.0 + (n == 3)))
    ]

    def answer(results: list[Result]) -> traffic_answer.TrafficAnswer:
        return traffic_answer.make(
            trace="t", model="m", options={}, seed=0, steps=table, drawn=draw, hours=2,
            measured=replayed_steps.times_of(steps, results, draw, table), layers=[step.layers for step in steps],
        )  # fmt: skip

    runs = []
    for name, part in (("a", results[:4]), ("b", results[4:])):
        run = samples.run(*part, tags={run_directory.REPLAY_TAG: "r"} | tags)
        runs.append(msgspec.structs.replace(run, path=folder / name))
        store(runs[-1], folder)
        traffic_answer.write(answer(part), folder / name)
    return answer(results), runs


def test_shards_of_a_replay_give_the_answer_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, runs = shards(tmp_path)
    assert traffic_answer.read(runs[0].path).headline == "No backend ran every drawn step"
    assert whole.totals.policy(PolicyName.SINGLE).seconds.value > 0
    assert cli.invoke(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "whole")]) == 0
    merged = traffic_answer.read(tmp_path / "whole")
    assert merged.totals == whole.totals
    assert merged.settings == whole.settings
    assert [part.measured_s for part in merged.mix.by_kind] == pytest.approx(
        [part.measured_s for part in whole.mix.by_kind]
    )
    assert [part.share for part in merged.mix.by_kind] == [part.share for part in whole.mix.by_kind]
    assert merged == msgspec.structs.replace(whole, mix=merged.mix)
    assert "left out" not in capsys.readouterr().err


def test_runs_of_different_replays_have_no_common_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path)
    shards(tmp_path / "other", replay="another")
    assert cli.invoke(["merge", str(tmp_path / "a"), str(tmp_path / "other" / "b"), "-o", str(tmp_path / "new")]) == 0
    assert traffic_answer.read(tmp_path / "new") is None
    assert "replay.json is left out: not all are shards of one replay with the same" in capsys.readouterr().err


def test_shards_of_a_plan_are_its_cases() -> None:
    steps = [
        replayed_steps.problems_of(batch((1, 40 + n)), decoder(FULL, WINDOW), dtype=Dtype.FP32, page_size=16)
        for n in range(3)
    ]

    def planned(shard: str) -> list[Problem]:
        request = Request(backend="naive", device="cpu:threads=1", shard=shard)
        return [group.problem for group in replayed_steps.plan(request, steps).plan.groups]

    parts = [planned(f"{number}/4") for number in range(1, 5)]
    assert sorted(map(str, planned(""))) == sorted(str(each) for part in parts for each in part)
    with pytest.raises(UsageError, match="nothing is left to run: --shard excludes every case"):
        planned("7/7")
