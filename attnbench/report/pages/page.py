"""One page of a report, the pieces that several pages share, and the data that pages are made from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from attnbench import units
from attnbench._version import __version__
from attnbench.analysis import readings
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.restarts import Restarts, map_problems
from attnbench.analysis.roofline import CeilingsByDevice, ceilings_by_device
from attnbench.analysis.rows import Row, RowOfRun, rows_of
from attnbench.errors import UsageError
from attnbench.gate import history
from attnbench.records import results_file
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Result, Sample
from attnbench.records.run_directory import Run
from attnbench.report.charts import drawing

MAX_ROWS = 1000  # of one table on a page; the file in tables/ has all
MAX_CASES = 250_000  # of one report: their rows take less than 3 GiB of memory
MAX_KERNELS = 5  # of a profiled case
MAX_DETAILS = 2000  # results whose blocks are read
MAX_DRIFT = 60  # cases whose blocks are drawn


class PageTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table under its heading; `numbers` says which columns are aligned as numbers."""

    heading: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[bool, ...] = ()
    note: str = ""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One section of the report."""

    name: str = ""  # set with the title when the report is put together
    title: str = ""
    text: tuple[str, ...] = ()  # paragraphs
    charts: tuple[tuple[str, drawing.Chart], ...] = ()  # by name
    tables: tuple[PageTable, ...] = ()
    hint: str = ""  # the command that would fill the page

    @property
    def empty(self) -> bool:
        return not (self.charts or any(table.rows for table in self.tables))


def drawn(**charts: drawing.Chart | None) -> tuple[tuple[str, drawing.Chart], ...]:
    """The charts that have data, by name."""
    return tuple((name, chart) for name, chart in charts.items() if chart is not None)


def metrics_table(heading: str, rows: Sequence[Row], names: Sequence[str]) -> PageTable:
    """One line for each case with these metrics; a metric that was never measured gets no column."""
    measured = [name for name in names if any(row.value(name) is not None for row in rows)]
    lines = [
        (row.name, *(METRICS[name].show(row.number(name)) for name in measured))
        for row in rows
        if any(row.value(name) is not None for name in measured)
    ]
    numbers = (False, *([True] * len(measured)))
    return PageTable(heading=heading, head=("case", *measured), rows=lines, numbers=numbers)


def without_empty_columns(table: PageTable) -> PageTable:
    """The table without the columns that are empty in every row."""
    places = [place for place in range(len(table.head)) if any(row[place] for row in table.rows)]
    return msgspec.structs.replace(
        table,
        head=tuple(table.head[place] for place in places),
        numbers=tuple(table.numbers[place] for place in places),
        rows=[tuple(row[place] for place in places) for row in table.rows],
    )


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What pages need of one (case, arm) beyond its row: its noise and its kernels."""

    label: str
    restarts: int
    rounds: int
    noisy: bool
    half_width: float | None
    noise: readings.NoiseStatistics
    blocks: tuple[drawing.Point, ...]  # of the first restart: round, position, time over the median, load, tags
    clocks: str  # of a GPU, lowest and highest over the blocks, with temperature and power
    kernels: tuple[dict[str, Any], ...]  # as the profile of the result has them
    trace: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """The data of all pages."""

    runs: tuple[Run, ...]
    rows: list[Row]
    charted: list[Row]  # all rows, or those of the first panels if there are very many
    caption: str  # below the title of every chart
    details: list[Detail]  # of the first MAX_DETAILS results
    by_run: tuple[list[Row], ...]
    ceilings: CeilingsByDevice
    trend: Mapping[str, Sequence[tuple[history.HistoryPoint, float]]]  # of the first run's machine, by case


def report_data(
    runs: Sequence[Run],
    keep: Callable[[Result], bool] | None = None,
    reference: str | None = None,
    points_of_history: Iterable[history.HistoryPoint] = (),
) -> ReportData:
    """Read the runs, in order; `keep` selects results, and `reference` names the arm that speed-ups are over.

    Raises UsageError for more results than one report can hold.
    """
    selected = [results_file.chosen(run.results, keep) if keep else run.results for run in runs]
    count = sum(map(len, selected))
    if count > MAX_CASES:
        raise UsageError(f"{count} results are more than the {MAX_CASES} of one report: choose with --only and --skip")
    by_run: list[list[Row]] = []
    details: list[Detail] = []
    ceilings: dict[str, Ceilings] = {}
    arms = [arm for run in runs for arm in run.manifest.arms]
    for run, name, results in zip(runs, _names(runs), selected, strict=True):
        of_run = ceilings_by_device(run.manifest)
        rows = rows_of(results, reference, of_run, arms)
        details_of = partial(map, partial(_detail, run=name if len(runs) > 1 else ""))
        if len(runs) > 1:
            rows = [RowOfRun(**msgspec.structs.asdict(row), run=name) for row in rows]
        by_run.append(rows)
        details += filter(None, map_problems(results[: MAX_DETAILS - len(details)], details_of, arms=arms))
        ceilings |= of_run
    details[MAX_DRIFT:] = [msgspec.structs.replace(detail, blocks=()) for detail in details[MAX_DRIFT:]]
    every = [row for rows in by_run for row in rows]
    charted, left_out = drawing.limit_rows(every)
    caption = "; ".join(filter(None, (drawing.caption_of(every, __version__), left_out)))
    return ReportData(
        runs=tuple(runs), rows=every, charted=charted, caption=caption, details=details, by_run=tuple(by_run),
        ceilings=ceilings, trend=history.series(points_of_history, runs[0].manifest.fingerprint),
    )  # fmt: skip


def _names(runs: Sequence[Run]) -> list[str]:
    """Short and distinct names: the devices of the machines if they differ, else the folders, numbered if equal."""
    devices = [", ".join(run.manifest.machine.get("gpus") or [str(run.manifest.machine.get("cpu"))]) for run in runs]
    folders = [run.path.name for run in runs]
    for names in (devices, folders):
        if len(set(names)) == len(runs):
            return names
    return [f"{name} ({number})" for number, name in enumerate(folders, start=1)]


def _detail(joined: Restarts, run: str) -> Detail | None:
    """None if nothing was timed and nothing profiled."""
    profiles = [result.facts["profile"] for result in joined.results if "profile" in result.facts]
    kernels = [row for profile in profiles for row in (profile.get("kernels") or profile.get("operators") or [])]
    if not (joined.times and joined.time) and not kernels:
        return None
    first = joined.times[0] if joined.times else None
    label = f"{joined.label} ({run})" if run else joined.label
    return Detail(
        label=label,
        restarts=joined.count,
        rounds=sum(len({block.round for block in sample.blocks}) for sample in joined.times),
        noisy=joined.noisy,
        half_width=joined.time.relative_half_width if joined.time else None,
        noise=readings.noise(first) if first else readings.NoiseStatistics(),
        blocks=tuple(_blocks(first, joined, label)) if first else (),
        clocks=_clocks(first) if first else "",
        kernels=tuple(kernels[:MAX_KERNELS]),
        trace=next((str(result.facts["trace"]) for result in joined.results if "trace" in result.facts), ""),
    )


def _blocks(sample: Sample, joined: Restarts, label: str) -> list[drawing.Point]:
    medians = readings.block_medians(sample)
    middle = readings.location(medians)
    if not middle:
        return []
    return [
        {
            "kind": "point", "x": block.round, "y": median / middle, "arm": joined.name,
            "label": label, "position": block.position, "load": block.facts.get("load"),
            "tags": ", ".join(block.tags),
        }
        for block, median in zip(sample.blocks, medians, strict=False)
        if median is not None
    ]  # fmt: skip


def _clocks(sample: Sample) -> str:
    """`1.76 GHz..1.98 GHz, 41 C..55 C, 310 W`, as far as the device reported them."""
    ranges = []
    for fact, unit in (("sm_clock_hz", "Hz"), ("temperature_c", "C"), ("power_w", "W")):
        values = [block.facts[fact] for block in sample.blocks if fact in block.facts]
        if values:
            ends = (units.rate(value, unit) for value in (min(values), max(values)))
            ranges.append("..".join(dict.fromkeys(ends)))
    return ", ".join(ranges)
