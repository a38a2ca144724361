"""Drawing steps of simulated traffic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.analysis import traffic
from attnbench.analysis.traffic import TrafficSteps
from attnbench.suite.serving.simulation import KINDS, StepKind
from tests.analysis.made_steps import made_steps

WHOLE = st.lists(st.integers(1, 12), min_size=1, max_size=12)
DRAWS = st.integers(1, 15)
DECODE, MIXED = KINDS.index(StepKind.DECODE), KINDS.index(StepKind.MIXED)


def steps_of(predicted, **other):
    count = len(predicted)
    fields = {"kinds": np.zeros(count, int), "requests": np.ones(count, int), "max_q": np.ones(count, int)}
    fields |= {"context": np.full(count, 100.0), "predicted_s": np.array(predicted, float)}
    return TrafficSteps(**fields | {name: np.array(values) for name, values in other.items()})


def certain_steps(predicted, draws):
    """Step by step: whatever takes an interval of the others is certain, until nothing else does."""
    certain = set()
    while True:
        others = [step for step in range(len(predicted)) if step not in certain]
        left = draws - len(certain)
        more = {step for step in others if left and predicted[step] * left >= sum(predicted[each] for each in others)}
        if not more:
            return certain
        certain.add(max(more, key=lambda step: predicted[step]))


def stratum_of(predicted, draws):
    """The only stratum of steps that are of one kind and context length."""
    (stratum,) = traffic.frame(steps_of(predicted), draws).strata
    return stratum


def every_draw(stratum):
    """The draws of every start: the running sums are whole numbers, so that a start matters by its place alone."""
    total = round(stratum.ends_s[-1]) if len(stratum.ends_s) else 1
    return [stratum.draw((place + 0.5) / total) for place in range(total)]


@given(WHOLE, DRAWS, st.data())
def test_the_mean_over_all_starts_is_the_true_total(predicted, draws, data):
    times = np.array(data.draw(st.lists(st.integers(1, 50), min_size=len(predicted), max_size=len(predicted))))
    stratum = stratum_of(predicted, draws)
    estimates = [weights @ times[steps] for steps, weights in every_draw(stratum)]
    assert np.mean(estimates) + times[stratum.certain].sum() == pytest.approx(times.sum())


@given(WHOLE, DRAWS, st.data())
def test_weights_give_back_all_predicted_seconds_and_no_step_comes_twice(predicted, draws, data):
    """In strata of several kinds and context lengths, one draw of each."""
    count = len(predicted)
    kinds, context = (
        data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
        for values in ((DECODE, MIXED), (10, 100, 1000))
    )
    drawn = traffic.draw(steps_of(predicted, kinds=kinds, context=np.array(context, float)), draws, seed=1)
    assert drawn.weights @ np.array(predicted)[drawn.steps] == pytest.approx(sum(predicted))
    assert len(set(drawn.steps)) == len(drawn.steps) == min(draws, count)
    assert (drawn.weights[: drawn.certain] == 1).all()
    assert (drawn.weights > 1 - 1e-9).all()
    assert (np.diff(drawn.strata) >= 0).all()


@given(WHOLE, DRAWS)
def test_a_step_of_an_interval_or_more_is_certain(predicted, draws):
    assert set(stratum_of(predicted, draws).certain) == certain_steps(predicted, draws)


def test_a_draw_takes_the_step_under_each_point():
    steps, weights = stratum_of([1, 2, 3, 2], 2).draw(0.9)  # points 3.6 and 7.6 of the order 1, 2, 2, 3
    assert steps.tolist() == [3, 2]
    assert weights.tolist() == [2.0, 4 / 3]


def test_a_step_under_two_points_is_returned_once_with_the_weight_of_both():
    stratum = traffic.Stratum(
        certain=np.array([], int), others=np.array([1, 0]), predicted_s=np.array([3.0, 1.0]),
        ends_s=np.array([3.0, 4.0]), draws=4,
    )  # fmt: skip
    steps, weights = stratum.draw(0.5)
    assert steps.tolist() == [1, 0]
    assert weights.tolist() == [1.0, 1.0]


def test_as_many_draws_as_steps_measure_every_step_once():
    drawn = traffic.draw(steps_of([3, 1, 2]), 5, seed=0)
    assert (drawn.certain, drawn.steps.tolist(), drawn.weights.tolist()) == (3, [0, 1, 2], [1, 1, 1])


def test_steps_of_a_stratum_are_ordered_by_context_requests_query_tokens_and_seconds():
    steps = steps_of(
        [5, 4, 3, 2, 1, 6], context=[9, 2, 2, 2, 2, 2], requests=[1, 9, 8, 3, 2, 2], max_q=[9, 1, 1, 2, 5, 3]
    )
    (stratum,) = traffic.frame(steps, 1).strata
    assert stratum.others.tolist() == [3, 5, 4, 2, 1, 0]


def test_draws_of_a_stratum_follow_the_square_root_of_its_time():
    """Kinds with 81, 16 and 1 of the seconds: 9, 4 and 1 of 14 parts."""
    steps = steps_of(np.repeat([0.81, 0.16, 0.01], 100), kinds=np.repeat([0, 1, 2], 100))
    strata = traffic.frame(steps, 28).strata
    assert [stratum.draws for stratum in strata] == [18, 8, 2]


def test_a_stratum_with_too_few_draws_is_joined_to_its_kind():
    """The last context length would have less than two of 14 draws: it is joined to that of its kind."""
    kinds, context = np.repeat([0, 0, 1, 1], 100), np.repeat([9.0, 99.0, 9.0, 99.0], 100)
    steps = steps_of(np.repeat([0.81, 0.81, 0.16, 0.01], 100), kinds=kinds, context=context)
    members = [set(kinds[stratum.others]) for stratum in traffic.frame(steps, 14).strata]
    assert members == [{0}, {0}, {1}]


@given(WHOLE, st.integers(1, 8))
def test_every_stratum_is_drawn(predicted, draws):
    kinds = np.arange(len(predicted)) % 3
    strata = traffic.frame(steps_of(predicted, kinds=kinds), draws).strata
    assert all(stratum.draws + len(stratum.certain) for stratum in strata)


def test_a_seed_gives_the_same_steps_and_another_seed_others():
    steps, _ = made_steps(2000)
    first, again, other = (traffic.draw(steps, 64, seed).steps.tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("field", ["requests", "max_q", "context", "predicted_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_values_of_a_step_are_positive(field, value):
    with pytest.raises(ValueError, match=field):
        steps_of([1.0], **{field: [value]})


def test_steps_need_arrays_of_one_length_and_at_least_one_step():
    with pytest.raises(ValueError, match="one length above 0"):
        steps_of([1.0], kinds=[0, 0])
    with pytest.raises(ValueError, match="one length above 0"):
        steps_of([])
    with pytest.raises(ValueError, match="cannot draw 0"):
        traffic.frame(steps_of([1.0]), 0)
