"""The trend of a project: one line a commit, appended and never rewritten; where a case changed, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from attnbench import frame
from attnbench.errors import StoreError
from attnbench.result import Record
from attnbench.store import Run

FILE = "history.jsonl"
LEAST = 3  # points of a stretch between two changes
PENALTY = 3.0  # of a change, in units of variance times log n: Bayes' information criterion asks for 2 and a little


class Point(Record, frozen=True, kw_only=True):
    """One commit on one machine."""

    commit: str
    measured_at: str  # UTC, ISO 8601
    fingerprint: str
    suite: str
    run: str
    dirty: bool = False
    seconds: dict[str, float]  # of a call, by label and device

    @property
    def name(self) -> str:
        """The commit in short, or the run where there is none."""
        return f"{self.commit[:12] or self.run}{' with changes' if self.dirty else ''}"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Where the level of a case changed."""

    case: str
    at: Point  # the first of the new level
    before_s: float
    after_s: float

    @property
    def ratio(self) -> float:
        """After over before: above 1 is slower."""
        return self.after_s / self.before_s


def point(run: Run) -> Point:
    """Of a run: its own times, or head's of a gate."""
    commit = run.manifest.commit or {}
    rows = [row for row in frame.rows(run.results) if row["time_s"] is not None]
    if run.manifest.gate:
        rows = [row for row in rows if "head" in row["arm"].split("@")]
    return Point(
        commit=str(commit.get("commit", "")), dirty=bool(commit.get("dirty")), measured_at=run.manifest.created_at,
        fingerprint=run.manifest.fingerprint, suite=run.manifest.suite, run=run.path.name,
        seconds={f"{row['label']}@{row['device']}": row["time_s"] for row in rows},
    )  # fmt: skip


def append(path: Path, new: Point) -> None:
    """Add a line. StoreError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(msgspec.json.encode(new) + b"\n")
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error


def load(path: Path) -> tuple[list[Point], int]:
    """All points, and how many lines are none. StoreError for a file that cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}: attnbench history --add RUN begins one") from error
    points, skipped = [], 0
    for line in lines:
        try:
            points.append(msgspec.json.decode(line, type=Point))
        except msgspec.MsgspecError:
            skipped += 1
    return points, skipped


def series(points: Iterable[Point], fingerprint: str) -> dict[str, list[tuple[Point, float]]]:
    """Of one machine, by case, in the order of time; two machines are never one trend."""
    found: dict[str, list[tuple[Point, float]]] = {}
    for one in sorted(points, key=lambda one: one.measured_at):
        if one.fingerprint == fingerprint:
            for case, seconds in one.seconds.items():
                found.setdefault(case, []).append((one, seconds))
    return found


def changes(case: str, values: Sequence[tuple[Point, float]]) -> list[Change]:
    """Changes of level by PELT (Killick, Fearnhead and Eckley, https://arxiv.org/abs/1101.1438), on logarithms.

    The variance is taken from differences of neighbours, which a change of level hardly moves.
    """
    if len(values) < 2 * LEAST:
        return []
    from ruptures import Pelt

    logs = np.log([seconds for _, seconds in values])
    steps = np.abs(np.diff(logs))
    sd = max(float(np.median(steps)) / 0.6745 / math.sqrt(2), 1e-4)
    found = (
        Pelt(model="l2", min_size=LEAST, jump=1)
        .fit(logs.reshape(-1, 1))
        .predict(pen=PENALTY * sd * sd * math.log(len(logs)))
    )
    edges = [0, *found]
    levels = [float(np.median(logs[low:high])) for low, high in zip(edges, found, strict=False)]
    return [
        Change(case=case, at=values[edge][0], before_s=math.exp(before), after_s=math.exp(after))
        for edge, before, after in zip(found, levels, levels[1:], strict=False)
    ]
