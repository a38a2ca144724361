"""Estimates with intervals, and ratios of two arms; the restart is the unit of replication.

Blocks of one restart share a memory layout and a machine state, so their spread says little about the next restart
(Kalibera and Jones, https://kar.kent.ac.uk/33611/). Every Estimate therefore names what it is over. Values that are not
finite are left out, and a ratio uses positive times only; nothing else is ever dropped.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache

import msgspec
import numpy as np

from attnbench.analysis.readings import LOCATIONS, Floats, block_medians, by_round, finite, round_locations
from attnbench.records.result import Sample

CONFIDENCE = 0.95
MAX_LOG = 700.0  # exp of more overflows: the interval then has no upper end

Pair = tuple[Sample, Sample]  # two arms in the rounds of one restart


class Method(StrEnum):
    """How an interval was computed."""

    NONE = "none"  # too few values for an interval
    RANGE = "range"  # minimum to maximum: too few values for the 95 % interval
    ORDER = "order statistics"  # of the median, without assuming a distribution
    T = "t"  # Student's t on logarithms
    BOUNDS = "bounds"  # the ends of two other intervals, divided


class Over(StrEnum):
    """The unit of replication of an interval."""

    BLOCKS = "blocks"
    ROUNDS = "rounds"
    RESTARTS = "restarts"
    CASES = "cases"
    POINTS = "points"
    STEPS = "steps"


class Estimate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A value with its interval, in the unit of what it was computed from."""

    value: float
    low: float | None = None
    high: float | None = None
    method: Method = Method.NONE
    confidence: float = 0.0  # the actual coverage, which differs from 0.95 where values are few
    over: Over = Over.BLOCKS
    count: int = 1  # of `over`

    @property
    def label(self) -> str:
        """`within one restart`, which says nothing about the next one, or for example `over 6 restarts`."""
        within = self.over in (Over.BLOCKS, Over.ROUNDS)
        return "within one restart" if within else f"over {self.count} {self.over}"

    @property
    def relative_half_width(self) -> float | None:
        """Half the width of the interval as a share of the value."""
        if self.low is None or self.high is None or not self.value:
            return None
        return (self.high - self.low) / 2 / abs(self.value)


def estimate(samples: Sequence[Sample]) -> Estimate | None:
    """The time of a case from one Sample per restart: over restarts if there are two, else within the only one."""
    medians = [values for sample in samples if len(values := finite(block_medians(sample)))]
    if not medians:
        return None
    if len(medians) == 1:
        return median_estimate(medians[0], Over.BLOCKS)
    locations = np.array([LOCATIONS["median"](values) for values in medians])
    if locations.min() <= 0:  # an impossible time has no logarithm, and is shown as it was read
        low, high = float(locations.min()), float(locations.max())
        value = float(np.median(locations))
        return Estimate(value=value, low=low, high=high, method=Method.RANGE, over=Over.RESTARTS, count=len(locations))
    return exponential(t_estimate(np.log(locations), Over.RESTARTS))


def precise_enough(sample: Sample, rel_ci: float) -> bool:
    """Whether the 95 % half-width of a restart is at most `rel_ci` of its time. Never a test of significance."""
    medians = finite(block_medians(sample))
    if len(medians) < 2:
        return False
    width = median_estimate(medians, Over.BLOCKS).relative_half_width
    return width is not None and width <= rel_ci


def median_estimate(values: Floats, over: Over) -> Estimate:
    """The median and its interval from order statistics; minimum to maximum where those do not reach 95 %."""
    ordered, count = np.sort(values), len(values)
    value = LOCATIONS["median"](ordered)
    if count < 2:
        return Estimate(value=value, over=over, count=count)
    rank_95 = order_rank(count)
    rank = max(rank_95, 1)
    return Estimate(
        value=value,
        low=float(ordered[rank - 1]),
        high=float(ordered[count - rank]),
        method=Method.ORDER if rank_95 else Method.RANGE,
        confidence=_coverage(count, rank),
        over=over,
        count=count,
    )


@cache
def _coverage(count: int, rank: int) -> float:
    """How often the median is between the values of this rank from below and above."""
    outside: float = sum(math.comb(count, k) for k in range(rank)) / 2 ** (count - 1)
    return 1 - outside


@cache
def order_rank(count: int) -> int:
    """The highest k for which the k-th lowest and k-th highest value hold the median with 95 %; 0 if there is none."""
    rank, outside = 0, 0.0
    while outside <= 1 - CONFIDENCE:
        outside += math.comb(count, rank) / 2 ** (count - 1)
        rank += 1
    return rank - 1


@cache
def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Standard errors in the half-width of a two-sided t interval."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def looks(shares: Mapping[int, float], count: int) -> Iterator[tuple[int, float]]:
    """The looks at so many values: the values counted at each, and its share of the allowed error.

    `shares` are those of the planned looks, by number of values, and add up to 1: by Boole's inequality all looks
    together err no more often than allowed, whatever the rule that stops them (alpha spending, Lan and DeMets 1983,
    https://doi.org/10.1093/biomet/70.3.659). The last one takes place early where there are fewer values than planned.
    """
    for look, share in shares.items():
        yield min(look, count), share
        if look >= count:
            return


def t_estimate(values: Floats, over: Over, confidence: float = CONFIDENCE) -> Estimate:
    """The mean and its t interval."""
    count = len(values)
    value = float(values.sum()) / count
    if count < 2:
        return Estimate(value=value, over=over, count=count)
    centred = values - value
    half = t_quantile(count - 1, confidence) * math.sqrt(float(centred @ centred) / (count - 1) / count)
    ends = {"low": value - half, "high": value + half}
    return Estimate(value=value, **ends, method=Method.T, confidence=confidence, over=over, count=count)


def geometric_mean(values: Iterable[float | None]) -> Estimate | None:
    """The geometric mean over cases, with a t interval on logarithms."""
    positive = finite(values)
    positive = positive[positive > 0]
    return exponential(t_estimate(np.log(positive), Over.CASES)) if len(positive) else None


def exponential(log: Estimate) -> Estimate:
    """The estimate of a value from that of its logarithm; an end above MAX_LOG is None."""
    low, high = (None if end is None or end > MAX_LOG else math.exp(end) for end in (log.low, log.high))
    return msgspec.structs.replace(log, value=math.exp(log.value), low=low, high=high)


def log_ratios(above: Sample, below: Sample, within: str = "median") -> Floats:
    """log(above / below) of each round that both took part in, in order; `within`: the location of a block."""
    over, under = (
        by_round(sample) if within == "median" else round_locations(sample, within) for sample in (above, below)
    )
    shared = [number for number in sorted(over.keys() & under.keys()) if over[number] > 0 and under[number] > 0]
    return np.array([math.log(over[number]) - math.log(under[number]) for number in shared], dtype=np.float64)


def ratio(pairs: Sequence[Pair]) -> Estimate | None:
    """The paired ratio of two arms from one pair of Samples per restart, with a t interval on logarithms.

    A restart gives one value, the mean of its log-ratios over rounds. With one restart the interval is over rounds.
    """
    restarts = [logs for above, below in pairs if len(logs := log_ratios(above, below))]
    if not restarts:
        return None
    if len(restarts) == 1:
        return exponential(t_estimate(restarts[0], Over.ROUNDS))
    return exponential(t_estimate(np.array([np.mean(logs) for logs in restarts]), Over.RESTARTS))


def unpaired_ratio(above: Estimate, below: Estimate) -> Estimate | None:
    """The ratio of two estimates that share no rounds. Its interval is wide, since no noise cancels."""
    if above.value <= 0 or below.value <= 0:
        return None
    quotient = Estimate(value=above.value / below.value, over=below.over, count=min(above.count, below.count))
    if above.low is None or above.high is None or not below.low or not below.high:
        return quotient
    return msgspec.structs.replace(
        quotient,
        low=above.low / below.high,
        high=above.high / below.low,
        method=Method.BOUNDS,
        confidence=max(above.confidence + below.confidence - 1, 0.0),
    )


def quotient_outside(above: float, below: float, low: float | None, high: float | None, digits: int = 2) -> bool:
    """Whether above / below lies outside the interval of a paired ratio, both rounded to the digits that are printed.

    That ratio pairs readings of the same rounds; the two values are each over all rounds.
    """
    if low is None or high is None or below <= 0:
        return False
    quotient, lowest, highest = (float(f"{value:.{digits}g}") for value in (above / below, low, high))
    return not lowest <= quotient <= highest


def local_slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """The exponent between each point and the next, of positive numbers."""
    return [float(slope) for slope in np.diff(np.log(y)) / np.diff(np.log(x))]


def power_law(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The exponent b of y = a x^b: least squares of the logarithms, with a t interval on n - 2 degrees of freedom.

    The scatter about the line contains noise and curvature. Three points or more give an interval.
    """
    log_x, log_y = np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64))
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ log_y) / spread
    count = len(log_x)
    if count < 3:
        return Estimate(value=slope, over=Over.POINTS, count=count)
    residuals = log_y - log_y.mean() - slope * centred
    error = math.sqrt(float(residuals @ residuals) / (count - 2) / spread)
    half = t_quantile(count - 2) * error
    ends = {"low": slope - half, "high": slope + half}
    return Estimate(value=slope, **ends, method=Method.T, confidence=CONFIDENCE, over=Over.POINTS, count=count)
