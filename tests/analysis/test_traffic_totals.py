"""Totals of a trace, their intervals and policies: brute force, properties and worked examples."""

from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from attnbench.analysis import stats, traffic_interval, traffic_totals
from attnbench.analysis.traffic import Draw
from attnbench.analysis.traffic_totals import Measured, PolicyName
from attnbench.suite.serving.simulation import KINDS, StepKind

DECODE, MIXED = KINDS.index(StepKind.DECODE), KINDS.index(StepKind.MIXED)
TWO_ROUNDS = [[[1, 1], [2, 2]]] * 3
TIMES = arrays.arrays(float, st.tuples(st.integers(2, 5), st.integers(1, 3)), elements=st.floats(0.01, 100))


@pytest.fixture(autouse=True)
def few_draws_have_intervals(monkeypatch):
    """Worked examples have few steps."""
    monkeypatch.setattr(traffic_interval, "MIN_STEPS", 1)


def drawn_of(weights, certain=0, strata=None):
    strata = np.zeros(len(weights) - certain, int) if strata is None else np.array(strata)
    return Draw(steps=np.arange(len(weights)), weights=np.array(weights, float), strata=strata)


def measured_of(times_s, kinds=None, refusals=None):
    """times_s: [steps, backends, rounds]; backends are a, b, c."""
    times_s = np.array(times_s, float)
    kinds = np.zeros(len(times_s), int) if kinds is None else np.array(kinds)
    return Measured(backends=tuple("abc"[: times_s.shape[1]]), kinds=kinds, times_s=times_s, refusals=refusals or {})


def policies_of(weights, *args, **kwargs):
    totals = traffic_totals.estimate(drawn_of(weights), measured_of(*args, **kwargs), hours=1)
    return {name: totals.policy(name) for name in PolicyName}


@given(TIMES, st.integers(1, 4), st.data())
def test_a_total_is_the_weighted_sum_of_geometric_means(middle, rounds, data):
    steps, backends = middle.shape
    noise = data.draw(arrays.arrays(float, (steps, backends, rounds), elements=st.floats(0.5, 2)))
    weights = np.arange(1, steps + 1)
    times = middle[:, :, None] * noise
    totals = traffic_totals.estimate(drawn_of(weights), measured_of(times), hours=2)
    for total in totals.totals:
        place = "abc".index(total.backend)
        expected = sum(weights[i] * np.prod(times[i, place]) ** (1 / rounds) for i in range(steps))
        assert total.seconds.value == pytest.approx(expected)
        assert totals.per_hour(total.seconds).value == pytest.approx(expected / 2)
    values = [total.seconds.value for total in totals.totals]
    assert values == sorted(values)
    assert [total.over_fastest and total.over_fastest.value for total in totals.totals] == pytest.approx(
        [None, *(value / values[0] for value in values[1:])]
    )


@given(TIMES, st.booleans())
def test_noise_that_rounds_share_cancels_in_a_ratio(middle, is_certain):
    """Backend b takes twice as long as a in every round of every step."""
    steps, rounds = middle.shape[0], 3
    times = np.random.default_rng(0).lognormal(size=(steps, 1, rounds)) * middle[:, :1, None] * [[[1], [2]]]
    drawn = drawn_of(np.ones(steps), certain=steps if is_certain else 0)
    a, b = traffic_totals.estimate(drawn, measured_of(times), hours=1).totals
    assert (b.over_fastest.low, b.over_fastest.high) == (pytest.approx(2), pytest.approx(2))
    assert a.seconds.high > a.seconds.value > a.seconds.low


def test_steps_that_are_all_certain_leave_the_noise_of_rounds():
    """By hand: both logs have variance 2 over 2 rounds, so the log of the total has 1/4 (1 + 1) / 1 and 2 freedoms."""
    times = np.exp([[[1.0, -1.0]], [[-1.0, 1.0]]])
    total = traffic_totals.estimate(drawn_of([1, 1], certain=2), measured_of(times), hours=1).totals[0]
    assert total.seconds.value == pytest.approx(2)
    assert total.seconds.high / 2 == pytest.approx(np.exp(4.302653 * np.sqrt(0.5)), rel=1e-6)
    assert total.seconds.low * total.seconds.high == pytest.approx(4)


def test_the_interval_between_steps_is_that_of_independent_draws():
    """By hand: shares 1/8, 3/8, 1/2 are -5/24, 1/24 and 4/24 off their mean, with 42^2 / (25^2 + 1 + 16^2) freedoms."""
    total = traffic_totals.estimate(drawn_of([1, 1, 1]), measured_of([[[1]], [[3]], [[4]]]), hours=1).totals[0]
    half = stats.t_quantile(42**2 / (25**2 + 1 + 16**2)) * np.sqrt(3 / 2 * 42) / 24
    assert np.log(total.seconds.high / 8) == pytest.approx(half)


def test_strata_add_their_variances_and_small_ones_are_joined():
    """By hand: five draws of 1 and 3 each in one stratum, and five of 6 in the other, whose two last are a third."""
    times = np.array([1, 1, 3, 3, 2, 6, 6, 6, 6, 6], float)
    drawn = drawn_of(np.ones(10), strata=[0] * 5 + [1] * 3 + [2] * 2)
    total = traffic_totals.estimate(drawn, measured_of(times[:, None, None]), hours=1).totals[0]
    half = stats.t_quantile(4) * np.sqrt(5 / 4 * 4) / 40
    assert np.log(total.seconds.high / 40) == pytest.approx(half)


def test_an_interval_holds_steps_like_the_most_extreme_one():
    """Of 40 equal draws, one takes 9 times longer: 3/40 of the steps may be like it."""
    times = np.ones(40)
    times[7] = 9
    total = traffic_totals.estimate(drawn_of(np.ones(40)), measured_of(times[:, None, None]), hours=1).totals[0]
    assert np.log(total.seconds.high / 48) >= 3 * (9 - 1.2) / 48 - 1e-9


def test_too_few_draws_give_no_interval_and_say_how_many_more(monkeypatch):
    monkeypatch.setattr(traffic_interval, "MIN_STEPS", 5)
    for certain, missing in ((0, 2), (3, 0)):  # three of more steps, or all steps
        totals = traffic_totals.estimate(drawn_of([1, 1, 1], certain), measured_of(TWO_ROUNDS), hours=1)
        assert totals.missing == missing
        estimates = [totals.totals[0].seconds, totals.totals[1].over_fastest, totals.policy(PolicyName.SINGLE).regret]
        assert all((each.low is None) == (each.high is None) == bool(missing) for each in estimates)


def test_a_regret_of_zero_in_every_draw_holds_what_other_steps_may_lose():
    """a is always best, by 1.5: in the 3 of 40 parts that were not drawn, b may be best by as much."""
    times = np.repeat(np.array([[1.0, 1.5]]), 40, axis=0)[:, :, None].repeat(4, axis=2)
    single = policies_of(np.ones(40), times)[PolicyName.SINGLE]
    assert (single.regret.value, single.regret.low) == (0, 0)
    assert single.regret.high == pytest.approx(1.5 ** (3 / 40) - 1)


def test_a_regret_holds_both_the_best_of_the_same_and_of_other_rounds():
    """Even rounds favour a, odd ones b: no choice wins on the other half, and one per step could be 2 s each."""
    policies = policies_of(np.ones(40), [[[1, 4], [4, 1]]] * 40)
    regret = policies[PolicyName.SINGLE].regret
    assert (regret.value, regret.low) == (pytest.approx(0), pytest.approx(0))
    assert regret.high >= 1
    assert policies[PolicyName.STEP].seconds.low <= 80 + 1e-9
    assert policies[PolicyName.STEP].seconds.value == pytest.approx(160)


@pytest.mark.parametrize(("certain", "rounds"), [(0, 3), (1, 1)])
def test_one_drawn_step_or_one_round_gives_no_interval(certain, rounds):
    total = traffic_totals.estimate(drawn_of([1], certain), measured_of(np.ones((1, 1, rounds))), hours=1).totals[0]
    assert (total.seconds.value, total.seconds.low, total.seconds.high) == (1, None, None)


@given(TIMES, st.data())
def test_without_noise_policies_equal_brute_force_and_finer_ones_are_no_slower(middle, data):
    steps, backends = middle.shape
    kinds = np.array(data.draw(st.lists(st.sampled_from((DECODE, MIXED)), min_size=steps, max_size=steps)))
    weights = np.arange(1, steps + 1)
    policies = policies_of(weights, np.repeat(middle[:, :, None], 4, axis=2), kinds)
    weighted = weights[:, None] * middle
    single = weighted.sum(axis=0).min()
    phase = sum(weighted[kinds == kind].sum(axis=0).min() for kind in (DECODE, MIXED))
    step = min(sum(weighted[i, b] for i, b in enumerate(each)) for each in product(range(backends), repeat=steps))
    values = [policies[name].seconds.value for name in PolicyName]
    assert values == pytest.approx([single, phase, step])
    assert values[0] >= values[1] - 1e-9
    assert values[1] >= values[2] - 1e-9
    assert policies[PolicyName.SINGLE].regret.value == pytest.approx(single / step - 1)
    assert policies[PolicyName.PHASE].regret.value >= -1e-12
    assert policies[PolicyName.STEP].regret is None
    for policy in policies.values():
        assert sum(choice.share for choice in policy.choices) == pytest.approx(1)
        assert sum(choice.steps for choice in policy.choices) == steps
        assert all(choice.agreed == 1 for choice in policy.choices)


@given(TIMES, st.data())
def test_on_the_choosing_half_finer_policies_are_no_slower(weighted, data):
    steps, backends = weighted.shape
    weighted = np.where(data.draw(arrays.arrays(bool, (steps, backends))), np.inf, weighted)
    numbers, cut = np.arange(steps), data.draw(st.integers(0, steps - 1))
    costs = []
    for groups in (0 * numbers, (numbers > cut).astype(int), numbers):
        chosen = traffic_totals.choose(weighted, groups)
        costs.append(np.inf if chosen is None else weighted[numbers, chosen].sum())
    assert costs[0] >= costs[1] - 1e-9
    assert costs[1] >= costs[2] - 1e-9


def test_a_choice_is_scored_on_the_rounds_that_did_not_make_it():
    """Even rounds favour a, odd ones b: each choice is scored where it is slow, 4 s, and never as the 1 s it saw."""
    policies = policies_of([1, 1], [[[1, 4], [4, 1]]] * 2)
    for policy in policies.values():
        assert policy.seconds.value == pytest.approx(8)
        assert all(choice.agreed == 0 for choice in policy.choices)
    assert policies[PolicyName.SINGLE].regret.value == pytest.approx(0)


def test_a_policy_whose_halves_choose_differently_says_whose_seconds_it_has():
    """All rounds choose a, 6 s; odd ones choose b: one backend is scored as a in odd rounds and as b in even ones."""
    times = [[[1, 3, 1, 3, 1], [2, 2, 2, 2, 2]]] * 2
    single, phase, step = policies_of([1, 1], times, kinds=[DECODE, MIXED]).values()
    assert single.words == "a"
    assert single.halves == phase.halves == ("b", "a")
    assert single.scored.startswith("its seconds are of b in half of the rounds and of a in the others")
    assert step.halves == ()
    agreed = policies_of([1, 1], [[[1, 1], [2, 2]], [[2, 2], [1, 1]]], kinds=[DECODE, MIXED])[PolicyName.PHASE]
    assert (agreed.halves, agreed.scored) == ((), "")


def test_a_backend_that_cannot_run_a_step_is_not_chosen_where_that_step_is():
    """b is fastest but cannot run the mixed step: it is for the decode phase alone."""
    nan = np.nan
    times = [[[4, 4], [1, 1]], [[4, 4], [1, 1]], [[4, 4], [nan, nan]]]
    reason = "incorrect: out: max |error| 0.02"
    policies = policies_of([1, 1, 1], times, kinds=[DECODE, DECODE, MIXED], refusals={(2, "b"): reason})
    single, phase, step = (policies[name] for name in PolicyName)
    assert [(choice.scope, choice.backend) for choice in single.choices] == [("all steps", "a")]
    [(exclusion)] = single.excluded
    assert (exclusion.backend, exclusion.steps, exclusion.of, exclusion.reasons) == ("b", 1, 3, (reason,))
    assert [(each.scope, each.backend) for each in phase.choices] == [("decode", "b"), ("prefill and mixed", "a")]
    assert [(each.scope, each.backend) for each in phase.excluded] == [("prefill and mixed", "b")]
    assert {choice.backend: choice.steps for choice in step.choices} == {"a": 1, "b": 2}
    assert [policy.seconds.value for policy in (single, phase, step)] == pytest.approx([12, 6, 6])
    assert [policy.words for policy in (single, phase)] == ["a", "b for decode and a for prefill and mixed"]
    assert step.words in ("a or b", "b or a")


def test_a_step_that_no_backend_runs_leaves_no_policy_and_no_total():
    totals = traffic_totals.estimate(drawn_of([1, 1]), measured_of([[[1, 1]], [[np.nan, 0.0]]]), hours=1)
    assert totals.totals == ()
    assert all(policy.seconds is None and not policy.choices for policy in totals.policies)
    assert totals.policies[0].excluded[0].reasons == (traffic_totals.NO_ROUNDS,)


def test_without_a_result_there_is_no_backend_and_no_policy():
    totals = traffic_totals.estimate(drawn_of([1, 1]), measured_of(np.empty((2, 0, 1))), hours=1)
    assert totals.totals == ()
    assert all(policy.seconds is None and not policy.excluded for policy in totals.policies)


def test_times_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="times of 3 steps and 1 backends"):
        traffic_totals.estimate(drawn_of([1, 1, 1]), measured_of([[[1.0]]]), hours=1)


def test_planning_is_given_for_a_layer_and_as_a_share_of_the_time():
    """By hand: steps of weights 1 and 3 plan 2 s and 4 s, of 5 s and 5 s, in 7 layers."""
    measured = msgspec.structs.replace(measured_of([[[5, 5]], [[5, 5]]]), plan_s=np.array([[2.0], [4.0]]), layers=7)
    (total,) = traffic_totals.estimate(drawn_of([1, 3]), measured, hours=1).totals
    assert total.plan_layer_s == pytest.approx(14 / 4 / 7)
    assert total.planning == pytest.approx(14 / 20)


@pytest.mark.parametrize("plan_s", [None, np.array([[1.0], [2.0], [3.0]])])
def test_some_of_the_steps_keep_their_times_and_their_reasons(plan_s):
    measured = measured_of([[[1, 2]], [[3, 4]], [[5, 6]]], kinds=[0, 1, 2], refusals={(0, "a"): "x", (2, "a"): "y"})
    part = msgspec.structs.replace(measured, plan_s=plan_s, layers=7).at(np.array([1, 2]))
    assert part.kinds.tolist() == [1, 2]
    assert part.times_s.tolist() == [[[3, 4]], [[5, 6]]]
    assert part.refusals == {(1, "a"): "y"}
    assert (part.plan_s if plan_s is None else part.plan_s.tolist()) == (None if plan_s is None else [[2.0], [3.0]])
    assert part.layers == 7
