"""Smaller draws within a draw: their order and weights, and that what is measured estimates all without bias."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.analysis import traffic, traffic_part, traffic_totals
from attnbench.analysis.traffic import Draw, TrafficSteps
from attnbench.analysis.traffic_totals import Measured
from tests.analysis.made_steps import made_steps


def steps_of(*predicted_s, kinds=None):
    """Steps of one shape, that are predicted to take so long."""
    ones = np.ones(len(predicted_s))
    kinds = np.zeros(len(predicted_s), int) if kinds is None else np.array(kinds)
    return TrafficSteps(kinds=kinds, requests=ones, max_q=ones, context=ones, predicted_s=np.array(predicted_s, float))


def nested_of(steps, draws, seed=0):
    """A draw from these steps, and the smaller ones within it."""
    drawn = traffic.draw(steps, draws, seed)
    return drawn, traffic_part.nested(drawn, steps.at(drawn.steps), seed)


def lacking_after(nested, count):
    """Only the first `count` steps in the order of measurement have their times."""
    lacking = np.ones(len(nested.order), bool)
    lacking[nested.order[:count]] = False
    return lacking


@settings(max_examples=30)
@given(st.integers(5, 70), st.integers(0, 5))
def test_any_number_of_steps_in_the_order_of_measurement_is_a_draw(draws, seed):
    steps, _ = made_steps(300)
    drawn, nested = nested_of(steps, draws, seed)
    assert sorted(nested.order) == list(range(len(drawn.steps)))
    for count in range(traffic_part.MIN_STEPS, len(drawn.steps) + 1):
        part = nested.measured(lacking_after(nested, count))
        assert sorted(part.places) == sorted(nested.order[:count])
        assert part.drawn.steps.tolist() == drawn.steps[part.places].tolist()
        assert len(part.drawn.strata) == count - part.drawn.certain
        assert (np.diff(part.drawn.strata) >= 0).all()
        assert (part.unmeasured, part.reason) == (len(drawn.steps) - count, "")
        # Its steps stand for the predicted time of all, and a certain one for itself.
        predicted_s = steps.predicted_s[part.drawn.steps]
        assert part.drawn.weights @ predicted_s == pytest.approx(steps.predicted_s.sum())
        assert (part.drawn.weights[: part.drawn.certain] == 1).all()
        assert set(part.places[: part.drawn.certain]) <= set(range(drawn.certain))


def test_large_draws_differ_by_more_than_a_step():
    drawn, nested = nested_of(steps_of(*np.ones(2000)), 1000)
    sizes = [len(part.places) for part in nested.parts]
    assert sizes[:3] == [1000, 985, 970]
    assert sizes[-1] == traffic_part.MIN_STEPS
    part = nested.measured(lacking_after(nested, 984))
    assert (len(part.places), part.unmeasured) == (970, 30)
    assert len(drawn.steps) == 1000


def test_steps_of_a_stratum_have_equal_chances_and_weights():
    """By hand: 8 draws of 80 equal steps stand for 10 each; of those, 4 stand for 20 each."""
    counts = np.zeros(8, int)
    for seed in range(400):
        drawn = Draw(steps=10 * np.arange(8), weights=np.full(8, 10.0), strata=np.zeros(8, int))
        nested = traffic_part.nested(drawn, steps_of(*np.ones(8)), seed)
        part = nested.measured(lacking_after(nested, 4))
        assert part.drawn.weights == pytest.approx([20.0] * 4)
        counts[part.places] += 1
    assert counts.sum() == 1600
    assert counts.min() > 150  # 200 are expected, with a standard deviation of 10


def test_a_step_that_stands_for_itself_alone_is_measured_first_while_it_is_long():
    """By hand: of 100 and 60 seconds, the long step is in a draw of 4, whose other three stand for 20 seconds each."""
    steps = steps_of(100, *np.ones(60))
    drawn, nested = nested_of(steps, 16)
    part = nested.measured(lacking_after(nested, 4))
    assert (part.drawn.certain, part.drawn.steps[0], part.drawn.weights[0]) == (1, 0, 1)
    assert part.drawn.weights[1:] == pytest.approx([20.0] * 3)
    assert drawn.certain == 1


def test_steps_that_all_have_their_times_are_the_draw():
    drawn, nested = nested_of(steps_of(*np.arange(1, 40)), 8)
    part = nested.measured(np.zeros(8, bool))
    assert part.places.tolist() == list(range(8))
    assert part.drawn is drawn
    assert (part.unmeasured, part.reason) == (0, "")


def test_steps_after_the_first_without_a_time_do_not_count():
    _, nested = nested_of(steps_of(*np.ones(40)), 12)
    lacking = np.zeros(12, bool)
    lacking[nested.order[6]] = True
    part = nested.measured(lacking)
    assert sorted(part.places) == sorted(nested.order[:6])
    assert part.unmeasured == 6


def test_a_trace_of_which_every_step_is_drawn_is_sampled_by_its_measured_steps():
    drawn, nested = nested_of(steps_of(*np.ones(6)), 6)
    assert (drawn.certain, len(drawn.strata)) == (6, 0)
    part = nested.measured(lacking_after(nested, 4))
    assert part.drawn.certain == 0
    assert part.drawn.weights == pytest.approx([1.5] * 4)


@pytest.mark.parametrize(("draws", "count", "needed"), [(12, 0, 4), (12, 3, 4), (3, 2, 3)])
def test_fewer_steps_than_an_answer_needs_give_none_and_the_reason(draws, count, needed):
    drawn, nested = nested_of(steps_of(*np.ones(40)), draws)
    part = nested.measured(lacking_after(nested, count))
    assert part.reason == f"an answer needs {needed} that are measured"
    assert part.drawn is drawn
    assert part.unmeasured == draws - count


@cache
def many_draws(seeds):
    """From the steps of `made_steps(3000)`; the backend does not matter for them."""
    steps, _ = made_steps(3000)
    return [nested_of(steps, 64, seed) for seed in range(seeds)]


# The step that the budget ends in does not count, and takes longer than others: half a percent of many steps.
@pytest.mark.parametrize("seeds", [60, pytest.param(240, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("backend", "share", "cut"), [("loop", 0.8, 0.005), ("padded", 0.8, 0.005), ("loop", 0.25, 0.02)]
)
def test_what_is_measured_within_a_budget_estimates_all_steps_without_bias(backend, share, cut, seeds):
    """Measuring takes as long as the steps do, so that a budget ends sooner where long ones come first."""
    steps, costs = made_steps(3000)
    true_s, rng, totals, holds = costs[backend], np.random.default_rng(0), [], []
    for drawn, nested in many_draws(seeds):
        times = true_s[drawn.steps]
        lacking = np.ones(len(times), bool)
        lacking[nested.order[np.cumsum(times[nested.order]) < share * times.sum()]] = False
        part = nested.measured(lacking)
        assert part.unmeasured
        assert not part.reason
        rounds = true_s[part.drawn.steps][:, None, None] * rng.lognormal(0, 0.03, (len(part.places), 1, 4))
        measured = Measured(backends=("a",), kinds=steps.kinds[part.drawn.steps], times_s=rounds)
        total = traffic_totals.estimate(part.drawn, measured, hours=1).totals[0].seconds
        totals.append(total.value / true_s.sum())
        if total.low is not None:
            holds.append(total.low <= true_s.sum() <= total.high)
    assert abs(np.mean(totals) - 1) < 3 * np.std(totals) / np.sqrt(len(totals)) + cut
    assert share < 0.5 or len(holds) > 0.6 * seeds
    assert not holds or np.mean(holds) >= 0.93


def test_the_steps_that_are_cheapest_to_measure_would_be_biased():
    """What the order is for: t/p of the cheapest steps is that of other steps."""
    steps, costs = made_steps(3000)
    drawn, true_s = traffic.draw(steps, 64, seed=0), costs["padded"]
    times = true_s[drawn.steps]
    cheapest = np.argsort(times)[:45]
    estimate = drawn.weights[cheapest] @ times[cheapest] * drawn.weights.sum() / drawn.weights[cheapest].sum()
    assert estimate < 0.8 * true_s.sum()
