"""Steps of simulated traffic, and which of them are measured.

They are drawn in strata: steps of one kind and one range of context lengths. The draws of a stratum follow the square
root of its predicted time (Bankier, Power Allocations, 1988, https://doi.org/10.2307/2685077), so that rare steps are
drawn too. Within a stratum they are drawn systematically, with probability proportional to predicted time (Madow, 1949,
https://doi.org/10.1214/aoms/1177729988), in an order that places steps of similar shape side by side.
"""

from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from attnbench.analysis.readings import Floats

Integers = npt.NDArray[np.integer]

MIN_DRAWS = 2  # of a stratum: they give its variance
ROUNDING = 1e-9  # of numbers of draws


class TrafficSteps(msgspec.Struct, frozen=True, kw_only=True):
    """The attention batches of simulated steps; every array has one entry per step.

    Raises ValueError for arrays of different lengths, for no step, and for values that are not positive.
    """

    kinds: Integers  # places in KINDS
    requests: Integers
    max_q: Integers  # query tokens of the request with the most
    context: Floats  # keys per request, mean over its requests
    predicted_s: Floats  # attention of all layers

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, name)) for name in self.__struct_fields__}
        if len(sizes) > 1 or sizes == {0}:
            raise ValueError(f"steps need arrays of one length above 0, not {sorted(sizes)}")
        for name in ("requests", "max_q", "context", "predicted_s"):
            values = getattr(self, name)
            if not (np.isfinite(values).all() and values.min() > 0):
                raise ValueError(f"{name} of a step must be positive and finite")

    def at(self, places: Integers) -> "TrafficSteps":
        """These steps alone, in the order of their numbers in `places`."""
        return TrafficSteps(**{name: getattr(self, name)[places] for name in self.__struct_fields__})


class Draw(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The steps to measure: the sum of weight times measured seconds estimates the seconds of all steps."""

    steps: Integers  # their numbers, each once: first the certain ones, then the others by stratum
    weights: Floats  # 1 for a certain step; else how many times over its seconds count
    strata: Integers  # of the steps that are not certain, ascending

    @property
    def certain(self) -> int:
        """How many steps are in every draw."""
        return len(self.steps) - len(self.strata)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The steps of each stratum that are not certain: how many are drawn."""
        return tuple(np.unique(self.strata, return_counts=True)[1].tolist())


class Stratum(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of similar context length and, given enough draws, of one kind.

    A step that is predicted to take a sampling interval or more is certain: it is measured with weight 1, and the
    interval is computed from the others.
    """

    certain: Integers  # step numbers
    others: Integers  # step numbers in order: octaves of context, requests and max_q, then predicted seconds
    predicted_s: Floats  # of `others`
    ends_s: Floats  # running sum of `predicted_s`
    draws: int  # of `others`

    def draw(self, start: float) -> tuple[Integers, Floats]:
        """Steps and weights; the first point lies at the fraction `start`, in [0, 1), of the sampling interval."""
        if not self.draws:
            return self.others, self.predicted_s  # none
        interval_s = float(self.ends_s[-1]) / self.draws
        points = (start + np.arange(self.draws)) * interval_s
        hits = np.searchsorted(self.ends_s, points, side="right").clip(max=len(self.others) - 1)
        places, times = np.unique(hits, return_counts=True)
        return self.others[places], times * interval_s / self.predicted_s[places]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """All steps, in strata."""

    strata: tuple[Stratum, ...]

    def draw(self, rng: np.random.Generator) -> Draw:
        """One draw, with a random start in each stratum."""
        certain = np.concatenate([stratum.certain for stratum in self.strata])
        steps, weights = zip(*(stratum.draw(float(rng.random())) for stratum in self.strata), strict=True)
        return Draw(
            steps=np.concatenate([certain, *steps]),
            weights=np.concatenate([np.ones(len(certain)), *weights]),
            strata=np.repeat(np.arange(len(steps)), [len(each) for each in steps]),
        )


def frame(steps: TrafficSteps, draws: int) -> Frame:
    """The strata and their numbers of draws; `draws` counts the certain steps too."""
    if draws < 1:
        raise ValueError(f"cannot draw {draws} steps")
    octaves = np.floor(np.log2(steps.context)).astype(int)
    octaves -= octaves.min()
    span = int(octaves.max()) + 1
    numbers, cells = np.unique(steps.kinds * span + octaves, return_inverse=True)
    seconds = np.bincount(cells, steps.predicted_s).astype(float)
    groups = _groups(seconds, np.bincount(cells), numbers // span, draws)
    counts = _allocation(groups, draws)
    shape = [np.floor(np.log2(values)) for values in (steps.max_q, steps.requests, steps.context)]
    order = np.lexsort((steps.predicted_s, *shape))
    cells = cells[order]
    return Frame(
        strata=tuple(
            _stratum(steps, order[(cells >= group.first) & (cells < group.end)], count)
            for group, count in zip(groups, counts, strict=True)
        )
    )


def draw(steps: TrafficSteps, draws: int, seed: int) -> Draw:
    """Draw steps systematically in each stratum, with probability proportional to predicted seconds."""
    return frame(steps, draws).draw(np.random.default_rng(seed))


class _Group(msgspec.Struct, frozen=True):
    """Neighbouring cells, each a kind and an octave of keys per request."""

    first: int
    end: int
    kind: int  # of the first cell
    predicted_s: float
    steps: int

    def joined(self, after: "_Group") -> "_Group":
        return _Group(self.first, after.end, self.kind, self.predicted_s + after.predicted_s, self.steps + after.steps)


def _groups(predicted_s: Floats, counts: Integers, kinds: Integers, draws: int) -> list[_Group]:
    """The cells, those with too few draws joined to a neighbour, of the same kind where there is one."""
    groups = [
        _Group(place, place + 1, int(kind), float(seconds), int(count))
        for place, (seconds, count, kind) in enumerate(zip(predicted_s, counts, kinds, strict=True))
    ]
    while len(groups) > 1:
        shares = _shares(groups, draws)
        few = [place for place, group in enumerate(groups) if shares[place] < min(MIN_DRAWS, group.steps) - ROUNDING]
        if not few:
            break
        place = min(few, key=lambda each: groups[each].predicted_s)
        beside = [each for each in (place - 1, place + 1) if 0 <= each < len(groups)]
        kind = groups[place].kind
        left = min(place, min(beside, key=lambda each: (groups[each].kind != kind, groups[each].predicted_s)))
        groups[left : left + 2] = [groups[left].joined(groups[left + 1])]
    return groups


def _shares(groups: Sequence[_Group], draws: int) -> list[float]:
    """Draws of each group before rounding: by the square root of predicted time, and at most its steps."""
    roots = [group.predicted_s**0.5 for group in groups]
    shares, left, free = [0.0] * len(groups), draws, list(range(len(groups)))
    while free:
        total = sum(roots[place] for place in free)
        for place in free:
            shares[place] = min(left * roots[place] / total, float(groups[place].steps))
        full = {place for place in free if shares[place] == groups[place].steps}
        if not full:
            break
        left = max(left - sum(groups[place].steps for place in full), 0)
        free = [place for place in free if place not in full]
    return shares


def _allocation(groups: Sequence[_Group], draws: int) -> list[int]:
    """Whole numbers of draws by largest remainders."""
    shares = np.array(_shares(groups, draws))
    counts = np.floor(shares + ROUNDING).astype(int)
    total = min(draws, sum(group.steps for group in groups))
    for place in np.argsort(-(shares - counts), kind="stable")[: total - int(counts.sum())]:
        counts[place] += 1
    return [int(count) for count in counts]


def _stratum(steps: TrafficSteps, members: Integers, draws: int) -> Stratum:
    """The stratum of these steps, which are in the order of `Stratum.others`."""
    predicted = steps.predicted_s[members]
    is_certain = np.zeros(len(members), dtype=bool)
    certain = _certain(predicted, draws)
    if certain:
        is_certain[np.lexsort((members, -predicted))[:certain]] = True
    others, predicted_s = members[~is_certain], predicted[~is_certain]
    return Stratum(
        certain=np.sort(members[is_certain]), others=others, predicted_s=predicted_s, ends_s=np.cumsum(predicted_s),
        draws=draws - certain if len(others) else 0,
    )  # fmt: skip


def _certain(predicted_s: Floats, draws: int) -> int:
    """How many of the longest steps are certain: each takes an interval of what is left when longer ones are taken."""
    total_s = predicted_s.sum()
    if predicted_s.max() * draws < total_s * (1 - ROUNDING):
        return 0  # as for most strata
    longest = -np.sort(-predicted_s)[:draws]
    left = total_s - np.concatenate([[0.0], np.cumsum(longest)[:-1]])
    covers = longest * (draws - np.arange(len(longest))) >= left * (1 - 1e-12)
    return len(longest) if covers.all() else int(np.argmin(covers))
