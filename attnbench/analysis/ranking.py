"""The places of the arms of one problem: which is fastest, and which are tied. Every table and study uses this rule."""

from collections.abc import Sequence
from enum import StrEnum

from attnbench.analysis import stats
from attnbench.analysis.metrics import impossible
from attnbench.analysis.restarts import Restarts
from attnbench.records.result import Status

# The interval of one restart does not contain what differs between restarts (sd 0.3 to 5 %, docs/method.md): two arms
# with one restart each that are closer than this are tied.
TIE_MARGIN = 0.02


class Place(StrEnum):
    """The place of an arm among those of its device on one problem."""

    FASTEST = "fastest"
    TIED = "tied"  # with the fastest: closer than the intervals can distinguish
    BEHIND = "behind"
    ALONE = "alone"  # no other arm was measured in rounds that it shares


def places(arms: Sequence[Restarts]) -> list[Place | None]:
    """The place of each arm of one device on one problem; None where its time is missing or impossible.

    Arms are ranked among those that share rounds, by their speed-ups where all have one: these are paired by round.
    Of several such sets the largest is ranked, of equal ones the first.
    """
    measured = [arm for arm in arms if arm.status is Status.OK and arm.time and not impossible(arm)]
    by_identity = dict.fromkeys(map(id, measured), Place.ALONE)
    ranked = max(_comparable_sets(measured), key=len, default=[])
    if len(ranked) > 1:
        slowness = dict(zip(map(id, ranked), _slowness(ranked), strict=True))
        best = min(ranked, key=lambda arm: slowness[id(arm)])
        tied = [arm for arm in ranked if arm is not best and not _separated(best, arm)]
        by_identity |= dict.fromkeys(map(id, ranked), Place.BEHIND) | dict.fromkeys(map(id, tied), Place.TIED)
        by_identity[id(best)] = Place.TIED if tied else Place.FASTEST
    return [by_identity.get(id(arm)) for arm in arms]


def _comparable_sets(arms: Sequence[Restarts]) -> list[list[Restarts]]:
    """The arms in sets, each of which shares rounds with another of its set."""
    sets: list[list[Restarts]] = []
    for arm in arms:
        joined = [each for each in sets if any(arm.comparable(other) for other in each)]
        sets = [each for each in sets if each not in joined]
        sets.append([*(other for each in joined for other in each), arm])
    return sets


def _slowness(arms: Sequence[Restarts]) -> list[float]:
    """As `relative_times` ranks."""
    speedups = [arm.speedup.value for arm in arms if arm.speedup]
    return (
        [1 / value for value in speedups]
        if len(speedups) == len(arms)
        else [arm.time.value for arm in arms if arm.time]
    )


def _separated(best: Restarts, other: Restarts) -> bool:
    """Whether `best` is significantly faster.

    Where each only shares rounds with the reference arm, their speed-ups over it decide: their times are of different
    minutes. The reference arm then counts twice, and so does the margin.
    """
    margin = 1 + (TIE_MARGIN if min(best.count, other.count) == 1 else 0.0)
    ratio = best.ratio_to(other)
    if ratio is None and best.speedup and other.speedup:
        ratio, margin = stats.unpaired_ratio(best.speedup, other.speedup), margin**2
    return ratio is not None and ratio.low is not None and ratio.low > margin
