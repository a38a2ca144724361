"""Intervals and ratios: properties, and coverage by simulation with a known truth."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import readings, stats
from attnbench.records.result import TimedBlock, sample
from tests.samples import timed

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=40)


@given(TIMES, st.floats(1e-3, 1e3))
def test_a_scaled_sample_has_a_scaled_interval(values, factor):
    plain, other = stats.estimate([timed(values)]), stats.estimate([timed([factor * value for value in values])])
    assert other.value == pytest.approx(factor * plain.value)
    assert (other.low, other.high) == (pytest.approx(factor * plain.low), pytest.approx(factor * plain.high))


@given(TIMES)
def test_the_interval_holds_the_median_and_lies_within_the_readings(values):
    estimate = stats.estimate([timed(values)])
    assert min(values) <= estimate.low <= estimate.value <= estimate.high <= max(values)
    assert estimate.value == pytest.approx(statistics.median(values))


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=3, max_size=20))
def test_swapped_arms_have_the_inverse_ratio(pairs):
    above, below = timed([pair[0] for pair in pairs]), timed([pair[1] for pair in pairs])
    ratio, other = stats.ratio([(above, below)]), stats.ratio([(below, above)])
    assert ratio.value * other.value == pytest.approx(1)
    if ratio.low and other.high:
        assert ratio.low * other.high == pytest.approx(1)


def test_rounds_are_paired_by_number_not_by_place():
    above, below = timed([2.0, 4.0, 8.0], rounds=[0, 1, 2]), timed([4.0, 2.0, 1.0], rounds=[2, 1, 0])
    ratio = stats.ratio([(above, below)])
    assert ratio.value == pytest.approx(2.0)


def test_no_sample_is_dropped_and_min_is_the_minimum():
    values = [1.0] * 9 + [50.0]
    assert len(readings.finite(readings.block_medians(timed(values)))) == 10
    assert stats.estimate([timed([3.0, 1.0, 2.0])]).low == 1.0


def test_one_value_has_no_interval_and_none_has_no_estimate():
    single = stats.estimate([timed([1.0])])
    assert (single.low, single.relative_half_width) == (None, None)
    assert stats.estimate([]) is None
    assert stats.estimate([timed([float("nan")])]) is None
    assert stats.ratio([]) is None


def test_restarts_of_which_one_took_no_time_show_their_range():
    estimate = stats.estimate([timed([0.0] * 3), timed([1.0] * 3)])
    assert (estimate.value, estimate.low, estimate.high, estimate.method) == (0.5, 0.0, 1.0, stats.Method.RANGE)


def test_order_statistics_are_those_of_the_binomial():
    # n = 10: [2nd least, 2nd most] holds the median with 97.9 %, [3rd, 3rd] with 89.1 % (any table of the sign test).
    assert stats.order_rank(10) == 2
    assert stats.order_rank(5) == 0
    assert stats.median_estimate(np.arange(10.0), stats.Over.BLOCKS).confidence == pytest.approx(0.9785, abs=1e-4)


def test_t_interval_equals_scipy():
    from scipy.stats import t

    values = np.array([0.1, 0.4, 0.2, 0.35, 0.15])
    low, high = t.interval(0.95, 4, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(5))
    estimate = stats.t_estimate(values, stats.Over.RESTARTS)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_over_restarts_covers_the_truth():
    source = np.random.default_rng(11)
    held = 0
    for _ in range(1500):
        restarts = []
        for _ in range(6):
            level = math.exp(source.normal(0, 0.02))  # what differs between restarts
            restarts.append(timed(level * np.exp(source.normal(0, 0.01, 8))))
        estimate = stats.estimate(restarts)
        held += estimate.low <= 1 <= estimate.high
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
        ratio = stats.ratio(pairs)
        held += ratio.low <= 1.05 <= ratio.high
    assert 0.93 <= held / 1500 <= 0.97


def test_the_interval_within_a_restart_covers_the_median_of_a_skewed_distribution():
    source = np.random.default_rng(13)
    held = sum(
        estimate.low <= 1 <= estimate.high
        for estimate in (stats.estimate([timed(np.exp(source.exponential(1, 15) - math.log(2)))]) for _ in range(1500))
    )
    assert held / 1500 >= 0.94


def test_rounds_stop_on_precision():
    assert stats.precise_enough(timed([1.0, 1.001] * 10), 0.02)
    assert not stats.precise_enough(timed([1.0, 2.0] * 10), 0.02)


def test_noisy_is_a_median_over_a_quarter_above_the_least():
    assert readings.is_noisy(timed([1.0, 1.3, 1.3]))
    assert not readings.is_noisy(timed([1.0, 1.2, 9.0]))


@given(TIMES, st.randoms())
def test_the_order_of_rounds_does_not_matter_for_an_interval(values, source):
    rounds = list(range(len(values)))
    other = [value * (1 + 0.01 * number) for number, value in enumerate(values)]
    source.shuffle(rounds)
    shuffled = [timed([times[n] for n in rounds], rounds) for times in (values, other)]
    assert stats.estimate(shuffled[:1]) == stats.estimate([timed(values)])
    assert stats.ratio([tuple(shuffled)]) == stats.ratio([(timed(values), timed(other))])


@given(st.lists(st.none() | st.floats(0, 1e3) | st.just(math.nan) | st.just(math.inf), max_size=3))
def test_few_zero_and_broken_readings_never_crash(values):
    times = sample("s", [math.nan if value is None else value for value in values])
    (
        stats.estimate([times]),
        stats.estimate([times, times]),
        stats.ratio([(times, times)]),
        stats.ratio([(times, times)] * 2),
    )
    readings.noise(times), readings.is_noisy(times), stats.precise_enough(times, 0.02)
    assert readings.percentile(times.values, 0.95) is None


@pytest.mark.parametrize("count", [6, 9, 15, 30, 60])
def test_the_interval_of_a_median_equals_scipy(count):
    from scipy.stats import quantile_test

    values = np.random.default_rng(count).normal(10, 1, count)
    expected = quantile_test(values, q=10, p=0.5).confidence_interval(0.95)
    estimate = stats.median_estimate(values, stats.Over.BLOCKS)
    assert (estimate.low, estimate.high, estimate.method) == (expected.low, expected.high, stats.Method.ORDER)


def test_five_blocks_show_their_range_and_say_what_it_holds():
    estimate = stats.estimate([timed([1.0, 1.1, 1.2, 1.3, 1.4])])
    assert (estimate.low, estimate.high, estimate.method) == (1.0, 1.4, stats.Method.RANGE)
    assert estimate.confidence == pytest.approx(0.9375)
    assert estimate.label == "within one restart"


def test_an_interval_within_one_restart_misses_what_differs_between_restarts():
    source = np.random.default_rng(14)
    held = 0
    for _ in range(500):
        level = math.exp(source.normal(0, 0.02))
        estimate = stats.estimate([timed(level * np.exp(source.normal(0, 0.01, 12)))])
        held += estimate.low <= 1 <= estimate.high
    assert held / 500 < 0.6  # why the label is there


def test_restarts_weigh_the_same_however_many_rounds_they_have():
    estimate = stats.estimate([timed([1.0] * 30), timed([4.0] * 5)])
    assert estimate.value == pytest.approx(2.0)
    assert estimate.label == "over 2 restarts"


def test_an_unpaired_ratio_spans_the_ends_of_both_intervals():
    above, below = (stats.estimate([timed([scale * t for t in (0.9, 1.0, 1.1)])]) for scale in (3.0, 1.0))
    ratio = stats.unpaired_ratio(above, below)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3.0, 2.7 / 1.1, 3.3 / 0.9))
    assert ratio.confidence == pytest.approx(0.5)  # twice 0.75, less one


def test_an_unpaired_ratio_needs_positive_times_and_two_intervals():
    none, three, whole = (stats.estimate([timed(values)]) for values in ([0.0], [3.0], [0.5, 1.5]))
    assert stats.unpaired_ratio(three, none) is None
    quotient = stats.unpaired_ratio(three, whole)
    assert (quotient.value, quotient.low, quotient.high) == (3.0, None, None)


def test_a_quotient_lies_outside_an_interval_in_the_digits_that_are_printed():
    assert stats.quotient_outside(3.0, 1.0, 3.1, 3.3)
    assert not stats.quotient_outside(3.0, 1.0, 3.04, 3.3)  # 3.0 in two digits
    assert not stats.quotient_outside(3.0, 1.0, None, None)


def test_the_exponent_of_two_points_has_no_interval():
    law = stats.power_law([1024, 4096], [1e-3, 16e-3])
    assert (law.value, law.low, law.count) == (pytest.approx(2.0), None, 2)


def test_a_geometric_mean_of_ratios_is_that_of_a_worked_example():
    mean = stats.geometric_mean([2.0, 8.0, None])
    assert (mean.value, mean.count) == (pytest.approx(4.0), 2)
    assert stats.geometric_mean([]) is None


def test_percentiles_need_enough_readings_to_mean_anything():
    assert readings.percentile(timed([float(n) for n in range(1, 101)]).values, 0.99) == pytest.approx(99.01)
    assert readings.percentile(timed([float(n) for n in range(1, 100)]).values, 0.99) is None


@pytest.mark.parametrize("name", readings.LOCATIONS)
def test_a_location_moves_and_scales_with_the_values(name):
    values = np.random.default_rng(3).lognormal(0, 0.3, 11)
    assert readings.location(3 * values + 1, name) == pytest.approx(3 * readings.location(values, name) + 1)


def test_a_drift_is_seen_as_a_trend_and_as_autocorrelation():
    noise = readings.noise(timed([1 + 0.01 * n for n in range(20)]))
    assert noise.trend == pytest.approx(1.0)
    assert noise.autocorrelation > 0.8
    assert readings.noise(timed([1.0] * 20)).trend is None


def test_the_position_effect_is_last_over_first():
    blocks = tuple(TimedBlock(round=n // 2, position=n % 2, readings=1) for n in range(8))
    noise = readings.noise(sample("s", [1.0, 1.1] * 4, blocks))
    assert noise.position_effect == pytest.approx(math.log(1.1))


def test_tags_are_counted_and_their_blocks_are_not_dropped():
    blocks = tuple(TimedBlock(round=n, position=0, readings=1, tags=("stolen",) if n == 0 else ()) for n in range(4))
    tagged = sample("s", [9.0, 1.0, 1.0, 1.0], blocks)
    assert readings.noise(tagged).tagged == {"stolen": 0.25}
    assert stats.estimate([tagged]).high == 9.0


def test_looks_share_the_error_and_the_last_one_may_be_early() -> None:
    shares = {4: 0.2, 9: 0.8}
    assert list(stats.looks(shares, 3)) == [(3, 0.2)]
    assert list(stats.looks(shares, 4)) == [(4, 0.2)]
    assert list(stats.looks(shares, 7)) == [(4, 0.2), (7, 0.8)]
    assert list(stats.looks(shares, 20)) == [(4, 0.2), (9, 0.8)]


def test_a_t_interval_has_the_confidence_that_is_asked_for() -> None:
    """Of four values with standard error 1: Student's t of three degrees of freedom."""
    values = np.array([-1.0, -1.0, 1.0, 1.0]) * math.sqrt(3)
    usual, wide = stats.t_estimate(values, stats.Over.ROUNDS), stats.t_estimate(values, stats.Over.ROUNDS, 0.99)
    assert (usual.high, usual.confidence) == (pytest.approx(3.182, abs=1e-3), 0.95)
    assert (wide.high, wide.confidence) == (pytest.approx(5.841, abs=1e-3), 0.99)
