"""The readings of one Sample by block and by round: locations, percentiles and noise statistics."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.records.result import Sample, TimedBlock

NOISY_RATIO = 1.25
MAX_CACHED = 64  # samples

Floats = NDArray[np.float64]
T = TypeVar("T")


def _trimmed_mean(values: Floats) -> float:
    """The mean without the lowest and the highest fifth."""
    cut = len(values) // 5
    return float(np.mean(np.sort(values)[cut : len(values) - cut]))


# The mean is not the steadiest location of times, whose tails are heavy upwards; `tools/gate_eval.py spreads` compares.
LOCATIONS: dict[str, Callable[[Floats], float]] = {
    "median": lambda values: _median(values.tolist()),
    "mean": lambda values: float(np.mean(values)),
    "lower_quartile": lambda values: _lower_quartile(values.tolist()),
    "trimmed_mean": _trimmed_mean,
    "least": lambda values: float(np.min(values)),
}


def _median(values: list[float]) -> float:
    """As statistics.median, without its checks: there are hundreds of thousands of blocks in a large run."""
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _lower_quartile(values: list[float]) -> float:
    """As np.quantile to the last bit, in a tenth of its time: a gate needs it for each block."""
    values = sorted(values)
    place = (len(values) - 1) / 4
    below, above = values[math.floor(place)], values[math.ceil(place)]
    share = place % 1
    return below + (above - below) * share if share < 0.5 else above - (above - below) * (1 - share)


def location(values: Iterable[float | None], name: str = "median") -> float | None:
    """A location of the finite values; None where there are none."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if name == "median":  # of few values, as a block has, much faster than numpy
        return _median(numbers) if numbers else None
    return LOCATIONS[name](np.array(numbers)) if numbers else None


def finite(values: Iterable[float | None]) -> Floats:
    """The finite values, in their order."""
    numbers = np.array(values if isinstance(values, np.ndarray) else tuple(values), dtype=np.float64)  # None as NaN
    return numbers[np.isfinite(numbers)]


def _cached(compute: Callable[[Sample], T]) -> Callable[[Sample], T]:
    """Keep the results for the last few samples by identity: each comparison of an arm needs the same ones."""
    cache: dict[int, tuple[Sample, T]] = {}

    @wraps(compute)
    def cached(sample: Sample) -> T:
        entry = cache.get(id(sample))
        if entry and entry[0] is sample:
            return entry[1]
        value = compute(sample)
        if len(cache) >= MAX_CACHED:
            cache.clear()
        cache[id(sample)] = sample, value
        return value

    return cached


@_cached
def block_medians(sample: Sample) -> Sequence[float | None]:
    """The median of each block, in the order taken. Values outside any block count as blocks of one reading."""
    sizes = {block.readings for block in sample.blocks}
    size = max(sizes, default=0)
    if len(sizes) == 1 and size * len(sample.blocks) == len(sample.values):
        values = np.array(sample.values, dtype=np.float64)  # None as NaN
        if np.isfinite(values).all():
            ordered = np.sort(values.reshape(-1, size), axis=1)
            medians: list[float | None] = ((ordered[:, (size - 1) // 2] + ordered[:, size // 2]) / 2).tolist()
            return medians
    return [location(values) for _, values in by_block(sample)]


@_cached
def by_round(sample: Sample) -> Mapping[int, float]:
    """The median of each round that has a finite reading."""
    rounds = [block.round for block in sample.blocks]
    if len(set(rounds)) < len(rounds) or sum(block.readings for block in sample.blocks) < len(sample.values):
        return round_locations(sample, "median")
    medians = zip(rounds, block_medians(sample), strict=True)  # one block a round
    return {number: median for number, median in medians if median is not None}


def round_locations(sample: Sample, name: str) -> dict[int, float]:
    """A location of the readings of each round that has a finite one."""
    readings: dict[int, list[float | None]] = {}
    for block, values in by_block(sample):
        readings.setdefault(block.round, []).extend(values)
    locations = {number: location(values, name) for number, values in readings.items()}
    return {number: value for number, value in locations.items() if value is not None}


def by_block(sample: Sample) -> list[tuple[TimedBlock, tuple[float | None, ...]]]:
    """Each block with its readings; values outside any block count as blocks of one reading."""
    blocks, start = [], 0
    for block in sample.blocks:
        blocks.append((block, sample.values[start : start + block.readings]))
        start += block.readings
    rest = enumerate(sample.values[start:], start=len(blocks))
    return blocks + [(TimedBlock(round=number, position=0, readings=1), (value,)) for number, value in rest]


def percentile(values: Iterable[float | None], share: float) -> float | None:
    """A high percentile; None below 1 / (1 - share) readings, where it would be the maximum."""
    numbers = finite(values)
    if len(numbers) * (1 - share) < 1 - 1e-9:
        return None
    # As np.quantile, in a tenth of its time.
    place = (len(numbers) - 1) * share
    below, above = np.sort(numbers)[[math.floor(place), math.ceil(place)]].tolist()
    return float(below + (above - below) * (place % 1))


def is_noisy(sample: Sample) -> bool:
    """Whether the median block took over 1.25 times the fastest."""
    medians = finite(block_medians(sample))
    return len(medians) > 0 and bool(LOCATIONS["median"](medians) > NOISY_RATIO * medians.min())


class NoiseStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Noise statistics of one restart; None where there are too few blocks."""

    relative_iqr: float | None = None
    sd: float | None = None  # of log block medians
    trend: float | None = None  # Spearman's rho over rounds: drift
    trend_p: float | None = None
    autocorrelation: float | None = None  # lag 1, over rounds
    position_effect: float | None = None  # log(last position / first position); 0 if the order has no effect
    tagged: dict[str, float] = {}  # share of blocks that have each tag


def noise(sample: Sample) -> NoiseStatistics:
    """The noise statistics of the block medians of one restart."""
    blocks = [(block, median) for block, values in by_block(sample) if (median := location(values)) is not None]
    medians = np.array([median for _, median in blocks])
    tags = [tag for block in sample.blocks for tag in block.tags]
    tagged = {tag: tags.count(tag) / len(sample.blocks) for tag in sorted(set(tags))}
    if len(medians) < 3 or medians.min() <= 0:
        return NoiseStatistics(tagged=tagged)
    logs = np.log(medians)
    low, middle, high = np.quantile(medians, (0.25, 0.5, 0.75))
    trend, trend_p = _trend(np.array([block.round for block, _ in blocks]), medians)
    return NoiseStatistics(
        relative_iqr=float((high - low) / middle),
        sd=float(np.std(logs, ddof=1)),
        trend=trend,
        trend_p=trend_p,
        autocorrelation=_autocorrelation(logs),
        position_effect=_position_effect([block.position for block, _ in blocks], logs),
        tagged=tagged,
    )


def _trend(rounds: NDArray[np.int64], medians: Floats) -> tuple[float | None, float | None]:
    """Spearman's rho and its p-value; None where either side is constant."""
    if np.ptp(medians) == 0 or np.ptp(rounds) == 0:
        return None, None
    from scipy.special import stdtr
    from scipy.stats import rankdata

    # As scipy.stats.spearmanr does, in a tenth of its time: reports compute it for every case.
    first, second = (ranks - ranks.mean() for ranks in (rankdata(rounds), rankdata(medians)))
    rho = float(first @ second / math.sqrt((first @ first) * (second @ second)))
    freedom = len(medians) - 2
    if abs(rho) >= 1 - 1e-12:
        return math.copysign(1.0, rho), 0.0
    return rho, 2 * float(stdtr(freedom, -abs(rho) * math.sqrt(freedom / (1 - rho * rho))))


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
