"""Drawing steps of simulated traffic, and the mix."""

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


def every_draw(frame):
    """The draws of every start: the running sums are whole numbers, so that a start matters by its place alone."""
    total = round(frame.ends_s[-1]) if len(frame.ends_s) else 1
    return [frame.draw((place + 0.5) / total) for place in range(total)]


@given(WHOLE, DRAWS, st.data())
def test_the_mean_over_all_starts_is_the_true_total(predicted, draws, data):
    times = np.array(data.draw(st.lists(st.integers(1, 50), min_size=len(predicted), max_size=len(predicted))))
    estimates = [each.weights @ times[each.steps] for each in every_draw(traffic.frame(steps_of(predicted), draws))]
    assert np.mean(estimates) == pytest.approx(times.sum())


@given(WHOLE, DRAWS)
def test_weights_give_back_all_predicted_seconds_and_no_step_comes_twice(predicted, draws):
    frame = traffic.frame(steps_of(predicted), draws)
    for each in every_draw(frame):
        assert each.weights @ np.array(predicted)[each.steps] == pytest.approx(sum(predicted))
        assert len(set(each.steps)) == len(each.steps) == min(draws, len(predicted))
        assert (each.weights[: each.certain] == 1).all()
        assert (each.weights > 1 - 1e-9).all()


@given(WHOLE, DRAWS)
def test_a_step_of_an_interval_or_more_is_certain(predicted, draws):
    assert set(traffic.frame(steps_of(predicted), draws).certain) == certain_steps(predicted, draws)


def test_a_draw_takes_the_step_under_each_point():
    drawn = traffic.frame(steps_of([1, 2, 3, 2]), 2).draw(0.9)  # points 3.6 and 7.6 of the order 1, 2, 2, 3
    assert drawn.steps.tolist() == [3, 2]
    assert drawn.weights.tolist() == [2.0, 4 / 3]


def test_a_step_under_two_points_is_returned_once_with_the_weight_of_both():
    frame = traffic.Frame(
        certain=np.array([], int), others=np.array([1, 0]), predicted_s=np.array([3.0, 1.0]),
        ends_s=np.array([3.0, 4.0]), draws=4,
    )  # fmt: skip
    drawn = frame.draw(0.5)
    assert drawn.steps.tolist() == [1, 0]
    assert drawn.weights.tolist() == [1.0, 1.0]


def test_as_many_draws_as_steps_measure_every_step_once():
    drawn = traffic.draw(steps_of([3, 1, 2]), 5, seed=0)
    assert (drawn.certain, drawn.steps.tolist(), drawn.weights.tolist()) == (3, [0, 1, 2], [1, 1, 1])


def test_steps_are_ordered_by_kind_requests_query_tokens_and_seconds():
    steps = steps_of(
        [5, 4, 3, 2, 1, 6], kinds=[1, 0, 0, 0, 0, 0], requests=[1, 9, 8, 3, 2, 2], max_q=[9, 1, 1, 2, 5, 3]
    )
    assert traffic.frame(steps, 1).others.tolist() == [3, 5, 4, 2, 1, 0]


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


def test_the_mix_counts_every_step_once_by_kind_and_by_context():
    steps = steps_of([1, 2, 3, 4], kinds=[0, 0, 2, 1], context=[0.5, 1023, 1024, 2047])
    mix = traffic.mix(steps)
    assert [(part.kind, part.steps, part.predicted_s) for part in mix.by_kind] == [
        (StepKind.DECODE, 2, 3.0), (StepKind.PREFILL, 1, 4.0), (StepKind.MIXED, 1, 3.0),
    ]  # fmt: skip
    assert [(part.context, part.predicted_s) for part in mix.by_context] == [
        ((1, 2), 1.0), ((512, 1024), 2.0), ((1024, 2048), 7.0),
    ]  # fmt: skip
    parts = (*mix.by_kind, *mix.by_context)
    assert [part.name for part in parts] == ["decode", "prefill", "mixed", "1..2", "512..1k", "1k..2k"]
    assert all(part.measured_s is None for part in parts)


def test_the_measured_mix_sums_to_the_estimated_total():
    steps, costs = made_steps(2000)
    drawn = traffic.draw(steps, 64, seed=3)
    times = costs["loop"][drawn.steps]
    mix = traffic.mix(steps, drawn, times)
    for parts in (mix.by_kind, mix.by_context):
        assert sum(part.measured_s or 0 for part in parts) == pytest.approx(drawn.weights @ times)
        assert sum(part.steps for part in parts) == len(steps.kinds)
    octaves = {int(np.log2(context)) for context in steps.context[drawn.steps]}
    assert {int(np.log2(part.context[0])) for part in mix.by_context if part.measured_s is not None} == octaves
    assert any(part.measured_s is None for part in mix.by_context)
    decode = steps.kinds[drawn.steps] == KINDS.index(StepKind.DECODE)
    assert mix.by_kind[0].measured_s == pytest.approx((drawn.weights * times)[decode].sum())
