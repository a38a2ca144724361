"""The trend of a project: one appended line per commit, and where the level of a case changed, at once or slowly."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from attnbench.analysis import parallel
from attnbench.analysis.indexed_runs import FETCHED, MACHINE_ID, IndexedRuns
from attnbench.analysis.rows import rows_of
from attnbench.errors import StoreError, writing
from attnbench.records.result import Record
from attnbench.records.run_directory import Run

FILE = "history.jsonl"
MIN_POINTS = 3  # points of a stretch between two changes
MIN_CREEP = 5  # commits of a slow change
MIN_POOLED = 20_000  # points from which further processes pay off
MAX_STARTS = 200  # commits at which a slow change may begin, spread evenly over a long history
PENALTY = 3.0  # of a change, in units of variance times log n; the Bayesian information criterion needs a little over 2


class HistoryPoint(Record, frozen=True, kw_only=True):
    """One commit on one machine."""

    commit: str
    measured_at: str  # UTC, ISO 8601
    fingerprint: str
    suite: str
    run: str
    node: str = ""  # the tag `node` of the run
    dirty: bool = False
    seconds: dict[str, float]  # of a call, by case, arm and device

    @property
    def machine_id(self) -> str:
        """The fingerprint, with the node where it has one, as `Manifest.machine_id`."""
        return "/".join(filter(None, (self.fingerprint, self.node)))

    @property
    def name(self) -> str:
        """The short commit, or the run where there is no commit."""
        return f"{self.commit[:12] or self.run}{' with changes' if self.dirty else ''}"


Trend = Sequence[tuple[HistoryPoint, float]]  # of one case, in seconds


class LevelChange(msgspec.Struct, frozen=True, kw_only=True):
    """Where the level of a case changed: at one commit, or a little at each of several."""

    case: str
    at: HistoryPoint  # the first that differs from the level before
    before_s: float
    after_s: float
    commits: int = 1  # over which it changed

    @property
    def ratio(self) -> float:
        """After over before: above 1 is slower."""
        return self.after_s / self.before_s

    @property
    def ratio_each(self) -> float:
        """The ratio of one commit to the one before it."""
        return float(self.ratio ** (1 / self.commits))


def point(run: Run) -> HistoryPoint:
    """The point of a run: its times, or those of head for a gate."""
    commit = run.manifest.commit or {}
    rows = [row for row in rows_of(run.results, arms=run.manifest.arms) if row.time_s is not None]
    if run.manifest.gate:
        seconds = {f"{row.label}@{row.device}": row.seconds for row in rows if "head" in row.arm.split("@")}
    else:
        seconds = {row.name: row.seconds for row in rows}
    return HistoryPoint(
        commit=str(commit.get("commit", "")), dirty=bool(commit.get("dirty")), measured_at=run.manifest.created_at,
        fingerprint=run.manifest.fingerprint, suite=run.manifest.suite, run=run.path.name,
        seconds=seconds, node=run.manifest.node,
    )  # fmt: skip


def points_of(runs: IndexedRuns, machine: str, text: str = "") -> list[HistoryPoint]:
    """The points of the runs of a machine, as `point` makes them, of the cases whose name contains the text."""
    seconds: dict[str, dict[str, float]] = {}
    name = "CASE WHEN gate THEN label ELSE problem || ' ' || arm_name END || '@' || device"
    runs.connection.execute(
        f"SELECT path, {name} AS name, time_s FROM internal.located WHERE time_s IS NOT NULL AND "
        f"{MACHINE_ID} = ? AND contains(name, ?) AND (NOT gate OR list_contains(string_split(arm, '@'), 'head')) "
        "ORDER BY position, lines[1].place",
        [machine, text],
    )
    while batch := runs.connection.fetchmany(FETCHED):
        for path, case, time_s in batch:
            seconds.setdefault(path, {})[case] = time_s
    columns = "path, run, created_at, suite, coalesce(commit, ''), coalesce(dirty, false)"
    described = runs.connection.execute(f"SELECT {columns} FROM runs WHERE {MACHINE_ID} = ?", [machine]).fetchall()
    fingerprint, _, node = machine.partition("/")
    return [
        HistoryPoint(
            commit=commit, dirty=dirty, measured_at=created.replace(tzinfo=UTC).isoformat() if created else "",
            fingerprint=fingerprint, node=node, suite=suite, run=run, seconds=seconds.get(path, {}),
        )
        for path, run, created, suite, commit, dirty in described
    ]  # fmt: skip


def append(path: Path, new: HistoryPoint) -> bool:
    """Append a point to the file unless its run is there; return whether it was added.

    StoreError where it cannot be written.
    """
    if path.is_file() and any(_run_of(each) == _run_of(new) for each in load(path)[0]):
        return False
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(msgspec.json.encode(new) + b"\n")
    return True


def _run_of(point: HistoryPoint) -> tuple[str, str, str]:
    return point.run, point.measured_at, point.machine_id


def load(path: Path) -> tuple[list[HistoryPoint], int]:
    """All points, and the number of lines that are not points.

    StoreError for a file that cannot be read, and for one of other lines.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}: {adding(path)} creates it") from error
    points, skipped = [], 0
    for line in lines:
        try:
            points.append(msgspec.json.decode(line, type=HistoryPoint))
        except msgspec.MsgspecError:
            skipped += 1
    if skipped and not points:
        raise StoreError(f"{path} is no history: none of its lines is a point; {adding('FILE')} creates one")
    return points, skipped


def adding(path: Path | str) -> str:
    """The command that adds a run to a history file."""
    return f"attnbench history {shlex.quote(str(path))} --add RUN"


def series(points: Iterable[HistoryPoint], machine: str) -> dict[str, list[tuple[HistoryPoint, float]]]:
    """The points of one machine by case, in order of time. Two machines never form one trend."""
    by_case: dict[str, list[tuple[HistoryPoint, float]]] = {}
    for point in sorted(points, key=lambda point: point.measured_at):
        if point.machine_id == machine:
            for case, seconds in point.seconds.items():
                by_case.setdefault(case, []).append((point, seconds))
    return by_case


def level_changes(series: Mapping[str, Trend]) -> dict[str, list[LevelChange]]:
    """The changes of level of each case; of many points on all cores."""
    pooled = sum(map(len, series.values())) >= MIN_POOLED
    changed = parallel.share(lambda case: changes(case, series[case]), list(series), pooled, pieces=10)
    return dict(zip(series, changed, strict=True))


def changes(case: str, values: Trend) -> list[LevelChange]:
    """Changes of level of the logarithms by PELT (Killick, Fearnhead and Eckley, https://arxiv.org/abs/1101.1438).

    The variance is estimated from differences of neighbours, which a change of level hardly affects. Where a level
    that changes a little at each commit fits better than steps, at the same penalty, it is the only change.
    """
    if len(values) < 2 * MIN_POINTS:
        return []
    from ruptures import KernelCPD

    logs = np.log([seconds for _, seconds in values])
    steps = np.abs(np.diff(logs))
    sd = max(float(np.median(steps)) / 0.6745 / math.sqrt(2), 1e-4)
    penalty = PENALTY * sd * sd * math.log(len(logs))
    # The linear kernel is the squared error, and is compiled: `Pelt` takes seconds for a thousand points.
    search = KernelCPD(kernel="linear", min_size=MIN_POINTS).fit(logs.reshape(-1, 1))
    ends = [int(end) for end in search.predict(pen=penalty)]
    edges = [0, *ends]
    stretches = [logs[low:high] for low, high in zip(edges, ends, strict=False)]
    cost = sum(len(stretch) * float(np.var(stretch)) for stretch in stretches) + penalty * (len(stretches) - 1)
    start, slope, level, error = _creep(logs)
    if error + penalty < cost:
        count = len(logs) - 1 - start
        return [
            LevelChange(
                case=case, at=values[start + 1][0], before_s=math.exp(level), after_s=math.exp(level + slope * count),
                commits=count,
            )
        ]  # fmt: skip
    levels = [float(np.median(stretch)) for stretch in stretches]
    return [
        LevelChange(case=case, at=values[edge][0], before_s=math.exp(before), after_s=math.exp(after))
        for edge, before, after in zip(ends, levels, levels[1:], strict=False)
    ]


def _creep(logs: npt.NDArray[np.float64]) -> tuple[int, float, float, float]:
    """The best fit of a level that changes evenly from some commit to the last one, by least squares.

    The last place before the change, the change at each commit, the level before, and the sum of squared errors.
    """
    places = np.arange(len(logs))
    starts = np.unique(np.linspace(0, len(logs) - 1 - MIN_CREEP, MAX_STARTS).astype(int))
    fits = []
    for start in starts:
        since = np.maximum(places - start, 0)
        slope = float(np.cov(since, logs, bias=True)[0, 1] / np.var(since))
        level = float(logs.mean() - slope * since.mean())
        fits.append((float(np.sum((logs - level - slope * since) ** 2)), int(start), slope, level))
    error, start, slope, level = min(fits)
    return start, slope, level, error
