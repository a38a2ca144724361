"""How many leading rounds of a group are warm-up, by the trend of the times of each arm."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from attnbench.analysis.readings import Floats

MIN_ROUNDS = 5  # fewer show no trend
MIN_REST = 3  # rounds after a step
MIN_DRIFT = 0.005  # between the first and the last half of the rounds, as a log ratio
# Of Kendall's S. Noise alone reaches it in every fourth series, which costs a few rounds and changes no time: all arms
# lose the same rounds, and high and low times count alike. A higher limit overlooks warm-up where rounds are few.
MIN_Z = 1.15


def warmup_rounds(arms: Iterable[Sequence[float | None]]) -> int:
    """The number of leading rounds in which any arm warms up; `arms`: the time of each round, for each arm."""
    return max(map(warmup_of_arm, arms), default=0)


def warmup_of_arm(times: Sequence[float | None]) -> int:
    """The number of leading rounds in which this arm becomes faster or slower."""
    positive = [time for time in times if time is not None and time > 0]
    if len(positive) < len(times):
        return 0
    logs = np.log(np.array(positive, dtype=np.float64))
    count, direction = _step(logs), 0.0
    while drift := _drift(logs[count:]):
        count, direction = count + 1, math.copysign(1.0, drift)
    # The trend is no longer visible when one or two rounds of it are left.
    while direction and count < len(logs) - MIN_REST:
        if direction * (logs[count] - np.median(logs[count + 1 :])) <= MIN_DRIFT:
            break
        count += 1
    return count


def _step(logs: Floats) -> int:
    """How many leading rounds, at least two, lie further from all others than those lie apart; else 0."""
    for count in range(len(logs) - MIN_REST, 1, -1):
        first, rest = logs[:count], logs[count:]
        gap = max(first.min() - rest.max(), rest.min() - first.max())
        if gap > max(MIN_DRIFT, np.ptp(rest)):
            return count
    return 0


def _drift(logs: Floats) -> float:
    """The first half of the rounds less the last, where the rounds have a trend; else 0.

    A half is represented by its lower median: disturbances only make calls slower.
    """
    count = len(logs)
    if count < MIN_ROUNDS:
        return 0.0
    half = count // 2
    first, last = (float(np.sort(part)[(half - 1) // 2]) for part in (logs[:half], logs[-half:]))
    if abs(first - last) <= MIN_DRIFT:
        return 0.0
    kendall = float(np.triu(np.sign(logs[:, None] - logs[None, :])).sum())  # positive where times fall
    z = (abs(kendall) - 1) / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return first - last if z >= MIN_Z and kendall * (first - last) > 0 else 0.0
