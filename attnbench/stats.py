"""Intervals, ratios and noise of timed samples; the launch is the unit of replication.

Blocks of one launch share a memory layout and a state of the machine, so their spread says little about the next launch
(Kalibera and Jones, https://kar.kent.ac.uk/33611/). Every Estimate therefore says what it is over. Values that are not
finite are left out, and a ratio uses positive times alone; nothing else is ever dropped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import wraps
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.result import Block, Sample

CONFIDENCE = 0.95
NOISY_RATIO = 1.25
LOG_MOST = 700.0  # beyond it a float overflows: an interval without an upper end

REMEMBERED = 64

Made = TypeVar("Made")
Floats = NDArray[np.float64]
Pair = tuple[Sample, Sample]  # two arms in the rounds of one launch


class Method(StrEnum):
    """Where the ends of an interval come from."""

    NONE = "none"  # too few values for any
    RANGE = "range"  # least to most: too few values for the 95 % interval
    ORDER = "order statistics"  # of the median, free of any distribution
    T = "t"  # Student's t on logarithms
    BOUNDS = "bounds"  # the ends of two other intervals, divided


class Over(StrEnum):
    """What an interval is over."""

    BLOCKS = "blocks"
    ROUNDS = "rounds"
    LAUNCHES = "launches"
    CASES = "cases"
    POINTS = "points"


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A value with its interval, in the unit of what it was computed from."""

    value: float
    low: float | None = None
    high: float | None = None
    method: Method = Method.NONE
    confidence: float = 0.0  # what the interval really holds: more or less than 0.95 where values are few
    over: Over = Over.BLOCKS
    count: int = 1  # of `over`

    @property
    def label(self) -> str:
        """Whether the interval may be read as one of the machine, or only of this launch."""
        within = self.over in (Over.BLOCKS, Over.ROUNDS)
        return "within one launch" if within else f"over {self.count} {self.over}"

    @property
    def relative_half_width(self) -> float | None:
        """Half the interval as a share of the value."""
        if self.low is None or self.high is None or not self.value:
            return None
        return (self.high - self.low) / 2 / abs(self.value)

    @property
    def inverse(self) -> Estimate:
        """The same of one over the value; for ratios."""
        low, high = (1 / end if end else None for end in (self.high, self.low))
        return msgspec.structs.replace(self, value=1 / self.value, low=low, high=high)


class Stop(StrEnum):
    """Why a launch needs no more rounds."""

    PRECISION = "precision"  # the interval is narrow enough
    LAUNCHES = "launches"  # launches differ so much that more rounds would buy less than 12 %


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """How restless one launch was; None where there are too few blocks to say."""

    relative_iqr: float | None = None
    sd: float | None = None  # of log block medians
    trend: float | None = None  # Spearman's rho over rounds: drift
    trend_p: float | None = None
    autocorrelation: float | None = None  # lag 1, over rounds
    position_effect: float | None = None  # log(last position / first position); 0 if the order plays no part
    tagged: dict[str, float] = {}  # share of blocks that carry each tag


def _mean_of_middle(values: Floats) -> float:
    """A fifth cut off at each end."""
    cut = len(values) // 5
    return float(np.mean(np.sort(values)[cut : len(values) - cut]))


def _hodges_lehmann(values: Floats) -> float:
    """Median of the means of all pairs, each value with itself too."""
    first, second = np.triu_indices(len(values))
    return float(np.median((values[first] + values[second]) / 2))


# Candidates, to be compared on A/A data: the mean is not the steadiest where tails are heavy upwards.
LOCATIONS: dict[str, Callable[[Floats], float]] = {
    "median": lambda values: statistics.median(values.tolist()),
    "mean": lambda values: float(np.mean(values)),
    "lower_quartile": lambda values: float(np.quantile(values, 0.25)),
    "trimmed_mean": _mean_of_middle,
    "hodges_lehmann": _hodges_lehmann,
    "least": lambda values: float(np.min(values)),
}


def location(values: Iterable[float | None], name: str = "median") -> float | None:
    """What one launch says: a location of its block medians."""
    kept = [value for value in values if value is not None and math.isfinite(value)]
    if name == "median":  # of few values, as a block has, much faster than numpy
        return statistics.median(kept) if kept else None
    return LOCATIONS[name](np.array(kept)) if kept else None


def finite(values: Iterable[float | None]) -> Floats:
    """The values that can be computed with."""
    kept = [value for value in values if value is not None and math.isfinite(value)]
    return np.array(kept, dtype=np.float64)


def _remembered(compute: Callable[[Sample], Made]) -> Callable[[Sample], Made]:
    """The same for the last few samples, which never change: each is asked for once by every rival of its arm."""
    kept: dict[int, tuple[Sample, Made]] = {}

    @wraps(compute)
    def of(sample: Sample) -> Made:
        found = kept.get(id(sample))
        if found and found[0] is sample:
            return found[1]
        value = compute(sample)
        if len(kept) >= REMEMBERED:
            kept.clear()
        kept[id(sample)] = sample, value
        return value

    return of


@_remembered
def block_medians(sample: Sample) -> Sequence[float | None]:
    """One value a block, in the order taken. Values outside any block count as blocks of one reading."""
    return [location(values) for _, values in by_block(sample)]


@_remembered
def by_round(sample: Sample) -> Mapping[int, float]:
    """The median of every round that has a finite reading."""
    return _located(sample, "median")


def _located(sample: Sample, name: str) -> dict[int, float]:
    readings: dict[int, list[float | None]] = {}
    for block, values in by_block(sample):
        readings.setdefault(block.round, []).extend(values)
    found = {number: location(values, name) for number, values in readings.items()}
    return {number: value for number, value in found.items() if value is not None}


def by_block(sample: Sample) -> list[tuple[Block, tuple[float | None, ...]]]:
    """Every block with its readings; values outside any block count as blocks of one reading."""
    cut, start = [], 0
    for block in sample.blocks:
        cut.append((block, sample.values[start : start + block.readings]))
        start += block.readings
    rest = enumerate(sample.values[start:], start=len(cut))
    return cut + [(Block(round=number, position=0, readings=1), (value,)) for number, value in rest]


def estimate(samples: Sequence[Sample], name: str = "median") -> Estimate | None:
    """The time of a case from one Sample a launch: over launches if there are two, else within the only one."""
    medians = [kept for sample in samples if len(kept := finite(block_medians(sample)))]
    if not medians:
        return None
    if len(medians) == 1:
        return _within_launch(medians[0], name)
    locations = np.array([LOCATIONS[name](kept) for kept in medians])
    if locations.min() <= 0:  # no logarithm: an impossible time, shown as it was read
        low, high = float(locations.min()), float(locations.max())
        value = float(np.median(locations))
        return Estimate(value=value, low=low, high=high, method=Method.RANGE, over=Over.LAUNCHES, count=len(locations))
    return _exp(t_estimate(np.log(locations), Over.LAUNCHES))


def _within_launch(medians: Floats, name: str) -> Estimate:
    if name == "median":
        return median_estimate(medians, Over.BLOCKS)
    return Estimate(value=LOCATIONS[name](medians), over=Over.BLOCKS, count=len(medians))


def median_estimate(values: Floats, over: Over) -> Estimate:
    """The median and its interval from order statistics; least to most where those do not reach 95 %."""
    ordered, count = np.sort(values), len(values)
    value = LOCATIONS["median"](ordered)
    if count < 2:
        return Estimate(value=value, over=over, count=count)
    below = order_rank(count)
    rank = max(below, 1)
    outside = sum(math.comb(count, k) for k in range(rank)) / 2 ** (count - 1)
    return Estimate(
        value=value,
        low=float(ordered[rank - 1]),
        high=float(ordered[count - rank]),
        method=Method.ORDER if below else Method.RANGE,
        confidence=1 - outside,
        over=over,
        count=count,
    )


def order_rank(count: int) -> int:
    """The highest rank k for which [k-th least, k-th most] holds the median with 95 %; 0 if there is none."""
    rank, outside = 0, 0.0
    while rank < count // 2:
        outside += math.comb(count, rank) / 2 ** (count - 1)
        if outside > 1 - CONFIDENCE:
            break
        rank += 1
    return rank


def t_estimate(values: Floats, over: Over) -> Estimate:
    """The mean and its t interval."""
    count, value = len(values), float(np.mean(values))
    if count < 2:
        return Estimate(value=value, over=over, count=count)
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / math.sqrt(count))
    ends = {"low": value - half, "high": value + half}
    return Estimate(value=value, **ends, method=Method.T, confidence=CONFIDENCE, over=over, count=count)


def _exp(log: Estimate) -> Estimate:
    low, high = (None if end is None or end > LOG_MOST else math.exp(end) for end in (log.low, log.high))
    return msgspec.structs.replace(log, value=math.exp(log.value), low=low, high=high)


def log_ratios(above: Sample, below: Sample, within: str = "median") -> Floats:
    """log(above / below) of every round that both took part in, in their order; `within`: the location of a block."""
    over, under = (by_round(one) if within == "median" else _located(one, within) for one in (above, below))
    shared = [number for number in sorted(over.keys() & under.keys()) if over[number] > 0 and under[number] > 0]
    return np.array([math.log(over[number]) - math.log(under[number]) for number in shared], dtype=np.float64)


def ratio(pairs: Sequence[Pair], name: str = "mean") -> Estimate | None:
    """The paired ratio of two arms, one pair of Samples a launch.

    A launch gives one value, a location of its log-ratios over rounds; a t interval is over launches. With one launch
    it is over rounds: t for the mean, order statistics for the median, none for the other locations.
    """
    launches = [logs for above, below in pairs if len(logs := log_ratios(above, below))]
    if not launches:
        return None
    if len(launches) > 1:
        return _exp(t_estimate(np.array([LOCATIONS[name](logs) for logs in launches]), Over.LAUNCHES))
    if name == "mean":
        return _exp(t_estimate(launches[0], Over.ROUNDS))
    if name == "median":
        return _exp(median_estimate(launches[0], Over.ROUNDS))
    return _exp(Estimate(value=LOCATIONS[name](launches[0]), over=Over.ROUNDS, count=len(launches[0])))


def unpaired_ratio(above: Estimate, below: Estimate) -> Estimate | None:
    """The ratio of two estimates that share no rounds; wide, since nothing cancels."""
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


def geometric_mean(values: Iterable[float | None]) -> Estimate | None:
    """Over cases, with a t interval on logarithms."""
    kept = finite(values)
    kept = kept[kept > 0]
    return _exp(t_estimate(np.log(kept), Over.CASES)) if len(kept) else None


def local_slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """The exponent between each point and the next, of positive numbers."""
    return [float(slope) for slope in np.diff(np.log(y)) / np.diff(np.log(x))]


def power_law(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The exponent b of y = a x^b: least squares of the logarithms, with a t interval on n - 2 degrees of freedom.

    The scatter about the line holds noise and curvature alike; from three points on there is an interval.
    """
    log_x, log_y = np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64))
    centred = log_x - log_x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ log_y) / spread
    count = len(log_x)
    if count < 3:
        return Estimate(value=slope, over=Over.POINTS, count=count)
    from scipy.special import stdtrit

    residuals = log_y - log_y.mean() - slope * centred
    error = math.sqrt(float(residuals @ residuals) / (count - 2) / spread)
    half = float(stdtrit(count - 2, (1 + CONFIDENCE) / 2)) * error
    ends = {"low": slope - half, "high": slope + half}
    return Estimate(value=slope, **ends, method=Method.T, confidence=CONFIDENCE, over=Over.POINTS, count=count)


def percentile(sample: Sample, share: float) -> float | None:
    """A high percentile of all readings; None below 1 / (1 - share) readings, where it would only be the maximum."""
    kept = finite(sample.values)
    if len(kept) * (1 - share) < 1 - 1e-9:
        return None
    return float(np.quantile(kept, share))


def is_noisy(sample: Sample) -> bool:
    """Whether the median block took over 1.25 times the least."""
    kept = finite(block_medians(sample))
    return len(kept) > 0 and bool(LOCATIONS["median"](kept) > NOISY_RATIO * kept.min())


def enough(sample: Sample, rel_ci: float, launch_sd: float | None = None) -> Stop | None:
    """Whether a launch needs no more rounds: on precision, never on significance. The least number is the caller's.

    `launch_sd`: the sd between launches of log times, where it is known.
    """
    kept = finite(block_medians(sample))
    if len(kept) < 2:
        return None
    width = median_estimate(kept, Over.BLOCKS).relative_half_width
    if width is not None and width <= rel_ci:
        return Stop.PRECISION
    if launch_sd is not None and kept.min() > 0:
        error = float(np.std(np.log(kept), ddof=1)) / math.sqrt(len(kept))
        if error < launch_sd / 2:
            return Stop.LAUNCHES
    return None


def launch_sd(samples: Sequence[Sample], name: str = "median") -> float | None:
    """The sd between launches of log times."""
    found = finite(location(block_medians(sample), name) for sample in samples)
    if len(found) < 2 or found.min() <= 0:
        return None
    return float(np.std(np.log(found), ddof=1))


def noise(sample: Sample) -> Noise:
    """The restlessness of one launch."""
    blocks = [(block, median) for block, values in by_block(sample) if (median := location(values)) is not None]
    medians = np.array([median for _, median in blocks])
    tags = [tag for block in sample.blocks for tag in block.tags]
    tagged = {tag: tags.count(tag) / len(sample.blocks) for tag in sorted(set(tags))}
    if len(medians) < 3 or medians.min() <= 0:
        return Noise(tagged=tagged)
    logs = np.log(medians)
    low, middle, high = np.quantile(medians, (0.25, 0.5, 0.75))
    trend, trend_p = _trend(np.array([block.round for block, _ in blocks]), medians)
    return Noise(
        relative_iqr=float((high - low) / middle),
        sd=float(np.std(logs, ddof=1)),
        trend=trend,
        trend_p=trend_p,
        autocorrelation=_autocorrelation(logs),
        position_effect=_position_effect([block.position for block, _ in blocks], logs),
        tagged=tagged,
    )


def _trend(rounds: NDArray[np.int64], medians: Floats) -> tuple[float | None, float | None]:
    if np.ptp(medians) == 0 or np.ptp(rounds) == 0:
        return None, None
    from scipy.special import stdtr
    from scipy.stats import rankdata

    # As scipy.stats.spearmanr does, in a tenth of its time: reports ask for it of every case.
    one, other = (ranks - ranks.mean() for ranks in (rankdata(rounds), rankdata(medians)))
    rho = float(one @ other / math.sqrt((one @ one) * (other @ other)))
    free = len(medians) - 2
    if abs(rho) >= 1 - 1e-12:
        return math.copysign(1.0, rho), 0.0
    return rho, 2 * float(stdtr(free, -abs(rho) * math.sqrt(free / (1 - rho * rho))))


def _autocorrelation(logs: Floats) -> float | None:
    centred = logs - logs.mean()
    power = float(centred @ centred)
    return float(centred[:-1] @ centred[1:]) / power if power > 0 else None


def _position_effect(positions: Sequence[int], logs: Floats) -> float | None:
    first, last = min(positions), max(positions)
    if first == last:
        return None
    where = np.array(positions)
    return float(logs[where == last].mean() - logs[where == first].mean())
