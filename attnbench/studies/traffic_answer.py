"""What the traffic of a trace costs by backend, stored beside the results of its run as `replay.json`."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from attnbench import units
from attnbench.analysis import serving_flags, traffic, traffic_totals
from attnbench.analysis.serving_flags import EngineSetting
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic import Draw, Mix, TrafficSteps
from attnbench.analysis.traffic_totals import Measured, PolicyName, TrafficTotals
from attnbench.errors import SchemaError, StoreError
from attnbench.records.result import Record

FILE = "replay.json"
VERSION = 1
MIN_GAIN = 0.01  # of one backend per phase over one for all, below which the headline does not name it


class TrafficAnswer(Record, frozen=True, kw_only=True):
    """The content of `replay.json`."""

    version: int  # stored even at its default: it is read before the rest
    trace: str  # its name
    model: str
    options: dict[str, str]  # of the simulation, as typed or by default
    seed: int  # of the draw
    steps: int  # simulated
    totals: TrafficTotals
    mix: Mix  # measured seconds are those of the fastest backend that ran every drawn step
    settings: tuple[EngineSetting, ...]

    @property
    def headline(self) -> str:
        """`flex for decode and naive for prefill and mixed take 10.1 s of attention per hour of traffic`."""
        single, phase = self.totals.policy(PolicyName.SINGLE), self.totals.policy(PolicyName.PHASE)
        over = single.over_phase
        split = phase.seconds and (not single.seconds or (over and over.low is not None and over.low > MIN_GAIN))
        policy = phase if split else single
        if policy.seconds is None:
            return "No backend ran every drawn step"
        verb = "take" if " and " in policy.words else "takes"
        per_hour = units.seconds(self.totals.per_hour(policy.seconds).value)
        text = f"{policy.words} {verb} {per_hour} of attention per hour of traffic"
        if split and over:
            return f"{text}; {single.words} alone takes {units.change(over.value).lstrip('+')} more"
        tied = [
            total.backend for total in self.totals.totals if total.over_fastest and _contains_one(total.over_fastest)
        ]
        return f"{text}; no difference was found to {' and '.join(tied)}" if tied else text

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the totals and their intervals lack: kinds of steps of which none was drawn."""
        return tuple(
            f"no {part.name} step was drawn, of {part.steps:,}: totals and intervals lack their time; draw more steps"
            for part in (self.mix.by_kind if self.totals.totals else ())
            if part.measured_s is None
        )


def _contains_one(ratio: Estimate) -> bool:
    return ratio.low is None or ratio.low <= 1


def make(
    *, trace: str, model: str, options: Mapping[str, str], seed: int, steps: TrafficSteps, drawn: Draw,
    measured: Measured, hours: float,
) -> TrafficAnswer:  # fmt: skip
    """The answer for the drawn steps of a simulated trace of so many hours."""
    totals = traffic_totals.estimate(drawn, measured, hours)
    fastest = traffic_totals.step_seconds(measured, totals.totals[0].backend) if totals.totals else None
    single, phase = (totals.policy(name) for name in (PolicyName.SINGLE, PolicyName.PHASE))
    of_phase = {choice.scope: choice.backend for choice in phase.choices}
    settings = serving_flags.settings(
        single.choices[0].backend if single.choices else None,
        of_phase.get(traffic_totals.DECODE), of_phase.get(traffic_totals.PREFILL),
    )  # fmt: skip
    return TrafficAnswer(
        version=VERSION, trace=trace, model=model, options=dict(options), seed=seed, steps=len(steps.kinds),
        totals=totals, mix=traffic.mix(steps, drawn, fastest), settings=tuple(settings),
    )  # fmt: skip


def write(answer: TrafficAnswer, directory: Path) -> Path:
    """Store the answer in a run directory; return the file. Raises StoreError where it cannot be written."""
    path = directory / FILE
    draft = path.with_suffix(".tmp")
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(answer), indent=2) + b"\n")
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error
    return path


def read(directory: Path) -> TrafficAnswer | None:
    """The answer of a run; None if it replays no trace.

    Raises SchemaError for another version of the format, StoreError for a file that holds no answer.
    """
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if version != VERSION:
            raise SchemaError(f"{path}: format {version}, and this attnbench reads {VERSION}: replay the trace again")
        return msgspec.json.decode(data, type=TrafficAnswer)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


class _Versioned(msgspec.Struct):
    version: int
