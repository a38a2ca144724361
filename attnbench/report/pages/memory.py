"""The memory section: bytes of a call, by kind, and the longest sequence that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnbench.analysis.rows import Row
from attnbench.attention.choices import Mode
from attnbench.records.result import Status
from attnbench.report import memory_method, missing, quantities
from attnbench.report.charts import memory, panels
from attnbench.report.charts.figure import Figure
from attnbench.report.pages import places, ranking, tables
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, beside, blocks
from attnbench.report.pages.ranking import Contest
from attnbench.report.quantities import listed, size

POWERS = {1: "", 2: "²", 3: "³"}
MAX_BESIDE = 6  # columns of a table beside the chart
EQUAL = 1.01  # sizes that are closer are the same
KINDS = ("saved", "workspace")  # columns of bytes beside the peak


def page(data: ReportData) -> Page:
    """What a call needs beside its inputs."""
    problems = ranking.contests(data.rows, data.layout)
    if not any(row.total_bytes for row in data.rows):
        return Page()
    return Page(
        finding=finding(problems, data),
        text=tuple(_growth(data)),
        blocks=blocks(*_peaks(problems, data), _kinds(problems, data), _longest(data.rows)),
    )


def finding(problems: Sequence[Contest], data: ReportData) -> str:
    """`At length 1k sdpa:flash needs 2.60 MiB, naive 66.0 MiB`: the smallest and the largest of the largest problem."""
    sized = [(contest, _sized(contest)) for contest in problems]
    several = [pair for pair in sized if len(pair[1]) > 1] or [pair for pair in sized if pair[1]]
    contest, rows = max(several, key=lambda pair: max(row.total_bytes or 0.0 for row in pair[1]))
    place = places.of(contest.first, data.layout)
    columns = data.layout.columns
    if columns[:1] and columns[0] in ("mask", panels.PHASE):  # words, where others are names
        place = quantities.sentence(place)
    place = f"{place}:" if columns else quantities.sentence(places.at(contest.first, data.layout))
    least, most = (pick(rows, key=lambda row: row.total_bytes or 0.0) for pick in (min, max))
    if len(rows) > 1 and (most.total_bytes or 0.0) <= EQUAL * (least.total_bytes or 0.0):
        return f"{place} all backends need {size(most.total_bytes)}"
    text = f"{place} {least.arm_name} needs {size(least.total_bytes)}"
    return f"{text}, {most.arm_name} {size(most.total_bytes)}" if len(rows) > 1 else text


def _sized(contest: Contest) -> list[Row]:
    return [row for row in contest.rows if row.total_bytes]


def _growth(data: ReportData) -> Iterator[str]:
    """`naive and sdpa:math grow with n² (measured exponents 1.9 and 2.0), sdpa:flash with n (1.1).`"""
    exponents: dict[str, list[float]] = {}
    for law in data.laws:
        if law.quantity == "peak" and law.axis == "seq":
            exponents.setdefault(law.arm, []).append(law.measured.value)
    by_power: dict[int, list[str]] = {}
    for arm, values in exponents.items():
        power = round(sum(values) / len(values))
        if all(round(value) == power for value in values):
            by_power.setdefault(power, []).append(arm)
    parts = []
    for power, arms in sorted(by_power.items(), reverse=True):
        ends = [f"{pick(value for arm in arms for value in exponents[arm]):.1f}" for pick in (min, max)]
        grows = ("is", "grows") if len(arms) == 1 else ("are", "grow")
        word = f"{grows[0]} constant" if not power else f"{grows[1]} with n{POWERS.get(power, power)}"
        parts.append(f"{listed(arms)} {word} (measured exponent {' to '.join(dict.fromkeys(ends))})")
    if parts:
        yield f"{', '.join(parts)}."


def _table(problems: Sequence[Contest], data: ReportData) -> PageTable | None:
    unit = quantities.unit((row.total_bytes for row in data.rows), quantities.BYTES)

    def cell(row: Row, contest: Contest) -> PageCell:
        least = min(other.total_bytes or 0.0 for other in _sized(contest))
        ratio = (row.total_bytes or 0.0) / least
        least_of_several = ratio == 1 and len(_sized(contest)) > 1
        more = quantities.times(ratio) if ratio > EQUAL else ""
        return PageCell(text=unit.show(row.total_bytes), detail=more, bold=least_of_several)

    figure = tables.ArmColumn(unit.name, cell, lambda row: bool(row.total_bytes))
    return tables.by_backend(
        "Peak memory", problems, data.layout, [figure],
        note="Outputs included, inputs not; and how many times the least. Bold: least. "
        f"Measured by {memory_method.words(data.rows)}.",
    )  # fmt: skip


def _peaks(problems: Sequence[Contest], data: ReportData) -> tuple[Figure | PageTable | None, ...]:
    figure, table = memory.figure(data.rows), _table(problems, data)
    return beside(figure, table) if table and len(table.head) <= MAX_BESIDE else (figure, table)


def _kinds(problems: Sequence[Contest], data: ReportData) -> PageTable | None:
    """What training keeps, and what a call needs meanwhile, where these were measured."""
    figures = []
    for kind in KINDS:
        column = f"{kind}_bytes"
        if not any(row.number(column) for row in data.rows):
            continue
        unit = quantities.unit((row.number(column) for row in data.rows), quantities.BYTES)
        figures.append(_kind(f"{kind}, {unit.name}", column, unit))
    if not figures or all(row.mode is Mode.FWD for row in data.rows):
        return None
    return tables.by_backend(
        "Memory by kind", problems, data.layout, figures,
        note="saved: kept from forward for backward. workspace: needed during a call beside inputs and outputs.",
    )  # fmt: skip


def _kind(head: str, column: str, unit: quantities.Unit) -> tables.ArmColumn:
    return tables.ArmColumn(
        head, lambda row, _: unit.show(row.number(column)), lambda row: row.number(column) is not None
    )


SIZE = (Status.OOM, Status.TIMEOUT, Status.SKIPPED)  # how a case ends that is too large


def _longest(rows: Sequence[Row]) -> PageTable:
    """The longest key length that was measured for each arm, dtype and mode, and what stopped the next one."""
    families: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row.arm_name, row.device, row.dtype, row.mode), []).append(row)
    lines: list[tuple[str | PageCell, ...]] = []
    for (arm, *family), cases in families.items():
        longest = max((row.seq_kv for row in cases if row.time_s is not None), default=0)
        beyond = [row for row in cases if row.seq_kv > longest and row.status in SIZE and not missing.cut(row)]
        if longest and beyond:
            stop = min(beyond, key=lambda row: row.seq_kv)
            name = PageCell(text=arm, arm=arm)
            lines.append((name, *family, str(longest), f"{stop.seq_kv}: {stop.status}, {missing.reason(stop)}"))
    return PageTable(
        heading="Longest that was measured",
        head=("backend", "device", "dtype", "mode", "keys", "the next one"),
        rows=lines,
        numbers=(False, False, False, False, True, False),
        note="`attnbench scaling --find-max-seq` searches for the longest that fits.",
    )
