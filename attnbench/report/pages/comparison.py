"""The comparison section: the first run against each later one, and the history of the project."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from attnbench import units
from attnbench.analysis import comparison
from attnbench.analysis.comparison import Change, Comparison, Pair
from attnbench.analysis.rows import Row
from attnbench.analysis.stats import Estimate
from attnbench.errors import NotComparableError
from attnbench.gate import history
from attnbench.report import quantities
from attnbench.report.answer import Advice
from attnbench.report.charts import commit_trend, panels, run_ratios, run_trend
from attnbench.report.charts.figure import Figure
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.pages import answer, tables
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, blocks, without_empty_columns
from attnbench.report.quantities import listed
from attnbench.units import counted

MAX_COMPARED = 5  # runs that are compared in sentences, charts and tables of their own, where there are very many
MAX_RUNS = 20  # from more on there are very many
# Of a run against an earlier one, in the order of a sentence.
WORDS = {
    Change.BROKEN: "no longer ok", Change.SLOWER: "slower", Change.FASTER: "faster", Change.FIXED: "fixed",
    Change.NEW: "new", Change.MISSING: "missing", Change.SAME: "without a difference",
    Change.UNDECIDED: "undecided", Change.NOTHING: "ok in neither",
}  # fmt: skip


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The comparisons of the first run with the others, and why some are impossible."""

    comparisons: tuple[Comparison, ...] = ()
    rows: tuple[Sequence[Row], ...] = ()  # of the later run of each comparison
    impossible: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """What the answer says about several runs."""
        return [
            *(sentence(pairs) for pairs, _ in self.shown),
            *(f"Not compared: {text}." for text in self.impossible[-MAX_COMPARED:]),
        ]

    @property
    def shown(self) -> list[tuple[Comparison, Sequence[Row]]]:
        """The comparisons with a sentence, a chart and a table, and the rows of the later run.

        Of very many they are the last on the first run's machine.
        """
        every = list(zip(self.comparisons, self.rows, strict=True))
        if len(every) < MAX_RUNS:
            return every
        return ([each for each in every if not each[0].cross_machine] or every)[-MAX_COMPARED:]

    @property
    def cautions(self) -> list[Advice]:
        """How many cases are undecided, by which noise floor, and what would decide them."""
        return [
            Advice(f"{_against(pairs)}: {count} undecided ({pairs.notes[0]}).", command)
            for pairs, _ in self.shown
            if (count := sum(pair.change is Change.UNDECIDED for pair in pairs.pairs))
            for command in pairs.commands[:1]
        ]


def compare(data: ReportData) -> Compared:
    """Compare the first run with each later one, also across machines, where the text says so."""
    comparisons, rows_of_later, impossible = [], [], []
    first, *later = data.runs
    if not later:
        return Compared()
    sides = [comparison.arms_of(rows) for rows in data.by_run]
    folders = [run.path.name for run in data.runs]
    names = data.names if data.names == panels.OLD_AND_NEW or len(set(folders)) < len(folders) else folders
    for run, side, name, rows in zip(later, sides[1:], names[1:], data.by_run[1:], strict=True):
        try:
            pairs = comparison.compare(first, run, cross_machine=True, arms=(sides[0], side))
        except NotComparableError as error:
            impossible.append(str(error))
            continue
        comparisons.append(msgspec.structs.replace(pairs, old=names[0], new=name))
        rows_of_later.append(rows)
    return Compared(comparisons=tuple(comparisons), rows=tuple(rows_of_later), impossible=tuple(impossible))


def sentence(pairs: Comparison) -> str:
    """`New against old: 3 slower, 1 faster and 14 without a difference of 18 cases.`"""
    counts = Counter(pair.change for pair in pairs.pairs)
    parts = [f"{count:,} {_word(change)}" for change in _ordered(counts) if (count := counts[change])]
    machines = ", on another machine" if pairs.cross_machine else ""
    cases = counted(len(pairs.pairs), "case")
    return f"{_against(pairs)}{machines}: {listed(parts, limit=len(parts))} of {cases}."


def _against(pairs: Comparison) -> str:
    text = f"{pairs.new} against {pairs.old}"
    return quantities.sentence(text) if pairs.new in panels.OLD_AND_NEW else text


def _ordered(counts: Counter[Change]) -> list[Change]:
    return [*WORDS, *(change for change in counts if change not in WORDS)]


def _word(change: Change) -> str:
    return WORDS.get(change, change.value)


def page(data: ReportData, compared: Compared) -> Page:
    """Ratios of times; trends over several runs or commits."""
    figures = [run_ratios.figure(pairs.pairs, rows, pairs.old, pairs.new) for pairs, rows in compared.shown]
    shown = [figure for figure in figures if figure]
    if len(shown) > 1:
        shown = [msgspec.structs.replace(each, name=f"{each.name}-{number}") for number, each in enumerate(shown, 1)]
    tables_of_runs = [_table(pairs, data) for pairs, _ in compared.shown]
    over_commits = commit_trend.figure(data.trend), _changes(data.trend) if data.trend else None
    page_blocks = blocks(_trend(compared.comparisons), *shown, *tables_of_runs, *over_commits)
    if not page_blocks and not compared.impossible:
        return Page(
            finding="a change between two runs, or over commits",
            hint="`attnbench report OLD NEW`; `attnbench history --add RUN` begins a trend",
        )
    return Page(finding=finding(data, compared), text=tuple(_text(data, compared)), blocks=page_blocks)


def finding(data: ReportData, compared: Compared) -> str:
    """The sentence of the only comparison; of several their number; without any the changes of the history."""
    if len(compared.comparisons) == 1:
        return sentence(compared.comparisons[0]).removesuffix(".")
    if compared.comparisons:
        texts = [f"{pairs.new} {_mean(pairs)}" for pairs, _ in compared.shown if pairs.geomeans]
        against = f"{len(compared.comparisons)} runs against {compared.comparisons[0].old}"
        return f"{against}: {listed(texts)}" if texts else against
    if compared.impossible:
        return "The runs cannot be compared"
    changes = sum(map(len, history.level_changes(data.trend).values()))
    return f"{counted(changes, 'change')} of level over the history" if changes else "No level changed over the history"


def _mean(pairs: Comparison) -> str:
    """`1.02× to 1.20× the time`, over its backends."""
    values = [mean.value for mean in pairs.geomeans.values()]
    ends = dict.fromkeys(f"{value:.2f}×" for value in (min(values), max(values)))
    return f"{' to '.join(ends)} the time"


def _text(data: ReportData, compared: Compared) -> Iterator[str]:
    """What a reader must know of the comparisons."""
    yield from compared.impossible[-MAX_RUNS:]
    if len(compared.shown) < len(compared.comparisons):
        yield (
            f"Sentences, charts and tables are of the last {len(compared.shown)} of {len(compared.comparisons)} later "
            "runs; the trend has all runs of the first run's machine."
        )
    for pairs, _ in compared.shown:
        if pairs.cross_machine:
            names = dict.fromkeys(answer.machine(run) for run in data.runs)
            other = f"{pairs.new} was measured on another machine ({listed(list(names))})"
            yield f"{other}: no difference is a change of the code."
        yield from (f"{note[:1].upper() + note[1:] if note.startswith('noise') else note}." for note in pairs.notes)
        if pairs.commands:
            commands = ", ".join(f"`{command}`" for command in pairs.commands)
            yield f"To decide the undecided cases{pairs.advice}: {commands}."
    means = [
        f"{arm} {mean.value:.2f}×{_ends(mean)} in {counted(mean.count, 'case')}"
        for pairs in compared.comparisons[:1]
        for arm, mean in sorted(pairs.geomeans.items())
    ]
    if means:
        yield f"Time of the later run over the earlier, geometric mean: {listed(means, limit=8)}."


def _ends(mean: Estimate) -> str:
    if mean.low is None or mean.high is None or mean.count < 3:
        return ""
    return f" ({units.between(f'{mean.low:.2f}', f'{mean.high:.2f}')})"


def _trend(comparisons: Sequence[Comparison]) -> Figure | None:
    """The geometric means of at least two later runs of the first run's machine."""
    means = [(pairs.new, pairs.geomeans) for pairs in comparisons if not pairs.cross_machine]
    if len(means) < 2:
        return None
    level = {arm: Estimate(value=1.0) for _, geomeans in means for arm in geomeans}
    return run_trend.figure([(comparisons[0].old, level), *means])


def _table(pairs: Comparison, data: ReportData) -> PageTable:
    """The cases that either run measured; those of neither are counted."""
    shown = [pair for pair in pairs.pairs if pair.change is not Change.NOTHING]
    unit = quantities.unit((time for pair in shown for time in (pair.old_s, pair.new_s)), quantities.SECONDS)
    neither = len(pairs.pairs) - len(shown)
    layout = PanelLayout(axis=data.layout.axis, columns=tuple(name for name in data.layout.columns if name != "run"))
    rows = {(row.case_id, f"{row.arm_name}@{row.device}"): row for row in data.rows}
    lines: list[tuple[str | PageCell, ...]] = []
    for pair in shown:
        row = rows[pair.case_id, pair.arm]
        lines.append((
            *tables.problem(row, layout), PageCell(text=row.arm_name, arm=row.arm_name), unit.show(pair.old_s),
            unit.show(pair.new_s), quantities.number(pair.ratio.value) if pair.ratio else "", _interval(pair),
            _word(pair.change), pair.reason,
        ))  # fmt: skip
    table = PageTable(
        heading=_against(pairs),
        head=(
            *tables.head(data.rows, layout), "backend", f"old, {unit.name}", f"new, {unit.name}", "new ÷ old", "95 %",
            "outcome", "reason",
        ),
        rows=lines,
        numbers=(*tables.numeric(data.rows, layout), False, True, True, True, True, False, False),
        note=f"{counted(neither, 'case')} ok in neither run left out." if neither else "",
        search=True,
    )  # fmt: skip
    return without_empty_columns(table)


def _interval(pair: Pair) -> str:
    if pair.ratio is None or pair.ratio.low is None or pair.ratio.high is None:
        return ""
    return units.between(quantities.number(pair.ratio.low), quantities.number(pair.ratio.high))


def _changes(series: Mapping[str, history.Trend]) -> PageTable:
    changes = [change for of_case in history.level_changes(series).values() for change in of_case]
    commits = len({commit.name for values in series.values() for commit, _ in values})
    return PageTable(
        heading="Changes of level over the history",
        head=("case", "first of the new level", "measured", "before", "after", "change"),
        rows=[
            (
                change.case, change.at.name, answer.date(change.at.measured_at), quantities.seconds(change.before_s),
                quantities.seconds(change.after_s), units.change(change.ratio - 1).replace("x", "×"),
            )
            for change in sorted(changes, key=lambda change: -abs(math.log(change.ratio)))
        ],
        numbers=(False, False, False, True, True, True),
        note=f"{commits} commits of this machine, {len(series)} cases.",
    )  # fmt: skip
