"""Steps of simulated traffic: which of them are measured, and where their time goes.

They are drawn systematically, with probability proportional to predicted time (Madow, 1949,
https://doi.org/10.1214/aoms/1177729988), in an order that places steps of similar shape side by side.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from attnbench import units
from attnbench.analysis.readings import Floats
from attnbench.suite.serving.simulation import KINDS, StepKind

Integers = npt.NDArray[np.integer]
Booleans = npt.NDArray[np.bool_]


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


class Draw(msgspec.Struct, frozen=True, kw_only=True):
    """The steps to measure: the sum of weight times measured seconds estimates the seconds of all steps."""

    steps: Integers  # their numbers, each once: first the certain ones, then the others in the order of the frame
    weights: Floats  # 1 for a certain step; else how many times over its seconds count
    certain: int  # how many are in every draw


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """All steps, ready to draw from.

    A step that is predicted to take a sampling interval or more is certain: it is measured with weight 1, and the
    interval is computed from the others.
    """

    certain: Integers  # step numbers
    others: Integers  # step numbers in order: kind, octave of requests, octave of max_q, predicted seconds
    predicted_s: Floats  # of `others`
    ends_s: Floats  # running sum of `predicted_s`
    draws: int  # of `others`

    def draw(self, start: float) -> Draw:
        """The draw whose first point lies at the fraction `start`, in [0, 1), of the sampling interval."""
        certain = len(self.certain)
        if not self.draws:
            return Draw(steps=self.certain, weights=np.ones(certain), certain=certain)
        interval_s = float(self.ends_s[-1]) / self.draws
        points = (start + np.arange(self.draws)) * interval_s
        hits = np.searchsorted(self.ends_s, points, side="right").clip(max=len(self.others) - 1)
        places, times = np.unique(hits, return_counts=True)
        return Draw(
            steps=np.concatenate([self.certain, self.others[places]]),
            weights=np.concatenate([np.ones(certain), times * interval_s / self.predicted_s[places]]),
            certain=certain,
        )


def frame(steps: TrafficSteps, draws: int) -> Frame:
    """The steps in the order of drawing; `draws` counts the certain ones too."""
    if draws < 1:
        raise ValueError(f"cannot draw {draws} steps")
    predicted = steps.predicted_s
    certain = np.sort(np.argsort(-predicted, kind="stable")[: _certain(predicted, draws)])
    octaves = [np.floor(np.log2(values)) for values in (steps.max_q, steps.requests)]
    order = np.lexsort((predicted, *octaves, steps.kinds))
    is_certain = np.zeros(len(predicted), dtype=bool)
    is_certain[certain] = True
    others = order[~is_certain[order]]
    return Frame(
        certain=certain, others=others, predicted_s=predicted[others], ends_s=np.cumsum(predicted[others]),
        draws=draws - len(certain) if len(others) else 0,
    )  # fmt: skip


def draw(steps: TrafficSteps, draws: int, seed: int) -> Draw:
    """Draw steps systematically with probability proportional to predicted seconds."""
    return frame(steps, draws).draw(float(np.random.default_rng(seed).random()))


def _certain(predicted_s: Floats, draws: int) -> int:
    """How many of the longest steps are certain: each takes an interval of what is left when longer ones are taken."""
    longest = -np.sort(-predicted_s)[:draws]
    left = predicted_s.sum() - np.concatenate([[0.0], np.cumsum(longest)[:-1]])
    covers = longest * (draws - np.arange(len(longest))) >= left * (1 - 1e-12)
    return len(longest) if covers.all() else int(np.argmin(covers))


class MixPart(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of one kind, or those of one range of context lengths."""

    kind: StepKind | None = None
    context: tuple[int, int] | None = None  # keys per request: from the first, below the second
    steps: int
    predicted_s: float
    measured_s: float | None = None  # estimated from the drawn steps of this part; None: none was drawn

    @property
    def name(self) -> str:
        """`mixed`, or `1k..2k`."""
        return str(self.kind) if self.context is None else "..".join(map(units.short, self.context))


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Where the steps of a trace and their attention time go."""

    by_kind: tuple[MixPart, ...]
    by_context: tuple[MixPart, ...]  # ranges are powers of two


def mix(steps: TrafficSteps, drawn: Draw | None = None, measured_s: Floats | None = None) -> Mix:
    """The mix by predicted seconds of all steps; with a draw also by measured seconds, one value per drawn step."""
    octaves = np.floor(np.log2(np.maximum(steps.context, 1))).astype(int)

    def part(inside: Booleans, kind: StepKind | None = None, context: tuple[int, int] | None = None) -> MixPart:
        of_part = None
        if drawn is not None and measured_s is not None and inside[drawn.steps].any():
            of_part = float((drawn.weights * measured_s)[inside[drawn.steps]].sum())
        return MixPart(
            kind=kind, context=context, steps=int(inside.sum()), predicted_s=float(steps.predicted_s[inside].sum()),
            measured_s=of_part,
        )  # fmt: skip

    return Mix(
        by_kind=tuple(part(steps.kinds == kind, kind=KINDS[kind]) for kind in np.unique(steps.kinds)),
        by_context=tuple(part(octaves == at, context=(2 ** int(at), 2 ** int(at + 1))) for at in np.unique(octaves)),
    )
