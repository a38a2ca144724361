"""Drawn steps of which only a part is measured, since the budget ended or the run was interrupted.

Steps are measured in an order in which every leading part has a simple random sample of the draws of each stratum. Such
a sample of n draws of N stands for all with N/n times their weights (Cochran, Sampling Techniques, 1977, chapter 2).
"""

import msgspec
import numpy as np
import numpy.typing as npt

from attnbench.analysis.traffic import Draw, Integers

Booleans = npt.NDArray[np.bool_]


class MeasuredPart(msgspec.Struct, frozen=True, kw_only=True):
    """The drawn steps from which totals are estimated."""

    places: Integers  # in the draw, ascending
    drawn: Draw  # these steps, with weights that stand for all
    unmeasured: int = 0  # drawn steps without all their times
    reason: str = ""  # why the steps with times give no answer


def order(drawn: Draw, seed: int) -> Integers:
    """Places in the draw, in the order of measurement: the certain steps, then the others, all strata at equal pace."""
    rng = np.random.default_rng([seed, 1])  # not the numbers that drew the steps
    pace, ties = np.zeros(len(drawn.strata)), rng.random(len(drawn.strata))
    for stratum in np.unique(drawn.strata):
        inside = np.flatnonzero(drawn.strata == stratum)
        pace[rng.permutation(inside)] = np.arange(len(inside)) / len(inside)
    return np.concatenate([rng.permutation(drawn.certain), drawn.certain + np.lexsort((ties, pace))])


def measured_part(drawn: Draw, seed: int, lacking: Booleans) -> MeasuredPart:
    """The steps before the first that lacks a time, in the order of measurement.

    lacking: [drawn steps]. Later steps are left out: that there was time for them depends on how long they take.
    """
    places = order(drawn, seed)
    if not lacking.any():
        return MeasuredPart(places=np.arange(len(places)), drawn=drawn)
    leading = np.sort(places[: int(lacking[places].argmax())])
    reason = _objection(drawn, leading)
    return MeasuredPart(
        places=np.arange(len(places)) if reason else leading, drawn=drawn if reason else _part(drawn, leading),
        unmeasured=len(places) - len(leading), reason=reason,
    )  # fmt: skip


def _objection(drawn: Draw, places: Integers) -> str:
    """Why these steps cannot stand for all; empty if they can."""
    if not len(places):
        return "the first one that is measured lacks a time"
    if not len(drawn.strata):
        return ""
    if certain := drawn.certain - int((places < drawn.certain).sum()):
        return f"{certain} of them are in every draw, so that no other step stands for them"
    strata = len(np.unique(drawn.strata))
    without = strata - len(np.unique(drawn.strata[places[places >= drawn.certain] - drawn.certain]))
    return f"of {without} of {strata} groups of similar steps none is measured" if without else ""


def _part(drawn: Draw, places: Integers) -> Draw:
    """These steps with the weights of all. Where all were certain, they are a sample of them."""
    every = np.zeros(len(drawn.steps), int) if not len(drawn.strata) else drawn.strata
    certain = drawn.certain if len(drawn.strata) else 0
    sampled = places[certain:] - certain
    strata = every[sampled]
    share = np.bincount(every) / np.maximum(np.bincount(strata, minlength=int(every.max()) + 1), 1)
    weights = drawn.weights[places].copy()
    weights[certain:] *= share[strata]
    return Draw(steps=drawn.steps[places], weights=weights, strata=strata)
