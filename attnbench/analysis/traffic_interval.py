"""Intervals of what is estimated from drawn steps: totals of a trace, their ratios, and shares of a total.

They are on logarithms. The variance of a stratum is that of its draws as if they were independent, which systematic
draws make smaller (Wolter, Introduction to Variance Estimation, 2007, chapter 8). Certain steps add the variance of
their rounds; for others it is within the spread of their stratum. Degrees of freedom are Satterthwaite's
(https://doi.org/10.2307/3002019): few where a few steps dominate.

A t interval is too short where rare steps were not drawn. By the rule of three (Hanley and Lippman-Hand, 1983,
https://doi.org/10.1001/jama.1983.03330370053031), 3/n of a stratum of n draws may be steps of which none was drawn. An
interval contains at least the case that these are as the most extreme step that was drawn there.
"""

from collections.abc import Sequence

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


def _extremes(drawn: Draw, influences: Floats) -> tuple[float, float]:
    """How far the lowest and the highest influence of a stratum are from its mean, at most over strata."""
    sampled, down, up = influences[drawn.certain :], 0.0, 0.0
    for places in drawn.by_stratum:
        of_stratum = sampled[places]
        middle = float(of_stratum.mean())
        down, up = max(down, middle - float(of_stratum.min())), max(up, float(of_stratum.max()) - middle)
    return down, up


def _spread(drawn: Draw, influences: Floats, noise: Floats) -> tuple[float, float] | None:
    """The variance and its degrees of freedom; None where one drawn step or one round gives none."""
    sampled, certain = influences[drawn.certain :], noise[: drawn.certain]
    rounds = np.isfinite(certain).sum(axis=1)
    if len(sampled) == 1 or (rounds < 2).any():
        return None
    of_rounds = np.nanvar(certain, axis=1, ddof=1) / rounds if drawn.certain else np.empty(0)
    variance, doubt = float(of_rounds.sum()), float((of_rounds**2 / (rounds - 1)).sum())
    for group in _pooled(drawn.by_stratum):
        squares = (sampled[group] - sampled[group].mean()) ** 2
        between = float(squares.sum()) * len(group) / (len(group) - 1)
        if between:
            freedom = min(float(squares.sum()) ** 2 / float((squares**2).sum()), len(group) - 1)
            variance, doubt = variance + between, doubt + between**2 / freedom
    return (variance, max(variance**2 / doubt, 1.0)) if variance else (0.0, 1.0)


def _pooled(by_stratum: Sequence[Integers]) -> list[Integers]:
    """Places of the drawn steps of each stratum; as long as one is small, it is joined to its smaller neighbour."""
    groups = list(by_stratum)
    while len(groups) > 1 and min(map(len, groups)) < MIN_POOLED:
        place = min(range(len(groups)), key=lambda each: len(groups[each]))
        beside = [each for each in (place - 1, place + 1) if 0 <= each < len(groups)]
        left = min(place, min(beside, key=lambda each: len(groups[each])))
        groups[left : left + 2] = [np.concatenate(groups[left : left + 2])]
    return groups
