"""The tool that hides shapes of a run, on made-up times whose best backend is known."""

import math

from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.studies.dispatch_table import Choice
from tests.dispatch.tables import choice
from tools import dispatch_check


def cost(problem: Problem) -> dict[str, float]:
    """flash starts late and grows slowly: it wins from about 250 pairs of a head on."""
    pairs = problem.batch * problem.heads * problem.seq_q * problem.seq_kv
    return {"naive": 5 + pairs / 500, "sdpa:flash": 20 + pairs / 2000, "ggml": 1 + pairs / 5000}


def sweep(**fields: object) -> list[Choice]:
    problems = [Problem(seq_q=2**power, heads=heads, **fields) for power in range(4, 13) for heads in (1, 2, 4, 8, 16)]
    return [choice(problem, cost(problem)) for problem in problems]


def test_every_shape_is_hidden_once_and_nearly_all_choices_are_near_the_best() -> None:
    results = list(dispatch_check.hidden([*sweep(), *sweep(dtype=Dtype.BF16)]))
    assert len({(result.group, result.problem) for result in results}) == len(results) == 90
    assert dispatch_check.share(results) >= dispatch_check.SHARE
    assert {result.best for result in results} == {"naive", "sdpa:flash"}  # ggml cannot be called


def test_half_of_the_shapes_say_enough_of_the_others() -> None:
    assert dispatch_check.share(list(dispatch_check.hidden(sweep(), folds=2))) >= 0.85


def test_a_wrong_choice_counts_with_its_factor() -> None:
    shapes = [Problem(seq_q=64), Problem(seq_q=128), Problem(seq_q=256)]
    times = [{"naive": 1.0, "sdpa:flash": 2.0}, {"naive": 3.0, "sdpa:flash": 1.0}, {"naive": 1.0, "sdpa:flash": 2.0}]
    results = list(dispatch_check.hidden([choice(shape, each) for shape, each in zip(shapes, times, strict=True)]))
    middle = results[1]
    assert (middle.backend, middle.best, middle.over, middle.near_best) == ("naive", "sdpa:flash", 3.0, False)


def test_a_shape_without_a_near_one_counts_as_a_miss() -> None:
    far = [choice(Problem(seq_q=16), {"naive": 1.0}), choice(Problem(seq_q=2**20, heads=1), {"naive": 1.0})]
    results = list(dispatch_check.hidden(far))
    assert [result.over for result in results] == [math.inf, math.inf]
    assert dispatch_check.share(results) == 0
    assert list(dispatch_check.table(results))[2].count("no measured shape is near") == 1


def test_a_backend_that_was_refused_at_the_hidden_shape_is_passed_over() -> None:
    both = {"naive": 2.0, "sdpa:flash": 1.0}
    choices = [choice(Problem(seq_q=seq), times) for seq, times in ((64, both), (128, {"naive": 1.0}), (256, both))]
    assert next(r for r in dispatch_check.hidden(choices) if "q128" in r.problem).backend == "naive"
