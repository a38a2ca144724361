"""How many leading rounds are warm-up, on series with a known answer and on noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.analysis.warmup import warmup_of_arm, warmup_rounds

STEADY = [1.000, 1.003, 0.999, 1.002, 1.001, 1.000, 0.998, 1.002]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (STEADY, 0),
        ([1.2, *STEADY], 0),  # a single disturbance
        ([1.000, 1.003, 1.25, 1.26, 1.002, 0.999, 1.001, 1.002], 0),  # a burst
        ([1.10, 1.11, 1.10, *STEADY], 3),
        ([0.90, 0.91, 0.90, *STEADY], 3),  # slower when warm
        ([1.10, 1.06, 1.04, 1.02, 1.012, *STEADY], 5),
        ([1.2, 1.1, 1.05, 1.02], 0),  # too few rounds for a trend
        ([1.10, 1.06, 1.04, 1.02, 1.012, None, *STEADY], 0),
        ([1.10, 1.06, 1.04, 1.02, 1.012, 0.0, *STEADY], 0),
        ([], 0),
    ],
)
def test_the_rounds_before_the_time_is_steady_are_warm_up(times: list[float | None], expected: int) -> None:
    assert warmup_of_arm(times) == expected


def test_the_arm_that_warms_up_longest_decides_for_all() -> None:
    slow = [1.10, 1.11, 1.10, *STEADY]
    assert warmup_rounds([STEADY, slow, [1.1, *STEADY]]) == warmup_rounds([slow]) == 3
    assert warmup_rounds([]) == 0


def _noise(source: np.random.Generator, kind: str, rounds: int) -> np.ndarray:
    if kind == "heavy tails":
        return 0.01 * np.abs(source.standard_t(2, rounds))
    spikes = 0.25 * (source.random(rounds) < 0.1) if kind == "spikes" else 0.0
    return source.normal(0, 0.003 if kind == "quiet" else 0.01, rounds) + spikes


def _measured(logs: np.ndarray) -> tuple[float, int]:
    """The logarithm of the time that five rounds give, and how many rounds were excluded before them."""
    for rounds in range(5, len(logs)):
        excluded = warmup_of_arm(np.exp(logs[:rounds]).tolist())
        if rounds - excluded >= 5:
            return float(np.median(logs[excluded:rounds])), excluded
    raise AssertionError("never steady")


@pytest.mark.parametrize(("kind", "most"), [("quiet", 0.1), ("normal", 0.5), ("heavy tails", 0.5), ("spikes", 0.5)])
def test_noise_costs_few_rounds_and_moves_no_time(kind: str, most: float) -> None:
    source = np.random.default_rng(3)
    truth = float(np.median(_noise(source, kind, 20_000)))
    measured = [_measured(_noise(source, kind, 60)) for _ in range(300)]
    plain = [float(np.median(_noise(source, kind, 5))) for _ in range(300)]
    assert np.mean([excluded for _, excluded in measured]) <= most
    errors = np.array([time for time, _ in measured]) - truth
    assert abs(np.median(errors)) <= 0.002
    assert np.quantile(np.abs(errors), 0.9) <= 1.25 * np.quantile(np.abs(np.array(plain) - truth), 0.9)


# Bias of the median of five rounds: without the exclusion, and the bound with it.
@pytest.mark.parametrize(
    ("size", "length", "without", "bound"),
    [(0.1, 2, 0.035, 0.01), (0.3, 3, 0.14, 0.015), (0.1, 5, 0.06, 0.025), (-0.1, 2, 0.035, 0.01)],
)
def test_an_exponential_warm_up_is_excluded(size: float, length: float, without: float, bound: float) -> None:
    source = np.random.default_rng(4)
    trend = size * np.exp(-np.arange(120) / length)
    series = [trend + _noise(source, "normal", 120) for _ in range(200)]
    plain = abs(np.mean([np.median(logs[:5]) for logs in series]))
    assert plain >= without
    assert abs(np.mean([_measured(logs)[0] for logs in series])) <= bound


def test_a_step_is_excluded_to_its_end() -> None:
    source = np.random.default_rng(5)
    for length in (2, 3, 4):
        step = math.log(1.1) * (np.arange(2 * length + 1) < length)
        series = [np.exp(step + _noise(source, "quiet", 2 * length + 1)) for _ in range(50)]
        assert np.mean([warmup_of_arm(times.tolist()) == length for times in series]) >= 0.9
