"""The noise floor of a machine: how far two equal arms seem to differ, by how long their case takes.

Every A/A measurement adds to what the machine's calibration keeps; a margin that a gate can trust follows from many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from attnbench import ceilings
from attnbench.errors import StoreError
from attnbench.joined import Joined
from attnbench.result import Record

QUANTILE = 0.99
ENOUGH = 20  # A/A runs: below, the largest so far stands for the quantile, and is labelled so
CLASSES_S = (1e-3, 1e-2, 1e-1)  # ends of the classes of duration


class Twins(Record, frozen=True, kw_only=True):
    """Two equal arms on one case, launch after launch."""

    device: str
    label: str
    seconds: float  # of a call
    effect: float  # log of the ratio of their times; 0 if nothing differed
    half_width: float  # of its 95 % interval over launches
    launches: int
    torch: str = ""
    measured_at: str = ""  # UTC, ISO 8601


class Floor(Record, frozen=True, kw_only=True):
    """The floor of one class of duration."""

    longest_s: float  # of its cases; infinity for the last class
    effect: float  # as a share: 0.02 is 2 %
    runs: int
    cases: int

    @property
    def label(self) -> str:
        """What the number is."""
        return "99th percentile" if self.runs >= ENOUGH else f"largest so far, of {self.runs} runs"


def of_run(joined: Iterable[Joined], torch: str = "") -> Iterator[Twins]:
    """Of every second twin that was measured over several launches."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for one in joined:
        ratio = one.speedup
        if one.arm.twin < 2 or not one.time or not ratio or not ratio.low or not ratio.high or one.launches < 2:
            continue
        yield Twins(
            device=one.arm.device,
            label=one.case.label,
            seconds=one.time.value,
            effect=math.log(ratio.value),
            half_width=(math.log(ratio.high) - math.log(ratio.low)) / 2,
            launches=one.launches,
            torch=torch,
            measured_at=now,
        )


def factor(twins: Sequence[Twins]) -> tuple[float, int]:
    """How many standard errors equal arms lie apart, at the 99th percentile, and the number of A/A runs behind it.

    Normal launches without any bias of an arm give Student's t; what the machine adds to that shows here. 0 below
    ENOUGH runs.
    """
    from scipy.special import stdtrit

    runs = len({one.measured_at for one in twins})
    scores = [
        abs(one.effect) / (one.half_width / float(stdtrit(one.launches - 1, 0.975)))
        for one in twins
        if one.half_width > 0 and one.launches > 1
    ]
    return (float(np.quantile(scores, QUANTILE)), runs) if scores and runs >= ENOUGH else (0.0, runs)


def of_effects(one: Joined, effects: Mapping[int, float], measured_at: str, torch: str = "") -> Twins | None:
    """An arm against its equal, by the effects of every launch; None for fewer than two launches."""
    values = np.array(list(effects.values()))
    if len(values) < 2 or not one.time:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))
    return Twins(
        device=one.arm.device, label=one.case.label, seconds=one.time.value, effect=float(values.mean()),
        half_width=half, launches=len(values), torch=torch, measured_at=measured_at,
    )  # fmt: skip


def classes(twins: Sequence[Twins]) -> list[Floor]:
    """The floor of every class of duration that was measured, from short to long."""
    found, shortest = [], 0.0
    for longest in (*CLASSES_S, math.inf):
        own = [one for one in twins if shortest <= one.seconds < longest]
        shortest = longest
        if own:
            effects = np.abs([one.effect for one in own])
            runs = len({one.measured_at for one in own})
            value = float(np.quantile(effects, QUANTILE)) if runs >= ENOUGH else float(effects.max())
            found.append(Floor(longest_s=longest, effect=math.expm1(value), runs=runs, cases=len(own)))
    return found


# -- storage -----------------------------------------------------------------------------------------------------------


def _file(fingerprint: str) -> Path:
    return ceilings.folder(fingerprint) / "floor.jsonl"


def add(fingerprint: str, twins: Sequence[Twins]) -> Path:
    """Append to what the machine's calibration keeps."""
    path = _file(fingerprint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(one) + b"\n" for one in twins))
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error
    return path


def load(fingerprint: str, device: str) -> list[Twins]:
    """All that was measured of a device; lines that cannot be read are left out."""
    try:
        lines = _file(fingerprint).read_bytes().splitlines()
    except OSError:
        return []
    return [one for line in lines if (one := _decoded(line)) and one.device == device]


def _decoded(line: bytes) -> Twins | None:
    try:
        return msgspec.json.decode(line, type=Twins)
    except msgspec.MsgspecError:
        return None
