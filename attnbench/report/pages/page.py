"""One page of a report, the pieces that several pages share, and the data that pages are made from."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from attnbench import units
from attnbench.analysis import readings
from attnbench.analysis.restarts import Restarts, map_problems
from attnbench.analysis.roofline import CeilingsByDevice, ceilings_by_device
from attnbench.analysis.rows import Row, RowOfRun, rows_of
from attnbench.errors import UsageError
from attnbench.gate import history
from attnbench.records import results_file
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Facts, Result, Sample
from attnbench.records.run_directory import Run
from attnbench.report.charts import panels
from attnbench.report.charts.figure import Figure
from attnbench.report.quantities import DASH
from attnbench.studies import scaling, traffic_answer
from attnbench.studies.fleet import HardwareModel, fleet
from attnbench.studies.scaling import Law
from attnbench.studies.traffic_answer import TrafficAnswer

MAX_ROWS = 1000  # of a table in Markdown or LaTeX; CSV has all
MAX_LISTED = 5000  # cases that the table of all cases lists one by one
MAX_CASES = 250_000  # of one report: their rows take less than 3 GiB of memory
COLUMNS, WIDER = 12, 7  # of the page, and those of two panels beside something else
MAX_FITTED = 20_000  # cases of a report that has exponents and nodes
MAX_KERNELS = 5  # of a profiled case
MAX_DETAILS = 2000  # results whose blocks are read
MAX_DRIFT = 60  # cases whose blocks are drawn


class PageCell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell with more than its text."""

    text: str
    detail: str = ""  # small and grey behind the text: an interval, a factor
    bold: bool = False  # the best of its row
    arm: str = ""  # a square in the colour of this arm before the text

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.detail)))


class ColumnGroup(msgspec.Struct, frozen=True):
    """A heading over several columns: a backend over its figures."""

    title: str
    columns: int
    arm: str = ""


class PageTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table under its heading; `numbers` says which columns are aligned as numbers."""

    heading: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str | PageCell, ...]]  # the last cell of a short row stands for all that follow
    numbers: tuple[bool, ...] = ()
    note: str = ""
    groups: tuple[ColumnGroup, ...] = ()  # over all columns, in order
    span: int = 12  # of the page's 12 columns
    search: bool = False  # whether it has a field that searches its rows
    folded: bool = False  # whether it is closed at first

    @property
    def columns(self) -> list[str]:
        """The headings of the columns, each with that of its group and none twice: `naive ms`."""
        titles = [group.title for group in self.groups for _ in range(group.columns)]
        titles = titles or [""] * len(self.head)
        names: dict[str, None] = {}
        for place, (title, head) in enumerate(zip(titles, self.head, strict=True)):
            name = " ".join(filter(None, (title, head))) or f"column_{place}"
            names[f"{name} ({place})" if name in names else name] = None
        return list(names)


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One section of the report."""

    name: str = ""  # set with the title when the report is put together
    title: str = ""  # in the bar
    finding: str = ""  # heading of the section: what it shows, in a sentence
    text: tuple[str, ...] = ()  # paragraphs
    blocks: tuple[Figure | PageTable, ...] = ()  # in the order of the page
    hint: str = ""  # the command that would fill the page; `finding` then says with what

    @property
    def figures(self) -> list[Figure]:
        return [block for block in self.blocks if isinstance(block, Figure)]

    @property
    def tables(self) -> list[PageTable]:
        return [block for block in self.blocks if isinstance(block, PageTable)]

    @property
    def empty(self) -> bool:
        return not (self.figures or any(table.rows for table in self.tables))


def blocks(*parts: Figure | PageTable | None) -> tuple[Figure | PageTable, ...]:
    """Those that have data, in order."""
    return tuple(part for part in parts if part is not None and (isinstance(part, Figure) or part.rows))


def beside(left: Figure | None, right: Figure | PageTable | None) -> tuple[Figure | PageTable | None, ...]:
    """A chart of at most two panels and what stands at its right, each with its share of the page."""
    if left is None or right is None or len(left.panels) > 2:
        return left, right
    width = COLUMNS // 2 if len(left.panels) == 1 else WIDER
    spans = width, COLUMNS - width
    return msgspec.structs.replace(left, span=spans[0]), msgspec.structs.replace(right, span=spans[1])


def half(figure: Figure | None) -> Figure | None:
    """The chart at half the width of the page."""
    return figure and msgspec.structs.replace(figure, span=COLUMNS // 2)


def without_empty_columns(table: PageTable) -> PageTable:
    """The table without the columns that are empty in every row."""
    places = [place for place in range(len(table.head)) if any(str(row[place]) not in ("", DASH) for row in table.rows)]
    return msgspec.structs.replace(
        table,
        head=tuple(table.head[place] for place in places),
        numbers=tuple(table.numbers[place] for place in places),
        rows=[tuple(row[place] for place in places) for row in table.rows],
    )


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What pages need of one (case, arm) beyond its row: its noise and its kernels."""

    label: str
    key: tuple[str, str, str]  # case id, arm id and run of its row
    arm: str  # its name
    restarts: int
    rounds: int
    noisy: bool
    half_width: float | None
    noise: readings.NoiseStatistics
    blocks: tuple[float, ...]  # of the first restart: their medians over the median of the case
    clocks: str  # of a GPU, lowest and highest over the blocks, with temperature and power
    kernels: tuple[Facts, ...]  # as the profile of the result has them
    trace: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """The data of all pages."""

    runs: tuple[Run, ...]
    names: tuple[str, ...]  # of the runs, as rows have them
    rows: list[Row]
    layout: panels.PanelLayout  # the place of each problem, in every chart and table
    details: list[Detail]  # of the first MAX_DETAILS results
    by_run: tuple[list[Row], ...]
    laws: tuple[Law, ...]  # exponents of each run; none of very many cases
    ceilings: CeilingsByDevice
    traffic: tuple[TrafficAnswer | None, ...]  # of each run that replays a trace
    fleet: tuple[HardwareModel, ...]  # nodes of several machines
    trend: Mapping[str, history.Trend]  # of the first run's machine, by case

    @property
    def left(self) -> str:
        """What runs that were stopped did not measure, each by its name where there are several."""
        if len(self.runs) == 1:
            return self.runs[0].left
        named = zip(self.runs, self.names, strict=True)
        return "; ".join(f"{run.left} in {name}" for run, name in named if run.left)


def report_data(
    runs: Sequence[Run],
    keep: Callable[[Result], bool] | None = None,
    reference: str | None = None,
    points_of_history: Iterable[history.HistoryPoint] = (),
    traffic: Sequence[TrafficAnswer | None] | None = None,
) -> ReportData:
    """Read the runs, in order; `keep` selects results, and `reference` names the arm that speed-ups are over.

    `traffic`: the answers of runs that replay a trace, by default those of their directories.

    Raises UsageError for more results than one report can hold.
    """
    selected = [results_file.chosen(run.results, keep) if keep else run.results for run in runs]
    count = sum(map(len, selected))
    if count > MAX_CASES:
        raise UsageError(f"{count} results are more than the {MAX_CASES} of one report: choose with --only and --skip")
    names = _names(runs)
    by_run: list[list[Row]] = []
    details: list[Detail] = []
    ceilings: dict[str, Ceilings] = {}
    arms = [arm for run in runs for arm in run.manifest.arms]
    for run, name, results in zip(runs, names, selected, strict=True):
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
    return ReportData(
        runs=tuple(runs), names=tuple(names), rows=every, layout=panels.layout(every), details=details,
        by_run=tuple(by_run), laws=tuple(_laws(by_run)), ceilings=ceilings,
        traffic=tuple(traffic_answer.read(run.path) for run in runs) if traffic is None else tuple(traffic),
        fleet=tuple(_fleet(runs, selected)),
        trend=history.series(points_of_history, runs[0].manifest.machine_id),
    )  # fmt: skip


def _laws(by_run: Sequence[Sequence[Row]]) -> Iterator[Law]:
    if sum(map(len, by_run)) <= MAX_FITTED:
        for rows in by_run:
            yield from scaling.laws(rows)


def _fleet(runs: Sequence[Run], selected: Sequence[Sequence[Result]]) -> list[HardwareModel]:
    """The nodes of runs of several machines; none of very many cases."""
    if sum(map(len, selected)) > MAX_FITTED:
        return []
    several = len(runs) > 1 or any(
        "node" in result.facts or "fingerprint" in result.facts for results in selected for result in results
    )
    if not several:
        return []
    chosen = (msgspec.structs.replace(run, results=results) for run, results in zip(runs, selected, strict=True))
    return fleet(chosen, by_fingerprint=True)


def _names(runs: Sequence[Run]) -> list[str]:
    """Short and distinct names: `old` and `new` for two runs of one machine, else devices, nodes or folders, if need
    numbered.

    The context of the answer names the folders.
    """
    if len(runs) == 2 and runs[0].manifest.same_machine(runs[1].manifest):
        return list(panels.OLD_AND_NEW)
    nodes = [run.manifest.node or run.manifest.machine_name for run in runs]
    devices = [run.manifest.machine_name for run in runs]
    folders = [run.path.name for run in runs]
    for names in (devices, nodes, folders) if len(runs) > 1 else (folders,):
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
        key=(joined.case.id, joined.arm.id, run),
        arm=joined.name,
        restarts=joined.count,
        rounds=sum(len({block.round for block in sample.blocks}) for sample in joined.times),
        noisy=joined.noisy,
        half_width=joined.time.relative_half_width if joined.time else None,
        noise=readings.noise(first) if first else readings.NoiseStatistics(),
        blocks=_blocks(first) if first else (),
        clocks=_clocks(first) if first else "",
        kernels=tuple(kernels[:MAX_KERNELS]),
        trace=next((str(result.facts["trace"]) for result in joined.results if "trace" in result.facts), ""),
    )


def _blocks(sample: Sample) -> tuple[float, ...]:
    medians = readings.block_medians(sample)
    middle = readings.location(medians)
    return tuple(median / middle for median in medians if median is not None) if middle else ()


def _clocks(sample: Sample) -> str:
    """`1.76 GHz..1.98 GHz, 41 C..55 C, 310 W`, as far as the device reported them."""
    ranges = []
    for fact, unit in (("sm_clock_hz", "Hz"), ("temperature_c", "C"), ("power_w", "W")):
        values = [block.facts[fact] for block in sample.blocks if fact in block.facts]
        if values:
            ends = (units.rate(value, unit) for value in (min(values), max(values)))
            ranges.append("..".join(dict.fromkeys(ends)))
    return ", ".join(ranges)
