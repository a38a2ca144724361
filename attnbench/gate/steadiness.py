"""Why the times of a case cannot be judged: the machine or its clock changed while they were taken."""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise

import numpy as np

from attnbench import units
from attnbench.analysis import readings
from attnbench.analysis.restarts import Restarts
from attnbench.records.arm import parse_device
from attnbench.records.result import Facts, Result

MIN_RESTARTS = 4  # with fewer, a change of the machine cannot be told from noise
PAUSE_S, PAUSES = 60.0, 5  # a pause between restarts is longer than both: seconds, and times the median pause
OUTLIER = math.log(3)  # a restart so far from the others, which no noise explains
SPEED_CHANGE = math.log(1.5)  # between the restarts before and after it
DRIFT_P = 0.001


def unsteady(base: Restarts, head: Restarts, effects: Mapping[int, float], tolerance: float) -> str:
    """Why the times of a case cannot be judged, else empty; `effects`: log(head / base) by restart."""
    clock = _clock(head.results) or _clock(base.results)
    return clock or _outlier(effects) or _speed(base, effects) or _drift(effects, tolerance)


def too_few_cores(machine: Facts, devices: Iterable[str]) -> str:
    """Why times of a CPU with a single core decide nothing, else empty."""
    if machine.get("cores") == 1 and any(parse_device(device).kind == "cpu" for device in devices):
        return "this machine has one core, which kernels share with all other processes: use two cores or more"
    return ""


def _clock(results: Iterable[Result]) -> str:
    """The clock went back, or the machine stood still between two restarts."""
    results = [result for result in results if "time" in result.samples]
    for result in results:
        if any(value is not None and value <= 0 for value in result.samples["time"].values):
            return f"a call in restart {result.restart} took no time or less: the clock jumped"
    starts = {result.restart: datetime.fromisoformat(result.started_at) for result in results if result.started_at}
    pauses = {after: (starts[after] - starts[before]).total_seconds() for before, after in pairwise(starts)}
    # The pause after the first restart is left out: it verifies in full, and compiles.
    usual = float(np.median(list(pauses.values())[1:])) if len(pauses) >= MIN_RESTARTS else 0.0
    for restart, pause in list(pauses.items())[1:]:
        if pause < 0:
            return f"the clock went back by {units.seconds(-pause)} before restart {restart}"
        if usual and pause > max(PAUSE_S, PAUSES * usual):
            return f"a pause of {units.seconds(pause)} before restart {restart}: the machine was suspended or busy"
    return ""


def _outlier(effects: Mapping[int, float]) -> str:
    """A restart that is far from all others."""
    if len(effects) < MIN_RESTARTS:
        return ""
    middle = float(np.median(list(effects.values())))
    far = {restart: effect - middle for restart, effect in effects.items() if abs(effect - middle) > OUTLIER}
    for restart, distance in far.items():
        times = units.factor(math.exp(abs(distance)))
        return f"restart {restart} differs from the others by {times}: the clock jumped, or the machine was disturbed"
    return ""


def _speed(base: Restarts, effects: Mapping[int, float]) -> str:
    """The machine became faster or slower for good."""
    times = {
        result.restart: time
        for result in base.results
        if result.restart in effects and (time := readings.location(readings.block_medians(result.samples["time"])))
    }
    for before, after in _halves(times):
        change = math.log(np.median(list(after.values())) / np.median(list(before.values())))
        apart = min(after.values()) > max(before.values()) or max(after.values()) < min(before.values())
        if apart and abs(change) > SPEED_CHANGE:
            first, later = (units.seconds(float(np.median(list(half.values())))) for half in (before, after))
            return f"the machine changed its speed: base took {first} before restart {min(after)}, then {later}"
    return ""


def _halves(values: Mapping[int, float]) -> Iterator[tuple[dict[int, float], dict[int, float]]]:
    """The values before and after each restart that has at least three on both sides."""
    pairs = list(values.items())
    for split in range(3, len(pairs) - 2):
        yield dict(pairs[:split]), dict(pairs[split:])


def _drift(effects: Mapping[int, float], tolerance: float) -> str:
    """The difference of head and base grew or shrank from restart to restart, by much of what it is."""
    if len(effects) < MIN_RESTARTS or np.ptp(list(effects.values())) == 0:
        return ""
    from scipy.stats import linregress

    order = np.arange(len(effects))
    line = linregress(order, list(effects.values()))
    first, last = float(line.intercept), float(line.intercept + line.slope * order[-1])
    if line.pvalue < DRIFT_P and abs(last - first) > max(math.log1p(tolerance), abs(first + last) / 4):
        ends = " to ".join(units.changes([math.expm1(value) for value in (first, last)]))
        return f"the difference drifts during the gate, from {ends}"
    return ""
