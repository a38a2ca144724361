"""Intervals and ratios: properties, and coverage by simulation with a known truth."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench import stats
from tests.samples import timed

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=40)


@given(TIMES, st.floats(1e-3, 1e3))
def test_a_scaled_sample_has_a_scaled_interval(values, factor):
    one, other = stats.estimate([timed(values)]), stats.estimate([timed([factor * value for value in values])])
    assert other.value == pytest.approx(factor * one.value)
    assert (other.low, other.high) == (pytest.approx(factor * one.low), pytest.approx(factor * one.high))


@given(TIMES)
def test_the_interval_holds_the_median_and_lies_within_the_readings(values):
    found = stats.estimate([timed(values)])
    assert min(values) <= found.low <= found.value <= found.high <= max(values)
    assert found.value == pytest.approx(statistics.median(values))


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=3, max_size=20))
def test_swapped_arms_have_the_inverse_ratio(pairs):
    above, below = timed([pair[0] for pair in pairs]), timed([pair[1] for pair in pairs])
    one, other = stats.ratio([(above, below)]), stats.ratio([(below, above)])
    assert one.value * other.value == pytest.approx(1)
    if one.low and other.high:
        assert one.low * other.high == pytest.approx(1)


def test_rounds_are_paired_by_number_not_by_place():
    above, below = timed([2.0, 4.0, 8.0], rounds=[0, 1, 2]), timed([4.0, 2.0, 1.0], rounds=[2, 1, 0])
    found = stats.ratio([(above, below)])
    assert found.value == pytest.approx(2.0)


def test_no_sample_is_dropped_and_min_is_the_minimum():
    values = [1.0] * 9 + [50.0]
    assert len(stats.finite(stats.block_medians(timed(values)))) == 10
    assert stats.estimate([timed([3.0, 1.0, 2.0])]).low == 1.0


def test_one_value_has_no_interval_and_none_has_no_estimate():
    assert stats.estimate([timed([1.0])]).low is None
    assert stats.estimate([]) is None
    assert stats.estimate([timed([float("nan")])]) is None
    assert stats.ratio([]) is None


def test_order_statistics_are_those_of_the_binomial():
    # n = 10: [2nd least, 2nd most] holds the median with 97.9 %, [3rd, 3rd] with 89.1 % (any table of the sign test).
    assert stats.order_rank(10) == 2
    assert stats.order_rank(5) == 0
    assert stats.median_estimate(np.arange(10.0), stats.Over.BLOCKS).confidence == pytest.approx(0.9785, abs=1e-4)


def test_t_interval_equals_scipy():
    from scipy.stats import t

    values = np.array([0.1, 0.4, 0.2, 0.35, 0.15])
    low, high = t.interval(0.95, 4, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(5))
    found = stats.t_estimate(values, stats.Over.LAUNCHES)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_over_launches_covers_the_truth():
    source = np.random.default_rng(11)
    held = 0
    for _ in range(1500):
        launches = []
        for _ in range(6):
            level = math.exp(source.normal(0, 0.02))  # what differs between launches
            launches.append(timed(level * np.exp(source.normal(0, 0.01, 8))))
        found = stats.estimate(launches)
        held += found.low <= 1 <= found.high
    assert 0.93 <= held / 1500 <= 0.97


def test_the_interval_of_a_ratio_covers_the_truth():
    source = np.random.default_rng(12)
    held = 0
    for _ in range(1500):
        pairs = []
        for _ in range(6):
            effect = 1.05 * math.exp(source.normal(0, 0.01))
            common = np.exp(source.normal(0, 0.2, 8))  # noise that both arms of a round share
            pairs.append((timed(effect * common * np.exp(source.normal(0, 0.01, 8))), timed(common)))
        found = stats.ratio(pairs)
        held += found.low <= 1.05 <= found.high
    assert 0.93 <= held / 1500 <= 0.97


def test_the_interval_within_a_launch_covers_the_median_of_a_skewed_distribution():
    source = np.random.default_rng(13)
    held = sum(
        found.low <= 1 <= found.high
        for found in (stats.estimate([timed(np.exp(source.exponential(1, 15) - math.log(2)))]) for _ in range(1500))
    )
    assert held / 1500 >= 0.94


def test_rounds_stop_on_precision():
    assert stats.enough(timed([1.0, 1.001] * 10), 0.02) is stats.Stop.PRECISION
    assert stats.enough(timed([1.0, 2.0] * 10), 0.02) is None


def test_noisy_is_a_median_over_a_quarter_above_the_least():
    assert stats.is_noisy(timed([1.0, 1.3, 1.3]))
    assert not stats.is_noisy(timed([1.0, 1.2, 9.0]))
