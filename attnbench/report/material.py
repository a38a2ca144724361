"""What the pages of a report are made of: rows of all its runs, and tables, charts and words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from attnbench import __version__, frame, lines, stats, units
from attnbench.errors import UsageError
from attnbench.frame import Roofs, Row
from attnbench.gate import history
from attnbench.gate.history import Point
from attnbench.joined import Joined
from attnbench.report import drawing
from attnbench.result import Result
from attnbench.stats import Noise
from attnbench.store import Run

ROWS_MOST = 1000  # of one table on a page; the file in tables/ has them all
CASES_MOST = 250_000  # of one report: what a row takes of memory, times this, stays below 3 GiB
KERNELS_MOST = 5  # of a case that was profiled
DETAILS_MOST = 2000  # results of which the blocks are looked at one by one
DRIFT_MOST = 60  # cases whose blocks are drawn one by one


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table under its heading; `numbers` says which columns are aligned as numbers."""

    heading: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[bool, ...] = ()
    note: str = ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One section of the report."""

    name: str
    title: str
    words: tuple[str, ...] = ()
    charts: tuple[tuple[str, Any], ...] = ()  # name and chart
    tables: tuple[Table, ...] = ()
    fill: str = ""  # the command that would fill a page that is empty

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.charts or any(table.rows for table in self.tables))


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What pages need of one (case, arm) beyond its row: how restless it was, its kernels."""

    label: str
    arm: str
    launches: int
    rounds: int
    noisy: bool
    half_width: float | None
    noise: Noise
    blocks: tuple[dict[str, Any], ...]  # of the first launch: round, position, time over the median, load, tags
    clocks: str  # of a GPU, least and most over the blocks, and its temperature
    kernels: tuple[dict[str, Any], ...]
    trace: str


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What all pages draw from."""

    runs: tuple[Run, ...]
    rows: list[Row]
    charted: list[Row]  # all of them, or of very many those of the first panels
    caption: str  # below the title of every chart
    details: list[Detail]  # of the first DETAILS_MOST results
    by_run: tuple[list[Row], ...]
    roofs: Roofs
    trend: Mapping[str, Sequence[tuple[Point, float]]]  # of the first run's machine, by case


def material(
    runs: Sequence[Run],
    keep: Callable[[Result], bool] | None = None,
    reference: str | None = None,
    points: Iterable[Point] = (),
) -> Material:
    """The rows of all runs, in order; `keep` chooses among their Results; `points` are of a project's history.

    UsageError for more than a page can hold.
    """
    kept = [lines.chosen(run.results, keep) if keep else run.results for run in runs]
    if sum(map(len, kept)) > CASES_MOST:
        raise UsageError(
            f"{sum(map(len, kept))} results are more than the {CASES_MOST} of one report: choose with --only and --skip"
        )
    names = _names(runs)
    by_run: list[list[Row]] = []
    details: list[Detail] = []
    roofs: dict[str, Any] = {}
    for run, results in zip(runs, kept, strict=True):
        own = frame.roofs_of(run.manifest)
        rows = frame.rows(results, reference, own)
        by_run.append([{**row, "run": names[len(by_run)]} for row in rows] if len(runs) > 1 else rows)
        details += filter(None, frame.each(results[: DETAILS_MOST - len(details)], lambda arms: map(_detail, arms)))
        roofs |= own
    for detail in details[DRIFT_MOST:]:
        if detail.blocks:
            msgspec.structs.force_setattr(detail, "blocks", ())
    every = [row for rows in by_run for row in rows]
    charted, left_out = drawing.focus(every)
    caption = "; ".join(filter(None, (drawing.caption_of(every, __version__), left_out)))
    return Material(
        runs=tuple(runs), rows=every, charted=charted, caption=caption, details=details, by_run=tuple(by_run),
        roofs=roofs, trend=history.series(points, runs[0].manifest.fingerprint),
    )  # fmt: skip


def _names(runs: Sequence[Run]) -> list[str]:
    """Short and distinct: the devices of the machines where those tell the runs apart, else the folders' names."""
    devices = [", ".join(run.manifest.machine.get("gpus") or [str(run.manifest.machine.get("cpu"))]) for run in runs]
    folders = [run.path.name for run in runs]
    for names in (devices, folders):
        if len(set(names)) == len(runs):
            return names
    return [f"{name} ({number})" for number, name in enumerate(folders, start=1)]


def _detail(joined: Joined) -> Detail | None:
    """None where nothing was timed and nothing profiled."""
    profiles = [result.facts["profile"] for result in joined.results if "profile" in result.facts]
    kernels = [row for seen in profiles for row in (seen.get("kernels") or seen.get("operators") or [])]
    trace = next((str(result.facts["trace"]) for result in joined.results if "trace" in result.facts), "")
    if not (joined.times and joined.time) and not kernels:
        return None
    first = joined.times[0] if joined.times else None
    return Detail(
        label=joined.case.label,
        arm=joined.arm.name,
        launches=joined.launches,
        rounds=sum(len({block.round for block in sample.blocks}) for sample in joined.times),
        noisy=joined.noisy,
        half_width=joined.time.relative_half_width if joined.time else None,
        noise=stats.noise(first) if first else Noise(),
        blocks=tuple(_blocks(first, joined)) if first else (),
        clocks=_clocks(first) if first else "",
        kernels=tuple(kernels[:KERNELS_MOST]),
        trace=trace,
    )


def _blocks(sample: Any, joined: Joined) -> list[dict[str, Any]]:
    middle = stats.location(stats.block_medians(sample))
    if not middle:
        return []
    return [
        {
            "kind": "point", "x": block.round, "y": median / middle, "arm": joined.arm.name,
            "label": joined.case.label, "position": block.position, "load": block.facts.get("load"),
            "tags": ", ".join(block.tags),
        }
        for block, median in zip(sample.blocks, stats.block_medians(sample), strict=False)
        if median is not None
    ]  # fmt: skip


def _clocks(sample: Any) -> str:
    """`1.76 GHz..1.98 GHz, 41 C..55 C, 310 W` as far as the device told."""
    said = []
    for fact, unit in (("sm_clock_hz", "Hz"), ("temperature_c", "C"), ("power_w", "W")):
        seen = [block.facts[fact] for block in sample.blocks if fact in block.facts]
        if seen:
            said.append("..".join(dict.fromkeys(units.rate(end, unit) for end in (min(seen), max(seen)))))
    return ", ".join(said)
