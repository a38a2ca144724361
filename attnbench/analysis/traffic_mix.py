"""Where the steps of a trace and their attention time go: by kind of step, and by context length."""

import msgspec
import numpy as np

from attnbench import units
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic import Draw, TrafficSteps
from attnbench.analysis.traffic_interval import interval, logarithms, mean
from attnbench.analysis.traffic_part import Booleans
from attnbench.suite.serving.simulation import KINDS, StepKind

MIN_STEPS = 8  # drawn steps of a part for an interval, unless every step of the trace is drawn


class MixPart(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of one kind, or those of one range of context lengths."""

    kind: StepKind | None = None
    context: tuple[int, int] | None = None  # keys per request: from the first, below the second
    steps: int
    drawn: int = 0
    predicted_s: float
    measured_s: float | None = None  # estimated from the drawn steps of this part; None: none was drawn
    share: Estimate | None = None  # of the measured seconds of all parts

    @property
    def name(self) -> str:
        """`mixed`, or `1k..2k`."""
        return str(self.kind) if self.context is None else "..".join(map(units.short, self.context))


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Where the steps of a trace and their attention time go."""

    by_kind: tuple[MixPart, ...]
    by_context: tuple[MixPart, ...]  # ranges are powers of two


def mix(steps: TrafficSteps, drawn: Draw | None = None, times_s: Floats | None = None) -> Mix:
    """The mix by predicted seconds of all steps; with a draw also by its measured seconds, [drawn steps, rounds]."""
    octaves = np.floor(np.log2(np.maximum(steps.context, 1))).astype(int)

    def part(inside: Booleans, kind: StepKind | None = None, context: tuple[int, int] | None = None) -> MixPart:
        blank = MixPart(
            kind=kind, context=context, steps=int(inside.sum()), predicted_s=float(steps.predicted_s[inside].sum())
        )
        if drawn is None or times_s is None or not inside[drawn.steps].any():
            return blank
        return _measured(blank, inside[drawn.steps], drawn, times_s)

    return Mix(
        by_kind=tuple(part(steps.kinds == kind, kind=KINDS[kind]) for kind in np.unique(steps.kinds)),
        by_context=tuple(part(octaves == at, context=(2 ** int(at), 2 ** int(at + 1))) for at in np.unique(octaves)),
    )


def measured_as(part: MixPart, other: MixPart | None) -> MixPart:
    """The part with what was measured for another, of the same kind or context; None: nothing was."""
    if other is None:
        return msgspec.structs.replace(part, drawn=0, measured_s=None, share=None)
    return msgspec.structs.replace(part, drawn=other.drawn, measured_s=other.measured_s, share=other.share)


def _measured(part: MixPart, inside: Booleans, drawn: Draw, times_s: Floats) -> MixPart:
    """The part with its measured seconds and share. inside: [drawn steps], whether they are of this part."""
    logs = logarithms(times_s)
    seconds = drawn.weights * np.exp(mean(logs))
    of_part, count = np.where(inside, seconds, 0.0), int(inside.sum())
    influences = of_part / of_part.sum() - seconds / seconds.sum()
    share = interval(drawn, float(of_part.sum() / seconds.sum()), influences, influences[:, None] * logs)
    if (len(drawn.strata) and count < MIN_STEPS) or share.high is None:
        share = msgspec.structs.replace(share, low=None, high=None)
    else:
        share = msgspec.structs.replace(share, high=min(share.high, 1.0))
    return msgspec.structs.replace(part, drawn=count, measured_s=float(of_part.sum()), share=share)
