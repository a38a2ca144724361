"""Where the time of traffic goes, with intervals."""

import numpy as np
import pytest

from attnbench.analysis import traffic, traffic_mix
from attnbench.suite.serving.simulation import KINDS, StepKind
from tests.analysis.made_steps import made_steps
from tests.analysis.test_traffic import steps_of


def test_the_mix_counts_every_step_once_by_kind_and_by_context():
    steps = steps_of([1, 2, 3, 4], kinds=[0, 0, 2, 1], context=[0.5, 1023, 1024, 2047])
    mix = traffic_mix.mix(steps)
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
    mix = traffic_mix.mix(steps, drawn, times[:, None])
    for parts in (mix.by_kind, mix.by_context):
        assert sum(part.measured_s or 0 for part in parts) == pytest.approx(drawn.weights @ times)
        assert sum(part.steps for part in parts) == len(steps.kinds)
    octaves = {int(np.log2(context)) for context in steps.context[drawn.steps]}
    assert {int(np.log2(part.context[0])) for part in mix.by_context if part.measured_s is not None} == octaves
    assert any(part.measured_s is None for part in mix.by_context)
    decode = steps.kinds[drawn.steps] == KINDS.index(StepKind.DECODE)
    assert mix.by_kind[0].measured_s == pytest.approx((drawn.weights * times)[decode].sum())


def test_a_share_has_an_interval_where_enough_of_its_steps_were_drawn():
    steps, costs = made_steps(2000)
    drawn = traffic.draw(steps, 64, seed=3)
    mix = traffic_mix.mix(steps, drawn, np.repeat(costs["loop"][drawn.steps][:, None], 2, axis=1))
    for parts in (mix.by_kind, mix.by_context):
        assert sum(part.drawn for part in parts) == len(drawn.steps)
        assert sum(part.share.value for part in parts if part.share) == pytest.approx(1)
        for part in parts:
            assert (part.share is None) == (part.drawn == 0)
            if part.share and part.drawn < traffic_mix.MIN_STEPS:
                assert part.share.low is part.share.high is None
            elif part.share:
                assert part.share.low < part.share.value < part.share.high <= 1


def test_a_part_takes_what_was_measured_for_another():
    steps, costs = made_steps(2000)
    drawn = traffic.draw(steps, 64, seed=3)
    measured, *_ = traffic_mix.mix(steps, drawn, costs["loop"][drawn.steps][:, None]).by_kind
    planned, *_ = traffic_mix.mix(steps).by_kind
    assert traffic_mix.measured_as(planned, measured) == measured
    nothing = traffic_mix.measured_as(measured, None)
    assert (nothing.drawn, nothing.measured_s, nothing.share, nothing.steps) == (0, None, None, measured.steps)
