"""The rule of the gate against scipy, brute force, symmetry, and simulated noise with a known truth."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from attnbench.gate import rule, significance
from attnbench.gate.rule import Evidence, Margins
from attnbench.records.result import Outcome
from tools import gate_simulation

NO_NOISE = Margins()

effects = st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=20)


def case(name: str = "a", effects: tuple[float, ...] = (0.0,) * 6, **fields) -> Evidence:
    plain = {"label": name, "device": "cpu", "backend": "naive", "base_s": 1e-3, "head_s": 1e-3}
    return Evidence(case_id=name, effects=effects, **{**plain, **fields})


def shifted(by: float, sd: float = 0.004, restarts: int = 6, seed: int = 0) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).normal(by, sd, restarts).tolist())


# -- pieces ------------------------------------------------------------------------------------------------------------


@given(effects, st.floats(-0.1, 0.1))
def test_the_p_value_equals_that_of_scipy(values, margin):
    if np.std(values) < 1e-9:
        return
    expected = scipy_stats.ttest_1samp(values, margin, alternative="greater").pvalue
    assert significance.p_above(values, margin) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(effects)
def test_the_interval_is_that_of_scipy_at_the_confidence_of_its_look(values):
    if np.std(values) < 1e-9:
        return
    share = next(share for look, share in significance.LOOKS.items() if look >= len(values))
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(1 - 0.05 * share)
    interval = significance.interval(values)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)


def test_the_looks_spend_the_allowed_error_once():
    assert sum(significance.LOOKS.values()) == pytest.approx(1)
    assert list(significance.looks(6)) == [(4, 0.10), (6, 0.15)]
    assert list(significance.looks(7)) == [(4, 0.10), (6, 0.15), (7, 0.15)]  # a look that the budget cut short
    assert sum(share for _, share in significance.looks(99)) == pytest.approx(1)
    assert [significance.until_next_look(count) for count in (0, 4, 5, 26, 99)] == [4, 2, 1, 0, 0]


@pytest.mark.parametrize("count", [4, 7, 13, 26])
def test_the_p_value_of_several_looks_is_the_smallest_of_a_look_divided_by_its_share(count):
    values = shifted(0.16, sd=0.02, restarts=count)
    by_look = [
        scipy_stats.ttest_1samp(values[:n], math.log1p(0.10) if n < 13 else 0.03, alternative="greater").pvalue / share
        for n, share in significance.looks(count)
    ]
    assert float(rule.p_slower(values, 0.03)) == pytest.approx(min(by_look))


@given(st.dictionaries(st.integers(0, 99).map(str), st.floats(0, 1), max_size=7))
def test_holm_is_the_closed_test_of_all_subsets(p_values):
    """Reject i if every hypothesis that holds i is rejected by Bonferroni: by brute force over all of them."""
    names = list(p_values)
    for name, adjusted in significance.holm(p_values).items():
        worst = max(
            min(1.0, len(subset) * min(p_values[other] for other in subset))
            for size in range(1, len(names) + 1)
            for subset in itertools.combinations(names, size)
            if name in subset
        )
        assert adjusted == pytest.approx(worst)


@pytest.mark.parametrize(("value", "p"), [(0.05, 0.0), (0.0, 1.0), (0.02, 1.0)])
def test_times_without_variation_are_compared_exactly(value, p):
    assert significance.p_above([value] * 6, 0.02) == p


def test_one_restart_decides_nothing():
    (verdict,) = rule.verdicts([case(effects=(5.0,))], NO_NOISE)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "at least 2 are needed" in verdict.reason
    assert verdict.interval is None


def test_the_margin_is_the_tolerance_or_the_timer_and_what_noise_may_add_over_all_restarts():
    quiet, loud = (0.0, 0.0, 0.0), (-0.1, 0.0, 0.1)
    assert NO_NOISE.of(case(effects=quiet), 20) == pytest.approx(math.log1p(0.02))
    noise = scipy_stats.t.isf(0.01 / 20 * 0.30, 25) * 0.1 / math.sqrt(26)
    assert NO_NOISE.of(case(effects=loud), 20) == pytest.approx(math.log1p(0.02) + noise)
    twice = Margins(factor=2 * scipy_stats.t.ppf(0.995, 5))  # equal arms differ twice as much as normal noise
    assert twice.of(case(effects=loud), 20) == pytest.approx(math.log1p(0.02) + 2 * noise)
    assert NO_NOISE.of(case(effects=quiet, tolerance=0.2), 20) == pytest.approx(math.log1p(0.2))
    assert Margins(resolution_s=1e-4).of(case(effects=quiet, base_s=1e-3), 20) == pytest.approx(math.log1p(0.1))
    assert NO_NOISE.of(case(effects=(0.1,)), 20) == pytest.approx(math.log1p(0.02))  # no spread is known


@pytest.mark.parametrize(
    ("effects", "step"),
    [
        (shifted(0.0, restarts=4), 0),  # the same
        (shifted(0.3, restarts=4), 0),  # a plain regression, and a plain improvement
        (shifted(-0.3, restarts=4), 0),
        (shifted(0.05, restarts=4), 2),
        (shifted(0.05, restarts=5), 1),
        (shifted(0.05, restarts=9), 4),  # significant, but all might be in one state of the machine
        (shifted(0.05, restarts=13), 0),
        (shifted(0.03, sd=0.02, restarts=18), 8),
        (shifted(0.03, sd=0.02, restarts=26), 0),  # no further look
        ((-0.1, 0.1) * 3, 0),  # a margin above max_margin, which would stay so
        ((-0.065, 0.065) * 3, 3),  # above it, but the spread may turn out smaller
        ((-0.02, 0.18) * 3, 3),  # above it, but perhaps slower by more than the margin
    ],
)
def test_a_case_has_more_restarts_until_it_is_decided(effects, step):
    asked = rule.next_step([case("a", effects), case("b", shifted(0.0, restarts=4))], NO_NOISE)
    assert asked == ((frozenset({("a", "cpu")}) if step else frozenset()), step)
    assert rule.next_step([case("a", effects, unusable="the clock jumped")], NO_NOISE).restarts == 0


@given(effects)
def test_the_smallest_spread_is_the_lower_end_of_the_interval_of_a_standard_deviation(values):
    quantile = scipy_stats.chi2.ppf(0.9, len(values) - 1)
    expected = math.sqrt(sum((value - np.mean(values)) ** 2 for value in values) / quantile)
    assert float(significance.smallest_sd(values)) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert float(significance.smallest_sd(values[:1])) == 0.0


def test_the_chance_of_a_change_at_the_last_look_is_that_of_simulated_restarts():
    rng, seen = np.random.default_rng(4), np.array(shifted(0.02, sd=0.1, restarts=9))
    # What is known after 9 restarts, with a flat prior: a spread of the chi-square law, then a mean around that seen.
    sds = seen.std(ddof=1) * np.sqrt(8 / rng.chisquare(8, 100_000))
    means = rng.normal(seen.mean(), sds / 3)
    last = (9 * seen.mean() + 17 * rng.normal(means, sds / math.sqrt(17))) / 26
    for bound in (0.03, 0.06, 0.10):
        expected = (last > bound).mean()
        assert float(significance.chance_beyond(seen, bound)) == pytest.approx(expected, abs=0.005)
        assert significance.chance_beyond(-seen, bound) == significance.chance_beyond(seen, bound)
    assert float(significance.chance_beyond((0.1,) * 26, 1.0)) == float(significance.chance_beyond((0.1,), 1.0)) == 1.0


def test_a_case_that_is_too_noisy_gets_no_more_restarts_and_says_so():
    noisy = case(effects=(-0.1, 0.1) * 3)
    assert not rule.next_step([noisy], NO_NOISE).cases
    (verdict,) = rule.verdicts([noisy], NO_NOISE)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith("too noisy: its margin is above max_margin, 6.0 %")


def test_a_reason_has_one_unit_for_all_of_its_figures() -> None:
    (verdict,) = rule.verdicts([case(effects=shifted(0.05, sd=3.0, restarts=26))], NO_NOISE)
    assert verdict.interval
    assert verdict.interval[1] > 2  # which a table shows as a factor
    assert re.search(r"max_margin, 6\.0 %, and a slowdown of up to [\d,]+ % may be hidden$", verdict.reason)


def test_an_a_a_control_that_differs_makes_the_whole_run_inconclusive():
    doubts = rule.doubts({"a": case(effects=shifted(0.1, restarts=18))}, NO_NOISE)
    assert "the A/A control of a differs by +10" in doubts[""]
    assert "differs by -9" in rule.doubts({"a": case(effects=shifted(-0.1, restarts=18))}, NO_NOISE)[""]
    assert rule.doubts({"a": case(effects=shifted(0.01, restarts=18))}, NO_NOISE) == {}
    red = case(effects=shifted(0.1, restarts=18))
    (verdict,) = rule.verdicts([red], NO_NOISE, doubts)
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, doubts[""])


def test_an_a_a_control_that_differs_on_one_node_leaves_the_cases_of_others_decided():
    slower, equal = shifted(0.1, restarts=18), shifted(0.0, restarts=18)
    doubts = rule.doubts({"a": case(effects=slower, node="n1"), "b": case(effects=equal, node="n2")}, NO_NOISE)
    assert {node: text.rpartition(": ")[2] for node, text in doubts.items()} == {"n1": "node n1 is too noisy to judge"}
    verdicts = rule.verdicts([case(node, effects=slower, node=node) for node in ("n1", "n2")], NO_NOISE, doubts)
    assert [verdict.outcome for verdict in verdicts] == [Outcome.INCONCLUSIVE, Outcome.REGRESSED]


def test_a_uniform_change_shows_in_the_geometric_mean():
    rng = np.random.default_rng(1)
    _, low, high = significance.geometric_mean(rng.normal(0.01, 0.004, 20))
    assert low < math.exp(0.01) < high
    assert low > 1.0
    assert significance.geometric_mean([0.0, 0.1]) == (math.exp(0.05), 1.0, math.exp(0.1))


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effects", "outcome", "reason"),
    [
        (shifted(0.0), Outcome.SAME, ""),
        (shifted(0.1, restarts=18), Outcome.REGRESSED, ""),
        (shifted(-0.1, restarts=18), Outcome.IMPROVED, ""),
        (shifted(0.3, restarts=4), Outcome.REGRESSED, ""),
        # What was extreme in the first restarts counts with the later ones.
        (shifted(0.04, restarts=4) + shifted(0.0, restarts=22, seed=1), Outcome.SAME, ""),
        (shifted(0.05, restarts=6), Outcome.INCONCLUSIVE, r"\+5.. % so far, after 6 restarts: 3 more may settle it"),
        (shifted(0.05, sd=0.12, restarts=26), Outcome.INCONCLUSIVE, "its margin is above max_margin, 6.0 %"),
        ((0.012, 0.032) * 13, Outcome.INCONCLUSIVE, "after all 26 restarts a slowdown of up to"),
        (shifted(-2.5, restarts=18), Outcome.INCONCLUSIVE, "base takes 12x the time of head: check that base ran"),
        (shifted(2.5, restarts=18), Outcome.REGRESSED, ""),
    ],
)
def test_each_outcome(effects, outcome, reason):
    (verdict,) = rule.verdicts([case(effects=effects)], NO_NOISE)
    assert verdict.outcome is outcome
    assert re.search(reason, verdict.reason)
    assert bool(verdict.reason) == (outcome is Outcome.INCONCLUSIVE)


def test_a_case_whose_times_cannot_be_used_is_inconclusive_whatever_they_are():
    (verdict,) = rule.verdicts([case(effects=shifted(0.3, restarts=18), unusable="the clock jumped")], NO_NOISE)
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, "the clock jumped")


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, Outcome.INCONCLUSIVE),
        ({"max_margin": 0.07}, Outcome.INCONCLUSIVE),
        ({"max_margin": 0.2}, Outcome.SAME),
        ({"tolerance": 0.05}, Outcome.SAME),  # three tolerances are 15 %
    ],
)
def test_a_case_is_the_same_only_up_to_the_largest_margin(fields, outcome):
    (verdict,) = rule.verdicts([case(effects=(0.1, -0.1) * 13, **fields)], NO_NOISE)
    assert verdict.outcome is outcome
    assert verdict.margin > 0.07


def test_a_slowdown_that_is_certain_alone_may_be_too_small_for_a_test_of_all_cases():
    barely = tuple(0.02044 + 0.001 * sign for sign in (1, -1) * 13)  # 3.2 standard errors above the tolerance
    others = [case(str(number), shifted(0.0, restarts=26)) for number in range(19)]
    (alone,) = rule.verdicts([case(effects=barely)], NO_NOISE)
    verdict, *_ = rule.verdicts([case(effects=barely), *others], NO_NOISE)
    assert (alone.outcome, verdict.outcome) == (Outcome.REGRESSED, Outcome.INCONCLUSIVE)
    assert "slower by 2.0 % to 2.1 %, too little for a test of all cases" in verdict.reason
    wide = shifted(0.6, sd=0.6, restarts=26)
    crowd = [case(str(number), shifted(0.0, restarts=26)) for number in range(999)]
    verdict, *_ = rule.verdicts([case(effects=wide), *crowd], NO_NOISE)
    assert re.match(r"slower by \d.* % to \d.* %, too imprecise for a test of all cases", verdict.reason)


def test_a_case_whose_restarts_the_budget_cut_is_not_called_too_noisy():
    (verdict,) = rule.verdicts([case(effects=(0.6, 1.2, 1.9, 2.6))], NO_NOISE)
    assert rule.next_step([case(effects=(0.6, 1.2, 1.9, 2.6))], NO_NOISE).restarts == 2
    assert verdict.reason.endswith(
        " so far, after 4 restarts: 2 more may settle it, in a gate with more time (--budget)"
    )


def test_a_large_slowdown_is_found_however_wide_the_margin():
    (verdict,) = rule.verdicts([case(effects=(0.2, 0.4) * 13)], NO_NOISE)
    assert (verdict.outcome, verdict.margin > 0.07) == (Outcome.REGRESSED, True)


def test_the_largest_slowdown_that_may_be_hidden_is_the_highest_end_for_all_cases_together():
    cases = [case(name, shifted(by, restarts=13, seed=len(name))) for name, by in (("a", 0.0), ("bb", 0.015))]
    share, label = rule.hidden(cases, NO_NOISE)
    expected = scipy_stats.ttest_1samp(cases[1].effects, 0.0).confidence_interval(1 - 2 * 0.05 / 2 * 0.15).high
    assert (math.log1p(share), label) == (pytest.approx(expected), "bb")
    assert rule.hidden([case(effects=(0.1,))], NO_NOISE)[0] == math.inf
    assert rule.hidden([], NO_NOISE) is None


some_cases = st.lists(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=26), min_size=1, max_size=6)


def cases_of(drawn) -> list[Evidence]:
    return [case(str(number), tuple(values)) for number, values in enumerate(drawn)]


@given(some_cases)
def test_to_swap_base_and_head_mirrors_the_effects_and_the_red_and_green_verdicts(drawn):
    cases = cases_of(drawn)
    mirrored = [case(evidence.case_id, tuple(-effect for effect in evidence.effects)) for evidence in cases]
    mirror = {Outcome.REGRESSED: Outcome.IMPROVED, Outcome.IMPROVED: Outcome.REGRESSED}
    for verdict, other in zip(rule.verdicts(cases, NO_NOISE), rule.verdicts(mirrored, NO_NOISE), strict=True):
        assert (1 + verdict.change) * (1 + other.change) == pytest.approx(1)
        if verdict.outcome in mirror or other.outcome in mirror:
            assert other.outcome is mirror[verdict.outcome]


@given(some_cases, st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter(drawn, random):
    cases = cases_of(drawn)
    mixed = random.sample(cases, len(cases))
    by_id = {verdict.case_id: verdict for verdict in rule.verdicts(cases, NO_NOISE)}
    assert {verdict.case_id: verdict for verdict in rule.verdicts(mixed, NO_NOISE)} == by_id


@given(some_cases, st.floats(1e-3, 1e3))
def test_a_machine_that_is_faster_by_a_factor_gives_the_same_verdicts(drawn, factor):
    cases = cases_of(drawn)
    scaled = [case(evidence.case_id, evidence.effects, base_s=factor * evidence.base_s) for evidence in cases]
    assert [verdict.outcome for verdict in rule.verdicts(scaled, NO_NOISE)] == [
        one.outcome for one in rule.verdicts(cases, NO_NOISE)
    ]


@given(some_cases)
def test_the_same_cases_twice_are_never_redder_than_once(drawn):
    cases = cases_of(drawn)
    doubled = cases + [case(f"{evidence.case_id}'", evidence.effects) for evidence in cases]
    red = [verdict.outcome is Outcome.REGRESSED for verdict in rule.verdicts(cases, NO_NOISE)]
    again = [verdict.outcome is Outcome.REGRESSED for verdict in rule.verdicts(doubled, NO_NOISE)]
    assert all(before or not after for before, after in zip(red * 2, again, strict=True))


# -- simulated noise with a known truth --------------------------------------------------------------------------------


def by_rule(effects: np.ndarray) -> list[tuple[list[Outcome], list[int]]]:
    """The outcomes and the restarts of each run, with restarts as `rule.next_step` asks for them."""
    runs = []
    for run in effects:
        counts = [min(significance.LOOKS)] * len(run)
        while True:
            cases = [case(str(n), tuple(row[:count])) for n, (row, count) in enumerate(zip(run, counts, strict=True))]
            step = rule.next_step(cases, NO_NOISE)
            if not step.cases:
                break
            counts = [
                count + step.restarts * ((str(number), "cpu") in step.cases) for number, count in enumerate(counts)
            ]
        runs.append(([verdict.outcome for verdict in rule.verdicts(cases, NO_NOISE)], counts))
    return runs


def test_the_simulation_decides_as_the_rule_does():
    effects, _ = gate_simulation.simulated(gate_simulation.NOISES["normal"], 12, seed=3, slower=True)
    tested = gate_simulation.judged(effects)
    assert tested.red.any()
    for number, (outcomes, counts) in enumerate(by_rule(effects)):
        assert [outcome is Outcome.REGRESSED for outcome in outcomes] == tested.red[number].tolist()
        assert [outcome is Outcome.SAME for outcome in outcomes] == tested.same[number].tolist()
        assert counts == tested.restarts[number].tolist()


@pytest.mark.parametrize("name", gate_simulation.NOISES)
def test_equal_arms_are_hardly_ever_red_and_slower_ones_are_found(name):
    """Targets: 1 % of runs red, 80 % found at 1.5 times the printed margin, 95 % at twice, 93 % of intervals right."""
    rates = gate_simulation.rates(gate_simulation.NOISES[name], runs=400)
    assert rates.red_runs <= 0.01 * rates.runs
    assert rates.inconclusive <= 0.15
    assert rates.power[0] >= 0.80
    assert rates.power[1] >= 0.95
    assert rates.covered >= (0.93 if "drift" not in name else 0.85)  # an early look sees a part of the drift


def test_a_tolerance_that_all_cases_use_up_makes_hardly_any_run_red():
    effects, _ = gate_simulation.simulated(gate_simulation.NOISES["normal"], 400, seed=5, slower=False)
    assert gate_simulation.judged(effects + gate_simulation.TOLERANCE).red.any(axis=-1).sum() <= 8  # of 4 expected
