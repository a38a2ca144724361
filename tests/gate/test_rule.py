"""The rule of the gate against scipy, brute force, symmetry, and simulated noise with a known truth."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from attnbench.gate import rule, significance
from attnbench.gate.rule import Evidence, Margins
from attnbench.records.result import Outcome

NO_NOISE = Margins()

effects = st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=20)


def case(
    name: str = "a", screen: tuple[float, ...] = (0.0,) * 6, confirm: tuple[float, ...] = (), **fields
) -> Evidence:
    plain = {"label": name, "device": "cpu", "backend": "naive", "base_s": 1e-3, "head_s": 1e-3}
    return Evidence(case_id=name, screen=screen, confirm=confirm, **{**plain, **fields})


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
def test_the_interval_equals_that_of_scipy(values):
    if np.std(values) < 1e-9:
        return
    expected = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    interval = significance.interval(values)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)


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
    (verdict,) = rule.verdicts([case(screen=(5.0,))], NO_NOISE)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "at least 2 are needed" in verdict.reason
    assert verdict.interval is None


def test_the_margin_is_the_largest_of_tolerance_noise_floor_and_timer():
    quiet, loud = (0.0, 0.0, 0.0), (-0.1, 0.0, 0.1)
    assert NO_NOISE.of(case(screen=quiet)) == pytest.approx(math.log1p(0.02))
    error = 0.1 / math.sqrt(3)
    chance = scipy_stats.t.ppf(0.995, 2)
    assert NO_NOISE.of(case(screen=loud)) == pytest.approx(math.log1p(1.25 * math.expm1(chance * error)))
    assert Margins(factor=20.0).of(case(screen=loud)) == pytest.approx(math.log1p(1.25 * math.expm1(20 * error)))
    assert NO_NOISE.of(case(screen=quiet, tolerance=0.2)) == pytest.approx(math.log1p(0.2))
    assert Margins(resolution_s=1e-4).of(case(screen=quiet, base_s=1e-3)) == pytest.approx(math.log1p(0.1))


@pytest.mark.parametrize(
    ("screen", "confirm", "precise", "enough"),
    [
        ((0.1,) * 6, (0.1,) * 12, True, True),
        ((0.1,) * 6, (0.1,) * 11, False, True),  # too few to confirm, but the screen is precise
        ((0.0, 0.5) * 3, (), False, False),
        ((0.1,) * 6, (0.0, 0.5) * 6, False, True),  # an open case has no more than twelve
    ],
)
def test_precision_and_never_significance_ends_the_restarts(screen, confirm, precise, enough):
    both = case(screen=screen, confirm=confirm)
    assert (rule.precise(both, NO_NOISE), rule.open_enough(both, NO_NOISE)) == (precise, enough)


def test_an_a_a_control_that_differs_makes_the_whole_run_inconclusive():
    doubt = rule.too_noisy({"a": case(screen=shifted(0.1))}, NO_NOISE)
    assert "the A/A control of a differs by +10" in doubt
    assert "differs by -9" in rule.too_noisy({"a": case(screen=shifted(-0.1))}, NO_NOISE)
    assert rule.too_noisy({"a": case(screen=shifted(0.01))}, NO_NOISE) == ""
    red = case(screen=shifted(0.1), confirm=shifted(0.1, restarts=12))
    (verdict,) = rule.verdicts([red], NO_NOISE, doubt)
    assert (verdict.outcome, verdict.reason) == (Outcome.INCONCLUSIVE, doubt)


def test_a_uniform_change_shows_in_the_geometric_mean():
    rng = np.random.default_rng(1)
    _, low, high = significance.geometric_mean(rng.normal(0.01, 0.004, 20))
    assert low < math.exp(0.01) < high
    assert low > 1.0
    assert significance.geometric_mean([0.0, 0.1]) == (math.exp(0.05), 1.0, math.exp(0.1))


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("screen", "confirm", "outcome"),
    [
        (shifted(0.0), (), Outcome.SAME),
        (shifted(0.1), shifted(0.1, restarts=12, seed=1), Outcome.REGRESSED),
        (shifted(-0.1), shifted(-0.1, restarts=12, seed=1), Outcome.IMPROVED),
        (
            shifted(0.1),
            shifted(0.0, restarts=12, seed=1),
            Outcome.SAME,
        ),  # flagged by the screen, and cleared by fresh restarts
        (shifted(0.1), (), Outcome.INCONCLUSIVE),  # the budget ended before the confirmation
        (shifted(0.05, sd=0.03), (), Outcome.INCONCLUSIVE),
        (shifted(0.0, sd=0.001), shifted(0.05, sd=0.05, restarts=12, seed=1), Outcome.INCONCLUSIVE),
    ],
)
def test_each_outcome(screen, confirm, outcome):
    (verdict,) = rule.verdicts([case(screen=screen, confirm=confirm)], NO_NOISE)
    assert verdict.outcome is outcome
    assert bool(verdict.reason) == (outcome is Outcome.INCONCLUSIVE)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_confirmation_that_the_budget_cut_says_so(count):
    confirm = shifted(0.1, restarts=12, seed=1)[:count]
    (verdict,) = rule.verdicts([case(screen=shifted(0.1), confirm=confirm)], NO_NOISE)
    if verdict.outcome is Outcome.INCONCLUSIVE:  # five may be enough
        assert f"after {count} of 12 confirming restarts: a longer --budget" in verdict.reason
        assert math.isfinite(verdict.interval[1])
    else:
        assert (count, verdict.outcome) == (5, Outcome.REGRESSED)


def test_an_inconclusive_case_names_the_restarts_that_would_settle_it():
    (verdict,) = rule.verdicts([case(screen=(0.00, 0.04, 0.01, 0.05, 0.01, 0.05))], NO_NOISE)
    assert "more restarts would settle it" in verdict.reason


def test_a_flagged_case_is_estimated_from_its_fresh_restarts_alone():
    (verdict,) = rule.verdicts([case(screen=shifted(0.5), confirm=shifted(0.1, restarts=12))], NO_NOISE)
    assert verdict.change == pytest.approx(math.expm1(0.1), abs=0.005)
    assert verdict.restarts == 18


some_cases = st.lists(
    st.tuples(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=8), st.lists(st.floats(-0.1, 0.1), max_size=14)),
    min_size=1,
    max_size=6,
)


def cases_of(drawn) -> list[Evidence]:
    return [case(str(n), tuple(screen), tuple(confirm)) for n, (screen, confirm) in enumerate(drawn)]


@given(some_cases)
def test_to_swap_base_and_head_mirrors_the_effects_and_the_red_and_green_verdicts(drawn):
    cases = cases_of(drawn)
    mirrored = [
        case(evidence.case_id, tuple(-e for e in evidence.screen), tuple(-e for e in evidence.confirm))
        for evidence in cases
    ]
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
    scaled = [
        case(evidence.case_id, evidence.screen, evidence.confirm, base_s=factor * evidence.base_s) for evidence in cases
    ]
    assert [verdict.outcome for verdict in rule.verdicts(scaled, NO_NOISE)] == [
        one.outcome for one in rule.verdicts(cases, NO_NOISE)
    ]


@given(some_cases)
def test_the_same_cases_twice_are_never_redder_than_once(drawn):
    cases = cases_of(drawn)
    doubled = cases + [case(f"{evidence.case_id}'", evidence.screen, evidence.confirm) for evidence in cases]
    red = [verdict.outcome is Outcome.REGRESSED for verdict in rule.verdicts(cases, NO_NOISE)]
    again = [verdict.outcome is Outcome.REGRESSED for verdict in rule.verdicts(doubled, NO_NOISE)]
    assert all(before or not after for before, after in zip(red * 2, again, strict=True))


# -- simulated noise with a known truth --------------------------------------------------------------------------------

SD = 0.02  # between restarts
CASES = 20


def simulated(rng: np.random.Generator, times: np.ndarray) -> list[Evidence]:
    """Runs in which case i is slower by `times[i]` of the margin that is printed for it, which its spread alone sets.

    Normal restarts with one outlier in fourteen, as docs/method.md saw them.
    """

    def noise(count: int) -> np.ndarray:
        return rng.normal(0, SD, count) * np.where(rng.random(count) < 1 / 14, 4.0, 1.0)

    screens = [noise(6) for _ in times]
    truths = [share * MARGINS.of(case(screen=tuple(screen))) for share, screen in zip(times, screens, strict=True)]
    cases = [case(str(n), tuple(truth + screen)) for n, (truth, screen) in enumerate(zip(truths, screens, strict=True))]
    flags = rule.screen(cases, MARGINS)
    flagged = {evidence.case_id for evidence in (*flags.slower, *flags.faster, *flags.open)}
    fresh = [tuple(truth + noise(12)) if str(n) in flagged else () for n, truth in enumerate(truths)]
    return [case(evidence.case_id, evidence.screen, more) for evidence, more in zip(cases, fresh, strict=True)]


MARGINS = Margins()


@pytest.mark.parametrize("runs", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_of_many_runs_of_equal_arms_hardly_any_is_red(runs):
    rng = np.random.default_rng(7)
    red, outcomes = 0, Counter()
    for _ in range(runs):
        verdicts = rule.verdicts(simulated(rng, np.zeros(CASES)), MARGINS)
        red += any(verdict.outcome is Outcome.REGRESSED for verdict in verdicts)
        outcomes.update(verdict.outcome for verdict in verdicts)
    assert red <= 0.01 * runs  # 1 %, which is what Holm at 0.01 promises at the margin; equal arms lie far below it
    assert outcomes[Outcome.INCONCLUSIVE] <= 0.15 * outcomes.total()


@pytest.mark.parametrize(("runs", "most"), [(100, 4), pytest.param(500, 15, marks=pytest.mark.slow)])
def test_at_the_margin_itself_hardly_any_run_is_red(runs, most):
    rng = np.random.default_rng(8)
    red = sum(
        any(verdict.outcome is Outcome.REGRESSED for verdict in rule.verdicts(simulated(rng, np.ones(CASES)), MARGINS))
        for _ in range(runs)
    )
    assert red <= most  # 1 %, and what so many runs may show by chance


@pytest.mark.parametrize(("times", "least"), [(2, 0.80), (3, 0.97)])
def test_a_slowdown_of_twice_and_three_times_the_printed_margin_is_found(times, least):
    rng = np.random.default_rng(9)
    slower = np.zeros(CASES)
    slower[3] = times
    detected = covered = 0
    for _ in range(300):
        verdict = rule.verdicts(simulated(rng, slower), MARGINS)[3]
        truth = math.expm1(times * math.log1p(verdict.margin))
        detected += verdict.outcome is Outcome.REGRESSED
        covered += verdict.interval[0] <= truth <= verdict.interval[1]
    assert detected >= least * 300
    assert covered >= 0.90 * 300


def test_a_significant_slowdown_below_the_margin_is_not_the_same():
    """Six noisy restarts give a wide margin; twelve steady ones then show a significant change."""
    noisy = (0.0, 0.2, 0.05, 0.15, 0.02, 0.1)
    evidence = case(screen=noisy, confirm=(0.08, 0.085) * 6)
    (verdict,) = rule.verdicts([evidence], rule.Margins())
    assert verdict.margin > 0.08
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "slower by more than 2.0 %, but not beyond what equal arms might show here" in verdict.reason
