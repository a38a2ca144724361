"""Intervals and tests over restarts that may be repeated as restarts are added, Holm's correction, and a bootstrap.

Effects are logarithms of head over base, one per restart. A case is looked at several times. The looks share the
allowed error (`stats.looks`), and the intervals are repeated confidence intervals (Jennison and Turnbull 1989,
https://doi.org/10.1111/j.2517-6161.1989.tb01433.x).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from attnbench.analysis import stats
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import CONFIDENCE, t_quantile

LOOKS = {4: 0.10, 6: 0.15, 9: 0.15, 13: 0.15, 18: 0.15, 26: 0.30}  # restarts of a look: its share of the allowed error
SPREAD_CONFIDENCE = 0.9  # that a case is too noisy, before it gets no more restarts

Key = TypeVar("Key")


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean of logarithms over restarts with its t interval; unbounded for a single restart."""

    value: float
    low: float = -math.inf
    high: float = math.inf
    sd: float = math.nan

    @property
    def relative(self) -> tuple[float, float] | None:
        """Both ends as relative changes; None for an unbounded interval."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        return math.expm1(self.low), math.expm1(self.high)


def looks(restarts: int) -> Iterator[tuple[int, float]]:
    """The looks at so many restarts; the last one takes place early where the budget ended."""
    return stats.looks(LOOKS, restarts)


def until_next_look(restarts: int) -> int:
    """How many more restarts the next look needs; 0 after the last one."""
    return next((look - restarts for look in LOOKS if look > restarts), 0)


def half_width(restarts: int, confidence: float = CONFIDENCE) -> float:
    """Half the width of the interval at the look with so many restarts, in standard deviations between restarts."""
    *_, (count, share) = looks(restarts)
    return t_quantile(count - 1, 1 - (1 - confidence) * share) / math.sqrt(count)


def last_look(alpha: float) -> float:
    """How far a mean must exceed its bound at the last look to reject at `alpha`, in standard deviations."""
    restarts, share = next(reversed(LOOKS.items()))
    return t_quantile(restarts - 1, 1 - 2 * alpha * share) / math.sqrt(restarts)


def interval(effects: Sequence[float], inflation: float = 1.0, confidence: float = CONFIDENCE) -> Interval:
    """The mean of the effects and its interval, which holds at every look; `inflation` multiplies standard errors."""
    values = np.asarray(effects[: max(LOOKS)], dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Interval(value=mean)
    sd = float(values.std(ddof=1))
    half = inflation * half_width(count, confidence) * sd
    return Interval(value=mean, low=mean - half, high=mean + half, sd=sd)


def smallest_sd(effects: ArrayLike) -> Floats:
    """The lower bound of the standard deviation between restarts at `SPREAD_CONFIDENCE`; over the last axis."""
    from scipy.special import chdtri

    values = np.asarray(effects, dtype=np.float64)
    free = values.shape[-1] - 1
    if free < 1:
        return np.zeros(values.shape[:-1])
    quantile = float(chdtri(free, 1 - SPREAD_CONFIDENCE))
    return np.asarray(values.std(axis=-1, ddof=1)) * math.sqrt(free / quantile)


def chance_beyond(effects: ArrayLike, bound: float | Floats, inflation: float = 1.0) -> Floats:
    """The chance that the mean at the last look is further from 0 than the bound, over the last axis.

    Predicted from the mean and the spread so far: means of further restarts of the same kind, with nothing else known.
    """
    from scipy.special import stdtr

    values = np.asarray(effects, dtype=np.float64)
    count, last = values.shape[-1], max(LOOKS)
    if not 1 < count < last:
        return np.ones(values.shape[:-1])
    sd = np.maximum(inflation * values.std(axis=-1, ddof=1) * math.sqrt(1 / count - 1 / last), 1e-12)
    return np.asarray(stdtr(count - 1, (np.abs(values.mean(axis=-1)) - bound) / sd))


def p_above(effects: ArrayLike, bound: float | Floats, inflation: float | Floats = 1.0) -> Floats:
    """The p-value of H0: the mean effect is at most the bound. One-sided t over the last axis; 1 for one restart."""
    from scipy.special import stdtr

    values = np.asarray(effects, dtype=np.float64)
    count = values.shape[-1]
    if count < 2:
        return np.ones(values.shape[:-1])
    beyond, sd = values.mean(axis=-1) - bound, values.std(axis=-1, ddof=1)
    still = sd <= 1e-12 * np.maximum(1.0, np.abs(beyond + bound))  # t is undefined, and the comparison is exact
    p = stdtr(count - 1, -beyond / np.where(still, 1.0, inflation * sd / math.sqrt(count)))
    return np.where(still, np.where(beyond > 0, 0.0, 1.0), p)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values adjusted for their number (Holm 1979): rejecting those below alpha keeps any false rejection at alpha.

    https://www.jstor.org/stable/4615733
    """
    adjusted = holm_adjusted(np.array(list(p_values.values()), dtype=np.float64))
    return dict(zip(p_values, map(float, adjusted), strict=True))


def holm_adjusted(p_values: Floats) -> Floats:
    """`holm` over the last axis."""
    order = np.argsort(p_values, axis=-1)
    scaled = np.take_along_axis(p_values, order, axis=-1) * np.arange(p_values.shape[-1], 0, -1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(scaled, axis=-1), 1.0), axis=-1)
    return adjusted


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
