"""The speed section: times, speed-ups, rates, the roofline, and the kernels of profiled cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from attnbench import units
from attnbench.analysis.roofline import disturbances
from attnbench.analysis.rows import Place, Row, phase
from attnbench.report import pivot, quantities, summary
from attnbench.report.charts import latency, roofline, speedup, throughput
from attnbench.report.charts.panels import PanelLayout
from attnbench.report.pages import lead, ranking, tables
from attnbench.report.pages.page import Page, PageCell, PageTable, ReportData, beside, blocks, without_empty_columns
from attnbench.report.pages.ranking import AnswerKind, Contest, Recommendation
from attnbench.report.quantities import listed

MAX_NAMED = 2  # backends that the finding says gain nothing
ONCE = {
    "import_s": "imports", "first_call_s": "first call", "compile_s": "compiling", "mask_build_s": "building the mask",
    "plan_s": "planning", "transfer_s": "moving the plan", "pack_s": "writing the cache",
}  # fmt: skip


def page(data: ReportData) -> Page:
    """Times over the axis, speed-ups, and the table of both; rates and rooflines; what was profiled."""
    problems = ranking.contests(data.rows, data.layout)
    timed = [row for row in data.rows if row.time_s is not None]
    if not timed:
        return Page()
    return Page(
        finding=finding(problems, data.layout, data.left),
        text=tuple(disturbances(data.ceilings)),
        blocks=blocks(
            *beside(latency.figure(data.rows), speedup.figure(data.rows)),
            table(problems, data),
            packed(problems, data),
            throughput.figure(data.rows, data.ceilings),
            roofline.figure(data.rows, data.ceilings),
            _bounds(data),
            _kernels(data),
            _traces(data),
            _once(timed),
        ),
    )


def finding(problems: Sequence[Contest], layout: PanelLayout, left: str = "") -> str:
    """`sdpa:flash is fastest or tied in all 7 problems; sdpa:math gains nothing over naive`."""
    of_all = ranking.verdict(problems, left)
    if of_all.kind is AnswerKind.ALONE:
        takes = "takes" if len(of_all.arms) == 1 else "take"
        return f"{listed(of_all.arms)} {takes} {lead.range_of_times(problems)}"
    if of_all.kind is AnswerKind.NOTHING:
        return "No time is usable"
    first = of_all.arms[0]
    wins = of_all.wins.get(first, 0)
    if of_all.kind is AnswerKind.TIED:
        text = f"{listed(of_all.arms)} are tied in {lead.all_problems(of_all)}"
    elif of_all.kind is AnswerKind.USE:
        how = "fastest" if wins == of_all.contested else "fastest or tied"
        text = f"{first} is {how} in {lead.all_problems(of_all)}"
    else:
        text = _mixed(problems, of_all, layout)
    useless, reference = _useless(problems, of_all.arms if of_all.kind is not AnswerKind.MIXED else tuple(of_all.wins))
    if useless and len(useless) <= MAX_NAMED:
        text += f"; {listed(useless)} {'gains' if len(useless) == 1 else 'gain'} nothing over {reference}"
    return text


def _mixed(problems: Sequence[Contest], of_all: Recommendation, layout: PanelLayout) -> str:
    """Where each backend is fastest, or in how many problems."""
    if sides := ranking.split(problems, layout):
        won = all(contest.winner for side in sides for contest in side.contests if contest.contested)
        others = [f"{side.arm} {side.phrase}" for side in sides[1:]]
        how = "fastest" if won else "fastest or tied"
        return f"{sides[0].arm} is {how} {sides[0].phrase}, {', '.join(others)}"
    if not of_all.wins:
        return f"The fastest are tied in {lead.all_problems(of_all)}"
    (first, count), *rest = of_all.wins.items()
    text = f"{first} is fastest in {count} of {lead.problems_of(of_all)}"
    others = [f"{arm} in {wins}" for arm, wins in rest]
    return f"{text}, {listed(others)}" if others else text


def _useless(problems: Sequence[Contest], leaders: Sequence[str]) -> tuple[list[str], str]:
    """Backends that are nowhere significantly faster than the reference, which is the same for all rows."""
    rows = [row for contest in problems for row in contest.ranked if row.reference and row.speedup is not None]
    references = {row.reference for row in rows}
    faster = {row.arm_name for row in rows if row.speedup_low is None or row.speedup_low > 1}
    if len(references) != 1:
        return [], ""
    others = dict.fromkeys(row.arm_name for row in rows if row.arm != row.reference)
    return [arm for arm in others if arm not in faster and arm not in leaders], pivot.references(rows)


def table(problems: Sequence[Contest], data: ReportData) -> PageTable | None:
    """Times, speed-ups and rates of each problem."""
    rows = [row for row in data.rows if row.time_s is not None]
    time = quantities.unit((row.time_s for row in rows), quantities.SECONDS)
    rates = [
        _rate("flop_per_s", "FLOP/s", [row for row in rows if phase(row) != "decode"]),
        _rate("bytes_per_s", "B/s", [row for row in rows if phase(row) == "decode"]),
    ]
    compared = any(row.speedup is not None and row.arm != row.reference for row in rows)
    figures = [
        tables.ArmColumn(time.name, lambda row, _: _time(row, time), lambda row: row.time_s is not None),
        tables.ArmColumn("speed-up", lambda row, _: _speedup(row), lambda row: compared and row.speedup is not None),
        *(rate for rate in rates if rate),
    ]
    figure_table = tables.by_backend("Times, speed-ups and rates", problems, data.layout, figures, missing=True)
    if figure_table is None or not figure_table.rows:
        return None
    notes = _notes(figure_table, rows)
    return replace(figure_table, note=" ".join(notes))


def packed(problems: Sequence[Contest], data: ReportData) -> PageTable | None:
    """Times without and with writing the whole cache, where they differ; docs/backends.md has the rule."""
    slower = {id(row): seconds for row in data.rows if (seconds := summary.time_with_packing(row)) is not None}
    time = quantities.unit(slower.values(), quantities.SECONDS)
    figures = [
        tables.ArmColumn(time.name, lambda row, _: time.show(row.time_s), lambda row: id(row) in slower),
        tables.ArmColumn(
            f"{time.name} with all keys", lambda row, _: time.show(slower[id(row)]), lambda row: id(row) in slower
        ),
    ]
    note = (
        "A server writes keys when they are new, before this call; the second time is that of a call which writes all."
    )
    return tables.by_backend("Times with all keys written in the call", problems, data.layout, figures, note)


def _rate(column: str, unit: str, rows: Sequence[Row]) -> tables.ArmColumn | None:
    """Rates of these rows, in one unit."""
    if not rows:
        return None
    shown = {id(row) for row in rows}
    scaled = quantities.unit((row.number(column) for row in rows), quantities.RATES, unit)
    return tables.ArmColumn(
        scaled.name,
        lambda row, _: scaled.show(row.number(column)),
        lambda row: id(row) in shown and row.number(column) is not None,
    )


def _time(row: Row, unit: quantities.Unit) -> PageCell:
    width = tables.half_width(row.time_low_s, row.time_high_s, row.time_s)
    detail = " ".join(filter(None, (width, tables.signs(row))))
    return PageCell(text=unit.show(row.time_s), detail=detail, bold=row.place is Place.FASTEST)


def _speedup(row: Row) -> PageCell | str:
    if row.arm == row.reference:
        return "1×"
    if row.speedup_low is None or row.speedup_high is None:
        return PageCell(text=quantities.times(row.speedup))
    interval = quantities.between(row.speedup_low, row.speedup_high).removesuffix("×")
    return PageCell(text=quantities.times(row.speedup), detail=f"{interval} ^" if row.quotient_outside else interval)


def _notes(figure_table: PageTable, rows: Sequence[Row]) -> Iterator[str]:
    """What the table shows and what its signs mean, as far as it has them."""
    yield f"{quantities.sentence(pivot.caption(rows))}."
    if any(row.place is Place.FASTEST for row in rows):
        yield "Bold: fastest."
    if any("±" in cell.detail for row in figure_table.rows for cell in row if isinstance(cell, PageCell)):
        yield "±: half of the interval."
    yield from (f"{symbol}: {meaning}." for symbol, meaning in pivot.legend(rows) if symbol not in "*~")
    if any(head.endswith("B/s") for head in figure_table.head):
        yield "Bytes a second count inputs read and outputs written once, also what the mask hides."


def _bounds(data: ReportData) -> PageTable:
    """Shares of the roofline bound; a row above its bound says why."""
    rows = [row for row in data.rows if row.roofline_share is not None]
    time = quantities.unit((row.roofline_s for row in rows), quantities.SECONDS)
    roofline_table = PageTable(
        heading="Share of the roofline bound",
        head=(
            *tables.head(rows, data.layout), "backend", "FLOP a byte", f"{time.name} at least", "share", "bound by",
            "note",
        ),
        rows=[
            (
                *tables.problem(row, data.layout), PageCell(text=row.arm_name, arm=row.arm_name),
                quantities.number(row.intensity), time.show(row.roofline_s), _share(row), str(row.bound or ""),
                row.notes or _above(row),
            )
            for row in rows
        ],
        numbers=(*tables.numeric(rows, data.layout), False, True, True, True, False, False),
        note="The bound is the least time that the ceilings allow which attnbench calibrate measured on this device.",
        folded=True,
    )  # fmt: skip
    return without_empty_columns(roofline_table)


def _share(row: Row) -> str:
    share = row.roofline_share or 0.0
    return quantities.times(share) if share > units.MAX_PERCENT else quantities.percent(share)


def _above(row: Row) -> str:
    return "faster than its bound: the bytes may be overestimated" if (row.roofline_share or 0.0) > 1 else ""


def _kernels(data: ReportData) -> PageTable:
    return PageTable(
        heading="Where the time goes",
        head=("case", "kernel or operator", "calls", "time", "share"),
        rows=[
            (
                detail.label, str(row["name"]), str(row["calls"]), quantities.seconds(row["self_s"]),
                quantities.percent(row["share"]),
            )
            for detail in data.details
            for row in detail.kernels
        ],
        numbers=(False, False, True, True, True),
    )  # fmt: skip


def _traces(data: ReportData) -> PageTable:
    files = [(detail.label, detail.trace) for detail in data.details if detail.trace]
    return PageTable(heading="Traces", head=("case", "file"), rows=files, numbers=(False, False), folded=True)


def _once(rows: Sequence[Row]) -> PageTable:
    """What a process costs before its first timed call: the median over the cases of each backend."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.arm_name, row.device), []).append(row)
    lines: list[tuple[str | PageCell, ...]] = [
        (PageCell(text=arm, arm=arm), device, *(_median([row.number(name) for row in group]) for name in ONCE))
        for (arm, device), group in groups.items()
    ]
    costs_table = PageTable(
        heading="Costs that arise once a process",
        head=("backend", "device", *ONCE.values()),
        rows=lines,
        numbers=(False, False, *[True] * len(ONCE)),
        note="Medians over the cases of a backend; the first call includes compiling.",
        folded=True,
    )
    return without_empty_columns(costs_table)


def _median(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    return quantities.seconds(known[len(known) // 2]) if known else ""
