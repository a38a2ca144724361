"""The noise floor of a machine: the difference that equal arms show, by the duration of a call.

Every A/A measurement adds to the calibration of the machine; the margins of a gate follow from many of them. Kernels of
users have a noise floor apart from that of libraries: one noisy kernel would widen the margins of all others.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from attnbench import backends, units
from attnbench.analysis.restarts import Restarts
from attnbench.analysis.stats import t_quantile
from attnbench.errors import StoreError, writing
from attnbench.records import ceilings
from attnbench.records.result import Record

QUANTILE = 0.99
ENOUGH = 20  # A/A runs: with fewer, the largest difference stands for the quantile, and is labelled so
CLASSES_S = (1e-3, 1e-2, 1e-1)  # upper ends of the classes of duration
NOISE_CONFIDENCE = 0.99  # 99 of 100 means of equal arms lie within
COMMON_RESTARTS = 6  # the number for which a factor is given
BETWEEN_RUNS = 0.10  # difference between two runs of equal code, where no such runs show it; a share


class KernelKind(StrEnum):
    """Whose kernels share a noise floor."""

    LIBRARY = "library"
    USER = "user"  # from a file or module that is named in --backend


class ControlPair(Record, frozen=True, kw_only=True):
    """An A/A control against its equal on one case, over several restarts."""

    device: str
    label: str
    seconds: float  # of a call
    effect: float  # log of the ratio of their times
    half_width: float  # of its 95 % interval over restarts
    restarts: int = msgspec.field(name="launches")  # stored under its first name
    torch: str = ""
    measured_at: str = ""  # UTC, ISO 8601
    kernel: KernelKind = KernelKind.LIBRARY


class NoiseFloor(Record, frozen=True, kw_only=True):
    """The noise floor of one class of duration."""

    shortest_s: float  # of its cases
    longest_s: float  # of its cases; infinity for the last class
    effect: float  # as a share: 0.02 is 2 %
    runs: int
    cases: int

    @property
    def label(self) -> str:
        return "99th percentile" if self.runs >= ENOUGH else f"largest so far, of {self.runs} runs"


class DurationNoise(Record, frozen=True, kw_only=True):
    """How far equal arms differ, over calls of one class of duration."""

    shortest_s: float  # of the class, which ends where the next one begins
    factor: float  # as `factor` has it
    runs: int


def kernel_kind(backend: str) -> KernelKind:
    """Whose kernel the backend is."""
    return KernelKind.USER if backends.is_file(backend) else KernelKind.LIBRARY


def of_run(measured: Iterable[Restarts], torch: str = "") -> Iterator[ControlPair]:
    """A pair for each A/A control that was measured over several restarts."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for control in measured:
        ratio = control.speedup
        if control.arm.copy < 2 or control.count < 2 or not control.time or not (ratio and ratio.low and ratio.high):
            continue
        half_width = (math.log(ratio.high) - math.log(ratio.low)) / 2
        yield ControlPair(
            device=control.arm.device, label=control.case.label, seconds=control.time.value,
            effect=math.log(ratio.value), half_width=half_width, restarts=control.count, torch=torch, measured_at=now,
            kernel=kernel_kind(control.arm.backend),
        )  # fmt: skip


def of_effects(
    control: Restarts, effects: Mapping[int, float], measured_at: str, torch: str = ""
) -> ControlPair | None:
    """A pair from the effects by restart of an A/A control; None for fewer than two restarts."""
    values = np.array(list(effects.values()))
    if len(values) < 2 or not control.time:
        return None
    half_width = t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return ControlPair(
        device=control.arm.device, label=control.case.label, seconds=control.time.value,
        effect=float(values.mean()), half_width=half_width, restarts=len(values), torch=torch, measured_at=measured_at,
        kernel=kernel_kind(control.arm.backend),
    )  # fmt: skip


def factor(pairs: Sequence[ControlPair]) -> tuple[float, int]:
    """The 99th percentile of the standard errors between equal arms, and the number of A/A runs behind it.

    Normal noise between restarts gives Student's t; what the machine adds shows here. 0 with fewer than ENOUGH runs.
    Each pair counts as if it had COMMON_RESTARTS restarts: t is wider for fewer.
    """
    runs = len({pair.measured_at for pair in pairs})
    usable = [pair for pair in pairs if pair.half_width > 0 and pair.restarts > 1]
    scores = [
        abs(pair.effect) / pair.half_width * t_quantile(pair.restarts - 1)
        * normal_factor(COMMON_RESTARTS) / normal_factor(pair.restarts)
        for pair in usable
    ]  # fmt: skip
    return (float(np.quantile(scores, QUANTILE)), runs) if scores and runs >= ENOUGH else (0.0, runs)


def normal_factor(restarts: int) -> float:
    """How many standard errors hold the mean of that many normal restarts 99 times of 100."""
    return t_quantile(restarts - 1, NOISE_CONFIDENCE)


def factors(pairs: Sequence[ControlPair]) -> tuple[DurationNoise, ...]:
    """`factor` over each class of duration that was measured, from short to long."""
    values = ((shortest, factor(in_class)) for shortest, _, in_class in _by_duration(pairs))
    return tuple(DurationNoise(shortest_s=shortest, factor=value, runs=runs) for shortest, (value, runs) in values)


def class_of(seconds: float) -> float:
    """The lower end of the class of duration of a call."""
    return max((end for end in CLASSES_S if end <= seconds), default=0.0)


def class_name(shortest: float) -> str:
    """`under 1.00 ms`: a class of duration, by its lower end."""
    longest = next((end for end in CLASSES_S if end > shortest), None)
    return f"under {units.seconds(longest)}" if longest else f"over {units.seconds(shortest)}"


def classes(pairs: Sequence[ControlPair]) -> list[NoiseFloor]:
    """The noise floor of each class of duration that was measured, from short to long."""
    floors = []
    for shortest, longest, in_class in _by_duration(pairs):
        effects = np.abs([pair.effect for pair in in_class])
        runs = len({pair.measured_at for pair in in_class})
        value = float(np.quantile(effects, QUANTILE)) if runs >= ENOUGH else float(effects.max())
        bounds = {"shortest_s": shortest, "longest_s": longest}
        floors.append(NoiseFloor(**bounds, effect=math.expm1(value), runs=runs, cases=len(in_class)))
    return floors


class BetweenRuns:
    """The noise floor of two stored runs on one machine: A/A runs where they differ by more than is assumed."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._classes: dict[str, dict[float, NoiseFloor]] = {}  # by device and lower end of the class

    def of(self, device: str, seconds: float) -> tuple[float, str]:
        """The difference that equal code may show in calls of that duration, as a share, and where it is from."""
        if device not in self._classes:
            self._classes[device] = {floor.shortest_s: floor for floor in classes(load(self._fingerprint, device))}
        floor = self._classes[device].get(class_of(seconds))
        if floor and floor.effect > BETWEEN_RUNS:
            name = class_name(floor.shortest_s)
            return floor.effect, f"A/A controls of this machine, calls {name} ({floor.label})"
        if self._classes[device]:
            return BETWEEN_RUNS, "assumed for two runs; within a run, A/A controls of this machine differ by less"
        return BETWEEN_RUNS, "assumed, since no A/A runs of this machine are stored: attnbench calibrate --floor"


def _by_duration(pairs: Sequence[ControlPair]) -> Iterator[tuple[float, float, list[ControlPair]]]:
    """The ends of each class of duration that was measured, and its pairs."""
    for shortest, longest in pairwise((0.0, *CLASSES_S, math.inf)):
        if in_class := [pair for pair in pairs if shortest <= pair.seconds < longest]:
            yield shortest, longest, in_class


def _file(fingerprint: str) -> Path:
    return ceilings.folder(fingerprint) / "floor.jsonl"


def add(fingerprint: str, pairs: Sequence[ControlPair]) -> Path:
    """Append pairs to the calibration of a machine. StoreError where that cannot be written."""
    path = _file(fingerprint)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(pair) + b"\n" for pair in pairs))
    return path


def load(fingerprint: str, device: str, kernel: KernelKind = KernelKind.LIBRARY) -> list[ControlPair]:
    """All pairs of such kernels that were measured on a device; lines that cannot be read are left out."""
    try:
        lines = _file(fingerprint).read_bytes().splitlines()
    except (OSError, StoreError):
        return []
    pairs = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError):
            pairs.append(msgspec.json.decode(line, type=ControlPair))
    return [pair for pair in pairs if (pair.device, pair.kernel) == (device, kernel)]
