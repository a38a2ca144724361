"""Intervals of what is estimated from drawn steps: totals of a trace, their ratios, and shares of a total.

They are on logarithms. The variance of a stratum is that of its draws as if they were independent, which systematic
draws make smaller (Wolter, Introduction to Variance Estimation, 2007, chapter 8). Certain steps add the variance of
their rounds; for others it is within the spread of their stratum. Degrees of freedom are Satterthwaite's
(https://doi.org/10.2307/3002019): few where a few steps dominate.

A t interval is too short where rare steps were not drawn. By the rule of three (Hanley and Lippman-Hand, 1983,
https://doi.org/10.1001/jama.1983.03330370053031), 3/n of a stratum of n draws may be steps of which none was drawn. An
interval contains at least the case that these are as the most extreme step that was drawn there.
"""

from functools import lru_cache

import msgspec
import numpy as np

from attnbench.analysis import stats
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Estimate, Method, Over
from attnbench.analysis.traffic import Draw, Integers

MIN_STEPS = 40  # drawn steps for an interval, unless these are all steps: docs/serving.md has the coverage
MIN_POOLED = 4  # draws that give a variance: smaller strata are joined
UNSEEN = 3.0  # the rule of three


def logarithms(times_s: Floats) -> Floats:
    """Of times; an impossible one counts as no reading."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs: Floats = np.log(times_s)
    return logs


def mean(logs: Floats) -> Floats:
    """Over the last axis, of finite values; NaN where there is none."""
    counts = np.isfinite(logs).sum(axis=-1)
    sums = np.where(np.isfinite(logs), logs, 0.0).sum(axis=-1)
    means: Floats = np.where(counts, sums, np.nan) / np.maximum(counts, 1)
    return means


def missing(drawn: Draw) -> int:
    """How many more steps must be drawn for intervals."""
    return max(MIN_STEPS - len(drawn.steps), 0) if len(drawn.strata) else 0


def interval(drawn: Draw, value: float, influences: Floats, noise: Floats, unseen: float = 0.0) -> Estimate:
    """The interval of log(value), exponentiated; without ends where too few steps were drawn.

    influences: [drawn steps], relative change of the value with a step; noise: [drawn steps, rounds], by round.
    unseen: of steps that were not drawn, as a change of log(value) if one draw were like them.
    """
    log = Estimate(value=float(np.log(value)), over=Over.STEPS, count=len(influences))
    spread = None if missing(drawn) else _spread(drawn, influences, noise)
    if spread is None:
        return stats.exponential(log)
    variance, freedom = spread
    half = stats.t_quantile(freedom) * float(np.sqrt(variance))
    down, up = _extremes(drawn, influences)
    ends = {"low": log.value - max(half, UNSEEN * down), "high": log.value + max(half, UNSEEN * max(up, unseen))}
    return stats.exponential(msgspec.structs.replace(log, **ends, method=Method.T, confidence=stats.CONFIDENCE))


class _Groups(msgspec.Struct, frozen=True):
    """Drawn steps in groups, each of neighbours."""

    sizes: Integers
    starts: Integers

    def sums(self, values: Floats) -> Floats:
        """Of the values of each group."""
        sums: Floats = np.add.reduceat(values, self.starts)
        return sums


def _extremes(drawn: Draw, influences: Floats) -> tuple[float, float]:
    """How far the lowest and the highest influence of a stratum are from its mean, at most over strata."""
    if not drawn.sizes:
        return 0.0, 0.0
    sampled, strata = influences[drawn.certain :], _groups(drawn.sizes)
    means = strata.sums(sampled) / strata.sizes
    down = means - np.minimum.reduceat(sampled, strata.starts)
    up = np.maximum.reduceat(sampled, strata.starts) - means
    return max(float(down.max()), 0.0), max(float(up.max()), 0.0)


def _spread(drawn: Draw, influences: Floats, noise: Floats) -> tuple[float, float] | None:
    """The variance and its degrees of freedom; None where one drawn step or one round gives none."""
    sampled, certain = influences[drawn.certain :], noise[: drawn.certain]
    if len(sampled) == 1:
        return None
    variance = doubt = 0.0
    if len(certain):
        finite = np.isfinite(certain)
        rounds = finite.sum(axis=1)
        if (rounds < 2).any():
            return None
        squares = np.where(finite, certain - mean(certain)[:, None], 0.0) ** 2
        of_rounds = squares.sum(axis=1) / (rounds - 1) / rounds
        variance, doubt = float(of_rounds.sum()), float((of_rounds**2 / (rounds - 1)).sum())
    if drawn.sizes:
        pooled = _groups(drawn.sizes, MIN_POOLED)
        squares = (sampled - np.repeat(pooled.sums(sampled) / pooled.sizes, pooled.sizes)) ** 2
        sums, fourths = pooled.sums(squares), pooled.sums(squares**2)
        varied = sums > 0
        between = (sums * pooled.sizes / (pooled.sizes - 1))[varied]
        freedom = np.minimum(sums[varied] ** 2 / fourths[varied], pooled.sizes[varied] - 1)
        variance, doubt = variance + float(between.sum()), doubt + float((between**2 / freedom).sum())
    return (variance, max(variance**2 / doubt, 1.0)) if variance else (0.0, 1.0)


@lru_cache(maxsize=64)  # each interval of a draw needs the same ones
def _groups(strata: tuple[int, ...], least: int = 1) -> _Groups:
    """The drawn steps by stratum; as long as one has fewer than `least`, it is joined to its smaller neighbour."""
    sizes = list(strata)
    while len(sizes) > 1 and min(sizes) < least:
        place = sizes.index(min(sizes))
        beside = [each for each in (place - 1, place + 1) if 0 <= each < len(sizes)]
        left = min(place, min(beside, key=sizes.__getitem__))
        sizes[left : left + 2] = [sizes[left] + sizes[left + 1]]
    counts = np.array(sizes)
    return _Groups(counts, np.cumsum(counts) - counts)
