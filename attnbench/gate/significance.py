"""Intervals and tests over restarts: Student's t, Holm's correction, and a bootstrap over cases.

Effects are logarithms of head over base, one per restart.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from attnbench.analysis.stats import CONFIDENCE, t_quantile

NOISE_CONFIDENCE = 0.99  # 99 of 100 means of equal arms lie within

Key = TypeVar("Key")


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean of logarithms over restarts with its t interval; unbounded for a single restart."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    sd: float = math.nan

    @property
    def half_width(self) -> float:
        """Half the width in logarithms; for small changes, a share."""
        return (self.high - self.low) / 2

    @property
    def relative(self) -> tuple[float, float] | None:
        """Both ends as relative changes; None for an unbounded interval."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return math.expm1(self.low), math.expm1(self.high)


def interval(effects: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of the effects and its t interval."""
    values = np.asarray(effects, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(value=mean)
    sd = float(values.std(ddof=1))
    half = t_quantile(count - 1, confidence) * sd / math.sqrt(count)
    return Interval(value=mean, low=mean - half, high=mean + half, sd=sd)


def p_above(effects: Sequence[float], margin: float) -> float:
    """The p-value of H0: the mean effect is at most the margin. One-sided t over restarts; 1 for a single restart."""
    from scipy.special import stdtr

    values = np.asarray(effects, dtype=np.float64)
    count = len(values)
    if count < 2:
        return 1.0
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if sd <= 1e-12 * max(1.0, abs(mean)):  # no variation: t is undefined, and the comparison is exact
        return 0.0 if mean > margin else 1.0
    return float(stdtr(count - 1, -(mean - margin) / (sd / math.sqrt(count))))


def p_below(effects: Sequence[float], margin: float) -> float:
    """The p-value of H0: the mean effect is at least minus the margin."""
    return p_above([-effect for effect in effects], margin)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values adjusted for their number (Holm 1979): rejecting those below alpha keeps any false rejection at alpha.

    https://www.jstor.org/stable/4615733
    """
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def normal_factor(restarts: int) -> float:
    """How many standard errors hold the mean of that many normal restarts 99 times of 100."""
    return t_quantile(restarts - 1, NOISE_CONFIDENCE)


def geometric_mean(effects: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The geometric mean of the ratios over cases with a bootstrap interval over cases.

    It shows a uniform change of 1 %, which no single case can show.
    """
    from scipy.stats import bootstrap

    values = np.asarray(effects, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 3 or np.ptp(values) == 0:
        return math.exp(mean), math.exp(float(values.min())), math.exp(float(values.max()))
    rng = np.random.default_rng(seed)
    ends = bootstrap((values,), np.mean, n_resamples=2000, method="BCa", rng=rng).confidence_interval
    return math.exp(mean), math.exp(float(ends.low)), math.exp(float(ends.high))
