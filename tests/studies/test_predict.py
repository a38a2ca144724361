"""Predictions from made-up runs: laws, what is refused, memory, other devices, and the check by hidden shapes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from attnbench import backends
from attnbench.analysis.rows import Row, rows_of
from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.sweep import Request
from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.case import Case
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Result, sample
from attnbench.studies.predict import Prediction, Predictor, Source
from attnbench.studies.prediction_check import check
from attnbench.studies.prediction_request import axes_like_run, measured_rows, predictions
from attnbench.suite import Cell
from tests import samples

LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
HEADS = (1, 2, 4, 8)
Cost = Callable[[Problem], float]


def seconds(problem: Problem) -> float:
    return 2e-5 + 3e-9 * problem.heads * problem.seq_q * problem.seq_kv


def results(cost: Cost = seconds, backend: str = "naive", **fields: object) -> Iterator[Result]:
    for heads in HEADS:
        for seq in LENGTHS:
            problem = Problem(seq_q=seq, heads=heads, **fields)
            yield samples.result([cost(problem)] * 5, backend, problem=problem)


def predict(problem: Problem, rows: list[Row], *, extrapolate: bool = False, mode: Mode = Mode.FWD) -> Prediction:
    predictor = Predictor(rows)
    (arm,) = predictor.arms.values()
    return predictor.predict(Cell(problem, mode), arm, extrapolate=extrapolate)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of(list(results()))


def test_a_shape_between_the_measured_ones_is_predicted_with_an_interval_and_its_grounds(rows: list[Row]) -> None:
    problem = Problem(seq_q=700, heads=3)
    prediction = predict(problem, rows)
    assert prediction.time is not None
    assert prediction.time.value == pytest.approx(seconds(problem), rel=0.02)
    assert prediction.time.low < seconds(problem) < prediction.time.high
    assert (prediction.time.source, prediction.time.cases) == (Source.LAW, len(rows))
    assert prediction.time.confidence == 0.9
    assert "q768 kv768" in prediction.nearest[0]


def test_a_measured_case_is_not_predicted_but_shown(rows: list[Row]) -> None:
    problem = Problem(seq_q=512, heads=4)
    prediction = predict(problem, rows)
    assert prediction.time is not None
    assert (prediction.time.source, prediction.time.value) == (Source.MEASURED, pytest.approx(seconds(problem)))


def test_a_length_far_outside_is_refused_with_the_measured_range_and_the_command_that_measures_it(
    rows: list[Row],
) -> None:
    prediction = predict(Problem(seq_q=16384, heads=4), rows)
    assert prediction.time is None
    assert "queries 16384, measured 64..2048" in prediction.reason
    assert "--extrapolate" in prediction.reason
    assert prediction.measure.startswith("attnbench run --seq-q 16384 --seq-kv 16384 ")
    assert prediction.measure.endswith("-b naive --device cpu:threads=1")


def test_decoding_is_refused_where_only_prompts_were_measured(rows: list[Row]) -> None:
    """Every size by itself is in the range of the run."""
    reason = predict(Problem(seq_q=64, seq_kv=2048, heads=4), rows).reason
    assert "no measured case has sizes like these together (2.5 octaves away)" in reason


def test_extrapolation_widens_the_interval_and_claims_no_share(rows: list[Row]) -> None:
    near, far = (predict(Problem(seq_q=seq, heads=4), rows, extrapolate=True).time for seq in (3000, 16384))
    assert near is not None
    assert far is not None
    assert far.value == pytest.approx(seconds(Problem(seq_q=16384, heads=4)), rel=0.1)
    assert 1 < near.high / near.value < far.high / far.value
    assert near.confidence == far.confidence == 0.0


def test_another_mask_and_too_few_cases_are_refused(rows: list[Row]) -> None:
    reason = predict(Problem(seq_q=700, mask="causal"), rows).reason
    assert reason == "no measured case of fp32 fwd causal: the run has fp32 fwd plain"
    reason = predict(Problem(seq_q=100), rows[:4]).reason
    assert reason == "4 measured cases of fp32 fwd plain: a law needs 5"


@pytest.mark.parametrize("count", [1, 3])
def test_a_measured_case_is_shown_however_few_were_measured(rows: list[Row], count: int) -> None:
    problem = Problem(seq_q=64, heads=1)
    prediction = predict(problem, rows[:count])
    assert (prediction.reason, prediction.measure) == ("", "")
    assert prediction.time is not None
    assert (prediction.time.source, prediction.time.value) == (Source.MEASURED, pytest.approx(seconds(problem)))
    assert prediction.time.low <= prediction.time.value <= prediction.time.high
    assert "q64 kv64" in prediction.nearest[0]


def test_what_the_backend_refuses_is_not_predicted() -> None:
    rows = rows_of(list(results(backend="sdpa:flash")))
    assert predict(Problem(seq_q=700, returns="weights"), rows).reason.startswith("unsupported: ")


def bytes_of(problem: Problem, backend: str = "naive") -> float:
    """By the formula of the backend."""
    case = Case(problem=problem, backend=backend)
    return backends.load(backend).peak_bytes(case) - cost.input_bytes(problem)


def with_memory(factor: float) -> Iterator[Result]:
    """Cases whose memory is this factor times that of the formula."""
    for result in results():
        memory = sample("B", [factor * bytes_of(result.case.problem)])
        fields = {"time": result.samples["time"], "total_memory": memory}
        yield samples.result([1e-3] * 3, problem=result.case.problem, samples=fields)


@pytest.mark.parametrize("count", [1, len(LENGTHS)])
def test_the_memory_of_a_measured_case_is_what_was_measured(count: int) -> None:
    problem = Problem(seq_q=64, heads=1)
    memory = predict(problem, rows_of(list(with_memory(1.5))[:count])).memory
    assert memory is not None
    assert (memory.source, memory.value) == (Source.MEASURED, pytest.approx(1.5 * bytes_of(problem)))


def test_the_memory_of_a_case_measured_without_it_is_an_unchecked_formula(rows: list[Row]) -> None:
    memory = predict(Problem(seq_q=64, heads=1), rows).memory
    assert memory is not None
    assert memory.source is Source.UNCHECKED


@pytest.mark.parametrize(("factor", "source"), [(1.0, Source.FORMULA), (1.5, Source.LAW)])
def test_memory_is_that_of_the_formula_where_it_was_exact_and_else_of_a_law(factor: float, source: Source) -> None:
    problem = Problem(seq_q=700, heads=3)
    memory = predict(problem, rows_of(list(with_memory(factor)))).memory
    assert memory is not None
    assert memory.source is source
    assert memory.value == pytest.approx(factor * bytes_of(problem), rel=0.02)


def test_a_device_without_measurements_reaches_the_share_of_its_roofline_that_this_one_does() -> None:
    """By hand: twice the time of the bound here, so on a device of ten times the rates twice a tenth of the bound."""
    here = samples.ceilings(
        matmul={"fp32": Rate(burst=1e11, sustained=1e11, size=1)}, bandwidth={"read": (Point(bytes=1, rate=1e13),)}
    )
    there = samples.ceilings(
        device="other", matmul={"fp32": Rate(burst=1e12, sustained=1e12, size=1)},
        bandwidth={"read": (Point(bytes=1, rate=1e14),)},
    )  # fmt: skip
    rows = rows_of(list(results(lambda problem: 2 * cost.flops(problem, Mode.FWD) / 1e11)))
    predictor = Predictor(rows, {"cpu:threads=1": here})
    problem = Problem(seq_q=700, heads=4)
    prediction = predictor.predict(Cell(problem, Mode.FWD), rows[0], target=there)
    bound_s = cost.flops(problem, Mode.FWD) / 1e12
    assert prediction.time is not None
    assert prediction.time.source is Source.ROOFLINE
    assert prediction.time.value == pytest.approx(2 * bound_s)
    assert (prediction.time.low, prediction.time.high) == (pytest.approx(bound_s), pytest.approx(2 * bound_s))
    assert prediction.time.confidence == 0.0
    unknown = Predictor(rows).predict(Cell(problem, Mode.FWD), rows[0], target=there)
    assert "attnbench calibrate --device cpu:threads=1" in unknown.reason


def test_a_backend_of_another_machine_is_predicted_without_its_formula() -> None:
    prediction = predict(Problem(seq_q=700, heads=3), rows_of(list(results(backend="theirs:fast"))))
    assert prediction.time is not None
    assert prediction.memory is None


def test_a_length_at_half_the_shortest_is_predicted_despite_rounding(rows: list[Row]) -> None:
    for seq, heads in itertools.product((32, 4096), HEADS):
        assert predict(Problem(seq_q=seq, heads=heads), rows).time is not None


def test_of_many_cases_a_law_is_fitted_to_some(monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> None:
    monkeypatch.setattr("attnbench.studies.predict.MAX_CASES", 30)
    problem = Problem(seq_q=700, heads=3)
    time = predict(problem, rows).time
    assert time is not None
    assert time.cases == 30
    assert time.value == pytest.approx(seconds(problem), rel=0.05)


def test_axes_on_which_the_whole_run_agrees_are_taken_from_it() -> None:
    rows = rows_of(list(results(head_dim=128, mask="causal")))
    assert axes_like_run(rows, {"seq": "700"}) == {
        "seq": "700", "dtype": "fp32", "head_dim": "128", "mask": "causal",
    }  # fmt: skip
    assert axes_like_run(rows, {"seq": "700", "mask": "none"}) == {
        "seq": "700", "dtype": "fp32", "head_dim": "128", "mask": "none",
    }  # fmt: skip


def test_the_command_that_measures_repeats_the_interpreters_of_its_backends() -> None:
    measured = [*results(), *results(backend="ort:gqa")]
    run = samples.run(*measured, request={"backend_python": ["ort=/a b", "naive=~/env/bin/python", "jax=/c"]})
    far = predictions(run, rows_of(run.results), Request(axes={"seq": "100k", "mask": "none"}), extrapolate=False)
    (command,) = {each.measure for each in far}
    assert command.endswith(
        "-b naive,ort:gqa --device cpu:threads=1 --backend-python 'ort=/a b' --backend-python 'naive=~/env/bin/python'"
    )


def test_requests_are_read_against_the_run() -> None:
    run = samples.run(*results(), *results(backend="sdpa:flash"))
    rows = rows_of(run.results)
    both = predictions(run, rows, Request(axes={"seq": "700", "mask": "none"}), extrapolate=False)
    assert [each.arm for each in both] == ["naive", "sdpa:flash"]
    one = Request(axes={"seq": "700", "mask": "none"}, backend="naive", device="cpu")
    assert [each.arm for each in predictions(run, rows, one, extrapolate=False)] == ["naive"]
    with pytest.raises(UnknownNameError, match="--backend: no backend of this run 'flex'"):
        predictions(run, rows, Request(axes={"seq": "700"}, backend="flex"), extrapolate=False)
    with pytest.raises(UsageError, match="no lengths to predict: give --seq 3000"):
        predictions(run, rows, Request(axes={"heads": "4"}), extrapolate=False)
    with pytest.raises(UsageError, match=r"--device H100: several data sheets: name one of H100 PCIe, H100 SXM"):
        predictions(run, rows, Request(axes={"seq": "700"}, device="H100"), extrapolate=False)
    with pytest.raises(
        UsageError, match=r"--device V9: neither a device of this run \(cpu:threads=1\), nor calibrated"
    ):
        predictions(run, rows, Request(axes={"seq": "700"}, device="V9"), extrapolate=False)
    with pytest.raises(UsageError, match="no case of this run has a time"):
        measured_rows(samples.run(samples.result()), rows_of([samples.result()]))


def test_hidden_shapes_are_predicted_from_the_others_alone() -> None:
    """Noise of 5 % is predicted to within it; times without any law are not predicted from themselves."""
    draw = random.Random(0)
    noisy = rows_of(list(results(lambda problem: seconds(problem) * math.exp(draw.gauss(0, 0.05)))))
    *_, total = check(noisy)
    assert total.median_error is not None
    assert total.coverage is not None
    assert total.median_error <= 0.10
    assert total.coverage >= 0.85
    assert total.cases + total.outside == len(noisy)
    *_, lawless = check(rows_of(list(results(lambda problem: 1e-3 * math.exp(draw.gauss(0, 2))))))
    assert lawless.median_error is not None
    assert lawless.median_error > 0.5


@pytest.mark.parametrize("lengths", [range(64, 641, 64), [2**power for power in range(5, 13)]])
@pytest.mark.parametrize("mask", ["causal", "window:100", "window:300:20", "causal+window:100"])
def test_lengths_between_measured_ones_are_inside_though_the_visible_share_bends(
    mask: str, lengths: Sequence[int]
) -> None:
    """Also where a window begins to cut, at a length of 101: the check hides all but the shortest and the longest."""
    rows = rows_of([samples.result([seconds(Problem(seq_q=seq))] * 5, problem=Problem(seq_q=seq, mask=mask))
                    for seq in lengths])  # fmt: skip
    between = [predict(Problem(seq_q=seq, mask=mask), rows) for seq in (80, 100, 150, 350, 600)]
    assert [each.octaves_outside for each in between] == [0.0] * 5
    assert predict(Problem(seq_q=int(1.1 * lengths[-1]), mask=mask), rows).octaves_outside > 0.1
    *_, total = check(rows)
    assert (total.cases, total.outside) == (len(lengths) - 2, 2)


def test_a_window_far_narrower_than_those_of_the_surrounding_lengths_is_outside() -> None:
    rows = rows_of([samples.result([seconds(Problem(seq_q=seq))] * 5, problem=Problem(seq_q=seq, mask="window:100"))
                    for seq in range(64, 641, 64)])  # fmt: skip
    assert predict(Problem(seq_q=150, mask="window:10"), rows, extrapolate=True).octaves_outside > 0.5
