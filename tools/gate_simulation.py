"""The rule of the gate on simulated restarts with a known truth: many runs at once, as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnbench.analysis.readings import Floats
from attnbench.gate import rule, significance

CASES = 20
RESTARTS = max(significance.LOOKS)
SDS = (0.002, 0.005, 0.01, 0.02, 0.03)  # between restarts, of the cases in turn
TOLERANCE, LARGEST = math.log1p(rule.TOLERANCE), math.log1p(rule.MAX_MARGIN * rule.TOLERANCE)
PLANTED = 0.2  # of the cases are slower
BINS = ((1.25, 1.75), (1.75, 2.25))  # slowdowns in printed margins

Bools = NDArray[np.bool_]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Floats]  # of unit scale, restarts on the last axis


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_normal(shape)


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_t(3, shape) / math.sqrt(3)


def _outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.standard_normal(shape) * np.where(rng.random(shape) < 1 / 14, 4.0, 1.0)


def _two_states(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return rng.choice((-1.0, 1.0), shape) + 0.1 * rng.standard_normal(shape)


def _drift(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """A line from -1 to 1 or back over all restarts, and noise."""
    return rng.choice((-1.0, 1.0), (*shape[:-1], 1)) * np.linspace(-1, 1, shape[-1]) + rng.standard_normal(shape)


def _correlated(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """An autoregression with coefficient 0.3."""
    values, steps = np.empty(shape), rng.standard_normal(shape)
    values[..., 0] = steps[..., 0]
    for place in range(1, shape[-1]):
        values[..., place] = 0.3 * values[..., place - 1] + math.sqrt(1 - 0.3**2) * steps[..., place]
    return values


NOISES: dict[str, Noise] = {
    "normal": _normal,
    "Student's t, 3 degrees of freedom": _heavy,
    "1 restart in 14 with four times the spread": _outliers,
    "two states, each half of the time": _two_states,
    "drift by twice the spread": _drift,
    "autocorrelated, 0.3": _correlated,
}


class Judged(NamedTuple):
    """What the rule decides, as [runs, cases]."""

    red: Bools
    same: Bools
    restarts: NDArray[np.int64]
    margin: Floats  # logarithms, as the two ends of the interval
    low: Floats
    high: Floats


def judged(effects: Floats) -> Judged:
    """What `rule` decides on effects [runs, cases, restarts], look by look: a test compares the two."""
    shape, chance = effects.shape[:-1], significance.last_look(rule.ALPHA / effects.shape[-2])
    undecided, restarts = np.ones(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
    p_slower, p_faster, mean, sd, half = (np.ones(shape) for _ in range(5))
    for count, share in significance.LOOKS.items():
        seen = effects[..., :count]
        p_slower = np.where(undecided, np.minimum(p_slower, rule.p_at_look(seen, share, TOLERANCE)), p_slower)
        p_faster = np.where(undecided, np.minimum(p_faster, rule.p_at_look(-seen, share, TOLERANCE)), p_faster)
        mean, sd = np.where(undecided, seen.mean(-1), mean), np.where(undecided, seen.std(-1, ddof=1), sd)
        half = np.where(undecided, significance.half_width(count) * sd, half)
        restarts[undecided] = count
        margin = TOLERANCE + chance * sd
        red = (significance.holm_adjusted(p_slower) < rule.ALPHA) & (mean > TOLERANCE)
        faster = (significance.holm_adjusted(p_faster) < rule.ALPHA) & (mean < -TOLERANCE)
        same = (mean - half <= TOLERANCE) & (mean + half < margin) & (margin <= LARGEST) & ~red & ~faster
        least = TOLERANCE + chance * significance.smallest_sd(seen)
        hopeless = (least > LARGEST) & (significance.chance_beyond(seen, margin) < rule.SMALL_CHANCE)
        undecided &= ~(red | faster | same | hopeless)
    return Judged(red, same, restarts, margin, mean - half, mean + half)


def simulated(noise: Noise, runs: int, seed: int, *, slower: bool) -> tuple[Floats, Floats]:
    """The effects [runs, cases, restarts] and the truth [runs, cases]; with `slower` some cases are slower."""
    rng = np.random.default_rng(seed)
    sds = np.broadcast_to(np.resize(SDS, CASES), (runs, CASES))
    truth = planted(rng, sds)[0] if slower else np.zeros_like(sds)
    return truth[..., None] + sds[..., None] * noise(rng, (*sds.shape, RESTARTS)), truth


def planted(rng: np.random.Generator, sds: Floats) -> tuple[Floats, Bools]:
    """Slowdowns of some cases as logarithms [runs, cases], up to five times tolerance and spread; and which cases."""
    slower = rng.random(sds.shape) < PLANTED
    return np.where(slower, rng.uniform(0, 5, sds.shape) * (TOLERANCE + sds), 0.0), slower


class Rates(NamedTuple):
    """Error rates of the rule under one kind of noise."""

    red_runs: int  # of equal arms
    runs: int
    inconclusive: float  # share of cases of equal arms
    restarts: float  # of a case of equal arms, mean
    power: tuple[float, ...]  # share found, by BINS
    covered: float  # share of slower cases whose interval holds the truth


def rates(noise: Noise, runs: int, seed: int = 0) -> Rates:
    """The rates of so many runs with equal arms, and as many in which cases are slower."""
    equal = judged(simulated(noise, runs, seed, slower=False)[0])
    effects, truth = simulated(noise, runs, seed + 1, slower=True)
    tested, planted = judged(effects), truth > 0
    times = np.expm1(truth) / np.expm1(tested.margin)
    found = tuple(float(tested.red[planted & (low <= times) & (times < high)].mean()) for low, high in BINS)
    held = (tested.low <= truth) & (truth <= tested.high)
    return Rates(
        red_runs=int(equal.red.any(axis=-1).sum()), runs=runs,
        inconclusive=float((~equal.red & ~equal.same).mean()), restarts=float(equal.restarts.mean()),
        power=found, covered=float(held[planted].mean()),
    )  # fmt: skip


def table(runs: int) -> Iterator[str]:
    """The rates under every kind of noise, as Markdown."""
    bins = " | ".join(f"found at {low:g} to {high:g} margins" for low, high in BINS)
    yield f"| noise between restarts | A/A runs with any red | inconclusive | restarts | {bins} | interval holds |"
    yield f"|---|{'---:|' * (4 + len(BINS))}"
    for name, noise in NOISES.items():
        rate = rates(noise, runs)
        shares = " | ".join(f"{100 * share:.0f} %" for share in (*rate.power, rate.covered))
        red = f"{rate.red_runs} of {rate.runs}"
        yield f"| {name} | {red} | {100 * rate.inconclusive:.1f} % | {rate.restarts:.1f} | {shares} |"
