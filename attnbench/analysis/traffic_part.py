"""Drawn steps of which only a part is measured, since the budget ended or the run was interrupted.

From a draw a smaller one is drawn as the first was from the trace, each step by the predicted seconds that it stands
for, and so on down to MIN_STEPS. The smallest is measured first: whatever there is time for, the largest of these draws
that is complete is a sample of the trace (multi-phase sampling: Cochran, Sampling Techniques, 1977, chapter 12).
"""

import msgspec
import numpy as np
import numpy.typing as npt

from attnbench.analysis import traffic
from attnbench.analysis.traffic import Draw, Integers, TrafficSteps

Booleans = npt.NDArray[np.bool_]

MIN_STEPS = 4  # measured steps of an answer, unless the draw has fewer
FINENESS = 64  # a draw has one step more than the next smaller one, or this part of its own more


class MeasuredPart(msgspec.Struct, frozen=True, kw_only=True):
    """The drawn steps from which totals are estimated."""

    places: Integers  # in the draw, in the order of `drawn`
    drawn: Draw  # these steps, with weights that stand for all
    unmeasured: int = 0  # drawn steps that the totals lack
    reason: str = ""  # why the steps with times give no answer


class NestedDraws(msgspec.Struct, frozen=True, kw_only=True):
    """A draw, and smaller ones within it."""

    parts: tuple[MeasuredPart, ...]  # the whole draw first, the smallest last
    order: Integers  # places in the draw, in the order of measurement: those of each part before all others

    def measured(self, lacking: Booleans) -> MeasuredPart:
        """The largest part before the first step that lacks a time, in the order of measurement.

        lacking: [drawn steps]. Later steps are left out: that there was time for them depends on how long they take.
        """
        whole, count = self.parts[0], int(np.append(lacking[self.order], True).argmax())
        part = next((part for part in self.parts if len(part.places) <= count), None)
        if part is None:
            reason = f"an answer needs {len(self.parts[-1].places)} that are measured"
            return msgspec.structs.replace(whole, unmeasured=len(whole.places) - count, reason=reason)
        return msgspec.structs.replace(part, unmeasured=len(whole.places) - len(part.places))


def nested(drawn: Draw, steps: TrafficSteps, seed: int) -> NestedDraws:
    """The smaller draws within a draw. steps: those that were drawn, in its order."""
    rng = np.random.default_rng([seed, 1])  # not the numbers that drew the steps
    parts = [MeasuredPart(places=np.arange(len(drawn.steps)), drawn=drawn)]
    while (count := len(parts[-1].places)) > MIN_STEPS:
        parts.append(_within(parts[-1], steps, max(count - max(count // FINENESS, 1), MIN_STEPS), rng))
    order: dict[int, None] = {}
    for part in reversed(parts):
        order |= dict.fromkeys(rng.permutation(part.places).tolist())
    return NestedDraws(parts=tuple(parts), order=np.array(list(order), int))


def _within(part: MeasuredPart, steps: TrafficSteps, count: int, rng: np.random.Generator) -> MeasuredPart:
    """A draw of so many of the steps of a part.

    Certain in it are the steps that were certain in every draw so far. Others that are certain to be in this one keep
    their weights, and count as sampled.
    """
    drawn, among = part.drawn, steps.at(part.places)
    frame = traffic.frame(msgspec.structs.replace(among, predicted_s=drawn.weights * among.predicted_s), count)
    again = frame.draw(rng)
    of_certain = np.repeat(np.arange(len(frame.strata)), [len(stratum.certain) for stratum in frame.strata])
    strata = np.concatenate([of_certain, again.strata])
    sampled = (again.steps >= drawn.certain) | (np.arange(len(again.steps)) >= again.certain)
    order = np.lexsort((again.steps, strata, sampled))
    chosen = again.steps[order]
    return MeasuredPart(
        places=part.places[chosen],
        drawn=Draw(
            steps=drawn.steps[chosen], weights=drawn.weights[chosen] * again.weights[order],
            strata=strata[order][np.count_nonzero(~sampled) :],
        ),
    )  # fmt: skip
