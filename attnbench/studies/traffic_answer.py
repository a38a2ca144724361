"""What the traffic of a trace costs by backend, stored beside the results of its run as `replay.json`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace

from attnbench import units
from attnbench.analysis import serving_flags, traffic_mix, traffic_part, traffic_totals
from attnbench.analysis.readings import Floats
from attnbench.analysis.serving_flags import EngineSetting
from attnbench.analysis.stats import Estimate
from attnbench.analysis.traffic import Draw, TrafficSteps
from attnbench.analysis.traffic_mix import Mix
from attnbench.analysis.traffic_part import Booleans, MeasuredPart
from attnbench.analysis.traffic_totals import Measured, Policy, PolicyName, TrafficTotals
from attnbench.attention.problem import Problem
from attnbench.errors import SchemaError, StoreError, writing
from attnbench.records.result import Record

FILE = "replay.json"
VERSION = 1
MIN_GAIN = 0.01  # of one backend per phase over one for all, below which the headline does not name it


class DrawnSteps(Record, frozen=True, kw_only=True):
    """The measured steps, by which an answer follows from results again; one entry of each field for each step."""

    layers: tuple[tuple[tuple[Problem, int], ...], ...]  # the problem of each kind of layer, and its number of layers
    kinds: tuple[int, ...]  # places in KINDS
    context: tuple[float, ...]  # keys per request
    weights: tuple[float, ...]  # of the draw
    strata: tuple[int, ...]  # of the last ones, which are not in every draw
    requests: tuple[int, ...] = ()  # with the next two, what smaller draws need; empty in older files
    max_q: tuple[int, ...] = ()
    predicted_s: tuple[float, ...] = ()

    @property
    def draw(self) -> Draw:
        """The draw, with the steps numbered in their order here."""
        return Draw(steps=np.arange(len(self.kinds)), weights=np.array(self.weights), strata=np.array(self.strata, int))

    @property
    def table(self) -> TrafficSteps:
        """The steps, in the order of the draw."""
        return TrafficSteps(**{name: np.array(getattr(self, name)) for name in TrafficSteps.__struct_fields__})


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
    drawn: DrawnSteps | None = None  # None: of a version that did not store it
    unmeasured: int = 0  # drawn steps that the totals lack, since the budget ended or the run was interrupted
    unsound: str = ""  # why the steps that are measured give no totals

    @property
    def policy(self) -> Policy | None:
        """The choice of backends that the headline names: one for all, or one for each phase; None: no answer."""
        single, phase = self.totals.policy(PolicyName.SINGLE), self.totals.policy(PolicyName.PHASE)
        over = single.over_phase
        split = phase.seconds and (not single.seconds or (over and over.low is not None and over.low > MIN_GAIN))
        policy = phase if split else single
        return policy if policy.seconds else None

    @property
    def hopeless(self) -> bool:
        """Whether more steps give no answer: every drawn step is measured, and no choice of backends ran them all."""
        return not (self.policy or self.unmeasured)

    @property
    def headline(self) -> str:
        """`flex for decode and naive for prefill and mixed take 10.1 s of attention per hour of traffic`."""
        policy, single = self.policy, self.totals.policy(PolicyName.SINGLE)
        if policy is None or policy.seconds is None:
            return "Too few drawn steps are measured" if self.unsound else "No backend ran every drawn step"
        verb = "take" if " and " in policy.words else "takes"
        # Of one backend those of all rounds, as in the table of backends; of one per phase those it was scored with.
        each = {total.backend: total.seconds for total in self.totals.totals}
        per_hour = units.seconds(self.totals.per_hour(each.get(policy.words, policy.seconds)).value)
        text = f"{policy.words} {verb} {per_hour} of attention per hour of traffic{self._part}"
        if policy.name is PolicyName.PHASE and single.over_phase:
            return f"{text}; {single.words} alone takes {units.change(single.over_phase.value).lstrip('+')} more"
        tied = [
            total.backend for total in self.totals.totals if total.over_fastest and _contains_one(total.over_fastest)
        ]
        return f"{text}; no difference was found to {' and '.join(tied)}" if tied else text

    @property
    def _part(self) -> str:
        """`, from 41 of 64 steps`; empty where all are measured, or the measured ones stand for no others."""
        return f", from {self.totals.drawn} of {self.totals.drawn + self.unmeasured} steps" if self.partial else ""

    @property
    def partial(self) -> bool:
        """Whether the totals are estimated from a part of the drawn steps."""
        return bool(self.unmeasured) and not self.unsound

    @property
    def cautions(self) -> tuple[str, ...]:
        """What the totals and their intervals lack: steps, draws, and kinds of steps of which none was drawn."""
        return tuple(filter(None, (self._unmeasured(), self._few(), *self._kinds())))

    def _unmeasured(self) -> str:
        if not self.unmeasured:
            return ""
        lack = f"{units.counted(self.unmeasured, 'drawn step')} not measured yet"
        if self.unsound:
            return f"{lack}, and the others cannot stand for them: {self.unsound}; continue the run"
        return f"{lack}: the others are a random part of all" + (
            "" if self.totals.missing else ", with wider intervals"
        )

    def _few(self) -> str:
        missing = self.totals.missing if self.totals.totals or not self.unsound else 0
        if not missing or self.hopeless:
            return ""
        few = f"{units.counted(self.totals.drawn, 'drawn step')}: intervals need {missing} more"
        if self.partial and self.unmeasured >= missing:
            return f"{few}; continue the run"
        return f"{few} (--steps {self.totals.drawn + missing}, and --budget for the time)"

    def _kinds(self) -> Iterator[str]:
        what, then = ("measured", "continue the run") if self.partial else ("drawn", "draw more steps")
        for part in self.mix.by_kind if self.totals.totals else ():
            if part.measured_s is None:
                lacks = f"no {part.name} step was {what}, of {part.steps:,}"
                yield f"{lacks}: totals and intervals lack their time; {then}"


def _contains_one(ratio: Estimate) -> bool:
    return ratio.low is not None and ratio.low <= 1  # without an interval, no difference was looked for


def make(
    *, trace: str, model: str, options: Mapping[str, str], seed: int, steps: TrafficSteps, drawn: Draw,
    measured: Measured, hours: float, layers: Sequence[Sequence[tuple[Problem, int]]] = (),
    lacking: Booleans | None = None,
) -> TrafficAnswer:  # fmt: skip
    """The answer for the drawn steps of a simulated trace of so many hours; `layers`: the problems of each of them.

    lacking: [drawn steps], those that are not measured yet.
    """
    of_draw = steps.at(drawn.steps)
    stored = DrawnSteps(
        layers=tuple(map(tuple, layers)), weights=tuple(drawn.weights.tolist()), strata=tuple(drawn.strata.tolist()),
        **{name: tuple(getattr(of_draw, name).tolist()) for name in TrafficSteps.__struct_fields__},
    )  # fmt: skip
    part = _part(drawn, of_draw, seed, lacking)
    measured = measured.at(part.places)
    totals = traffic_totals.estimate(part.drawn, measured, hours)
    return TrafficAnswer(
        version=VERSION, trace=trace, model=model, options=dict(options), seed=seed, steps=len(steps.kinds),
        totals=totals, mix=traffic_mix.mix(steps, part.drawn, _fastest(measured, totals)), settings=_settings(totals),
        drawn=stored if layers else None, unmeasured=part.unmeasured, unsound=part.reason,
    )  # fmt: skip


def _part(drawn: Draw, of_draw: TrafficSteps, seed: int, lacking: Booleans | None) -> MeasuredPart:
    nested = traffic_part.nested(drawn, of_draw, seed)
    return nested.measured(np.zeros(len(drawn.steps), bool) if lacking is None else lacking)


def remade(answer: TrafficAnswer, drawn: DrawnSteps, measured: Measured, lacking: Booleans) -> TrafficAnswer:
    """The answer for other measurements of its drawn steps."""
    part = _part(drawn.draw, drawn.table, answer.seed, lacking)
    measured = measured.at(part.places)
    totals = traffic_totals.estimate(part.drawn, measured, answer.totals.hours)
    of_drawn = traffic_mix.mix(drawn.table, part.drawn, _fastest(measured, totals))
    again = {(part.kind, part.context): part for part in (*of_drawn.by_kind, *of_drawn.by_context)}
    by_kind, by_context = (
        tuple(traffic_mix.measured_as(part, again.get((part.kind, part.context))) for part in parts)
        for parts in (answer.mix.by_kind, answer.mix.by_context)
    )
    return replace(
        answer, totals=totals, mix=Mix(by_kind=by_kind, by_context=by_context), settings=_settings(totals),
        unmeasured=part.unmeasured, unsound=part.reason,
    )  # fmt: skip


def _fastest(measured: Measured, totals: TrafficTotals) -> Floats | None:
    """Seconds with the backend that is fastest for all, [drawn steps, rounds]; None if none ran every step."""
    return measured.of(totals.totals[0].backend) if totals.totals else None


def _settings(totals: TrafficTotals) -> tuple[EngineSetting, ...]:
    single, phase = (totals.policy(name) for name in (PolicyName.SINGLE, PolicyName.PHASE))
    of_phase = {choice.scope: choice.backend for choice in phase.choices}
    settings = serving_flags.settings(
        single.choices[0].backend if single.choices else None,
        of_phase.get(traffic_totals.DECODE), of_phase.get(traffic_totals.PREFILL),
    )  # fmt: skip
    return tuple(settings)


def write(answer: TrafficAnswer, directory: Path) -> Path:
    """Store the answer in a run directory; return the file. Raises StoreError where it cannot be written."""
    path = directory / FILE
    draft = path.with_suffix(".tmp")
    with writing(path):
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(answer), indent=2) + b"\n")
        draft.replace(path)
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
