"""Where the steps of a trace and their attention time go: by kind of step, and by context length."""

from collections.abc import Iterator

import msgspec
import numpy as np

from attnbench import units
from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic import Draw, Integers, TrafficSteps
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
    measured = None if drawn is None or times_s is None else _measured(drawn, times_s)

    def parts(places: Integers) -> Iterator[tuple[int, MixPart]]:
        """The steps of each place, in order."""
        counts, predicted_s = np.bincount(places), np.bincount(places, steps.predicted_s)
        for place in np.flatnonzero(counts).tolist():
            part = MixPart(steps=int(counts[place]), predicted_s=float(predicted_s[place]))
            if measured is not None and (inside := places[measured.drawn.steps] == place).any():
                part = measured.fill(part, inside)
            yield place, part

    replace = msgspec.structs.replace
    return Mix(
        by_kind=tuple(replace(part, kind=KINDS[kind]) for kind, part in parts(steps.kinds)),
        by_context=tuple(replace(part, context=(2**octave, 2 ** (octave + 1))) for octave, part in parts(octaves)),
    )


def measured_as(part: MixPart, other: MixPart | None) -> MixPart:
    """The part with what was measured for another, of the same kind or context; None: nothing was."""
    if other is None:
        return msgspec.structs.replace(part, drawn=0, measured_s=None, share=None)
    return msgspec.structs.replace(part, drawn=other.drawn, measured_s=other.measured_s, share=other.share)


class _Measured(msgspec.Struct, frozen=True):
    """The drawn steps with their times."""

    drawn: Draw
    logs: Floats  # [drawn steps, rounds]
    seconds: Floats  # [drawn steps], of the trace
    total_s: float

    def fill(self, part: MixPart, inside: Booleans) -> MixPart:
        """The part with its measured seconds and share. inside: [drawn steps], whether they are of this part."""
        of_part, count = np.where(inside, self.seconds, 0.0), int(np.count_nonzero(inside))
        measured_s = float(of_part.sum())
        influences = of_part / measured_s - self.seconds / self.total_s
        share = interval(self.drawn, measured_s / self.total_s, influences, influences[:, None] * self.logs)
        if (len(self.drawn.strata) and count < MIN_STEPS) or share.high is None:
            share = msgspec.structs.replace(share, low=None, high=None)
        else:
            share = msgspec.structs.replace(share, high=min(share.high, 1.0))
        return msgspec.structs.replace(part, drawn=count, measured_s=measured_s, share=share)


def _measured(drawn: Draw, times_s: Floats) -> _Measured:
    logs = logarithms(times_s)
    seconds = drawn.weights * np.exp(mean(logs))
    return _Measured(drawn, logs, seconds, float(seconds.sum()))
