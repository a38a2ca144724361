"""Drawn steps of which a part is measured: its order, its weights, and that it estimates the whole without bias."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import traffic, traffic_part, traffic_totals
from attnbench.analysis.traffic import Draw
from attnbench.analysis.traffic_totals import Measured
from tests.analysis.made_steps import made_steps


def drawn_of(certain, *strata):
    """A draw of so many certain steps, and of so many of each stratum, with weights 2, 3, ..."""
    numbers = np.repeat(np.arange(len(strata)), strata)
    weights = np.concatenate([np.ones(certain), 2.0 + np.arange(len(numbers))])
    return Draw(steps=100 + np.arange(len(weights)), weights=weights, strata=numbers)


def lacking_after(drawn, count, seed=0):
    """Only the first `count` steps in the order of measurement have their times."""
    lacking = np.ones(len(drawn.steps), bool)
    lacking[traffic_part.order(drawn, seed)[:count]] = False
    return lacking


@given(st.integers(0, 4), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 5))
def test_strata_are_measured_at_equal_pace_after_the_certain_steps(certain, strata, seed):
    drawn = drawn_of(certain, *strata)
    order = traffic_part.order(drawn, seed)
    assert sorted(order) == list(range(len(drawn.steps)))
    assert set(order[:certain]) == set(range(certain))
    for end in range(certain + len(strata), len(order) + 1):
        counts = np.bincount(drawn.strata[order[certain:end] - certain], minlength=len(strata))
        assert (counts >= 1).all()
        shares = (counts - 1) / strata
        assert shares.max() < counts.min() + 1  # no stratum is finished before another has begun
        assert all(shares[place] <= (counts / strata).min() + 1e-9 for place in range(len(strata)))


def test_every_step_of_a_stratum_is_first_equally_often():
    drawn = drawn_of(0, 4)
    firsts = np.bincount([traffic_part.order(drawn, seed)[0] for seed in range(400)], minlength=4)
    assert firsts.min() > 60  # 100 are expected, with a standard deviation of 9


def test_measured_steps_have_the_weight_of_those_that_are_missing():
    """By hand: 2 certain steps; 2 of 4 draws of one stratum and 1 of 2 of the other stand for all of them."""
    drawn = drawn_of(2, 4, 2)
    part = traffic_part.measured_part(drawn, 0, lacking_after(drawn, 5))
    assert part.unmeasured == 3
    assert part.drawn.certain == 2
    assert part.drawn.strata.tolist() == [0, 0, 1]
    assert part.drawn.steps.tolist() == (100 + part.places).tolist()
    assert part.drawn.weights.tolist() == [1, 1, *(2 * drawn.weights[part.places[2:]])]


def test_steps_that_all_have_their_times_are_the_draw():
    drawn = drawn_of(2, 4, 2)
    part = traffic_part.measured_part(drawn, 0, np.zeros(8, bool))
    assert part.places.tolist() == list(range(8))
    assert part.drawn is drawn
    assert (part.unmeasured, part.reason) == (0, "")


def test_steps_after_the_first_without_a_time_do_not_count():
    drawn = drawn_of(0, 6)
    order = traffic_part.order(drawn, 3)
    lacking = np.zeros(6, bool)
    lacking[order[2]] = True
    part = traffic_part.measured_part(drawn, 3, lacking)
    assert part.places.tolist() == sorted(order[:2])
    assert part.unmeasured == 4


def test_a_trace_of_which_every_step_is_drawn_is_sampled_by_its_measured_steps():
    drawn = drawn_of(6)
    part = traffic_part.measured_part(drawn, 0, lacking_after(drawn, 4))
    assert (part.drawn.certain, part.drawn.weights.tolist()) == (0, [1.5] * 4)
    assert not part.reason


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (0, "the first one that is measured lacks a time"),
        (1, "1 of them are in every draw, so that no other step stands for them"),
        (3, "of 1 of 2 groups of similar steps none is measured"),
    ],
)
def test_steps_that_stand_for_no_others_give_no_answer_and_the_reason(count, reason):
    drawn = drawn_of(2, 4, 2)
    part = traffic_part.measured_part(drawn, 0, lacking_after(drawn, count))
    assert part.reason == reason
    assert part.drawn is drawn
    assert part.unmeasured == 8 - count


@pytest.mark.parametrize("backend", ["loop", "padded"])
def test_what_is_measured_within_a_budget_estimates_all_steps_without_bias(backend):
    """Measuring takes as long as the steps do, so that a budget ends sooner where long ones come first."""
    steps, costs = made_steps(3000)
    true_s, rng, shares, holds = costs[backend], np.random.default_rng(0), [], []
    frame = traffic.frame(steps, 64)
    for seed in range(120):
        drawn = frame.draw(rng)
        times, places = true_s[drawn.steps], traffic_part.order(drawn, seed)
        lacking = np.ones(len(times), bool)
        lacking[places[np.cumsum(times[places]) < 0.8 * times.sum()]] = False
        part = traffic_part.measured_part(drawn, seed, lacking)
        assert part.unmeasured
        assert not part.reason
        rounds = true_s[part.drawn.steps][:, None, None] * rng.lognormal(0, 0.03, (len(part.places), 1, 4))
        measured = Measured(backends=("a",), kinds=steps.kinds[part.drawn.steps], times_s=rounds)
        total = traffic_totals.estimate(part.drawn, measured, hours=1).totals[0].seconds
        shares.append(total.value / true_s.sum())
        if total.low is not None:
            holds.append(total.low <= true_s.sum() <= total.high)
    # Half a percent: the step that the budget ends in, which does not count, is longer than others.
    assert abs(np.mean(shares) - 1) < 3 * np.std(shares) / np.sqrt(len(shares)) + 0.005
    assert len(holds) > 80
    assert np.mean(holds) >= 0.93


def test_the_steps_that_are_cheapest_to_measure_would_be_biased():
    """What the order is for: t/p of the cheapest steps is that of other steps."""
    steps, costs = made_steps(3000)
    drawn, true_s = traffic.draw(steps, 64, seed=0), costs["padded"]
    times = true_s[drawn.steps]
    cheapest = np.argsort(times)[:45]
    estimate = drawn.weights[cheapest] @ times[cheapest] * drawn.weights.sum() / drawn.weights[cheapest].sum()
    assert estimate < 0.8 * true_s.sum()
