"""A page made by hand that is hard to lay out: 60 backends, names and reasons of great length, 60 rows of a grid."""

from __future__ import annotations

from typing import Literal

from attnbench.report.answer import Advice, Answer, AnswerGrid, FixedChoice, GridCell
from attnbench.report.charts.figure import ChartAxis, Dot, Figure, Line, Mark, Note, Panel, Tick
from attnbench.report.pages.page import ColumnGroup, Page, PageCell, PageTable

LONG = f"kernels/a_folder_with_a_long_name/{'x' * 200}.py:attention"
RIGHT_TO_LEFT = "\u202eمثال.py:f"
EVIL = "<img src=http://a.b/c onerror=alert(1)>&.py:f"
ARMS = ("naive", "sdpa:flash", LONG, RIGHT_TO_LEFT, EVIL, *(f"mine.py:variant_{number}" for number in range(55)))
REASON = "y" * 10_000
LENGTHS = (128, 256, 512, 1024)


def crowded_answer() -> Answer:
    """A first screen with more of everything than fits."""
    return Answer(
        context=f"Abacus · fp32 forward · run {RIGHT_TO_LEFT} · 2 Jan 2026",
        headline=f"Use {LONG} here.",
        lead=f"{RIGHT_TO_LEFT} is fastest in 3 of 60 problems.",
        failures=tuple(Advice(f"{arm} crashed in 3 cases: {REASON}", "attnbench show --failed") for arm in ARMS[:12]),
        cautions=(Advice("9 of 21 times are noisy.", "attnbench run --restarts 6"),),
        grid=crowded_grid(),
        fixed=tuple(
            FixedChoice(arm=arm, mean=1 + place / 3, worst=2 + place, worst_at="causal mask, 16k", runs=6, of=7)
            for place, arm in enumerate(ARMS[:20])
        ),
        checked="All 21 outputs were checked.",
    )  # fmt: skip


def crowded_grid(rows: int = 60) -> AnswerGrid:
    """Problems in colours alone."""
    kinds: tuple[Literal["best", "tied", "missing", "absent"], ...] = ("best", "tied", "missing", "absent")

    def cell(row: int, place: int) -> GridCell:
        kind = kinds[(row + place) % 4]
        arms = (ARMS[row % 7], ARMS[place]) if kind == "tied" else (ARMS[place],) if kind == "best" else ()
        return GridCell(
            kind=kind, arms=arms, figure="1.3×", detail="budget", tip=f"row {row}, {place}: {', '.join(arms)}"
        )

    return AnswerGrid(
        heading="Best backend of each problem", axis="sequence length", compact=rows > 40,
        columns=tuple(str(2**n) for n in range(7, 17)),
        rows=tuple((f"window:{row} mask", tuple(cell(row, place) for place in range(10))) for row in range(rows)),
    )  # fmt: skip


def panel(heading: str, width: float = 360) -> Panel:
    """Two lines with a dot at each length."""
    marks: list[Mark] = []
    for place, arm in enumerate(ARMS[:2], start=1):
        marks.append(Line(points=tuple((x, place * x * x) for x in LENGTHS), arm=arm))
        marks += [Dot(x=x, y=place * x * x, arm=arm, tip=f"{arm}, {heading}, {x}: {place * x} ms") for x in LENGTHS]
        marks.append(Note(x=LENGTHS[-1], y=place * LENGTHS[-1] ** 2, text=arm, arm=arm, dx=9, bold=True))
    ticks = tuple(Tick(x, str(x)) for x in LENGTHS)
    return Panel(
        heading=heading, width=width, marks=tuple(marks), x=ChartAxis(low=100, high=1200, log=True, ticks=ticks),
        y=ChartAxis(low=1e4, high=1e7, log=True, ticks=(Tick(1e5, "1 ms"), Tick(1e6, "10 ms")), grid=True),
    )  # fmt: skip


def crowded_pages() -> list[Page]:
    """Charts of many panels, a table of 122 columns, and cases with reasons of 10,000 characters."""
    chart = Figure(
        name="time", heading=f"Time of {RIGHT_TO_LEFT}", caption="both axes logarithmic", arms=ARMS, legend=True,
        panels=tuple(panel(f"causal+window:{n} mask") for n in range(8)), left_out="12 panels are left out.",
    )  # fmt: skip
    forest = Figure(
        name="forest", heading="Speed-up", panels=(panel("", 520),), narrow=(panel("", 356),), arms=ARMS[:2]
    )
    wide = PageTable(
        heading="Times", head=("mask", "length", *("ms", "speed-up") * len(ARMS)),
        numbers=(False, *[True] * (2 * len(ARMS) + 1)),
        groups=(ColumnGroup("", 2), *(ColumnGroup(arm, 2, arm) for arm in ARMS)),
        rows=[("none", "128", *["1.3"] * (2 * len(ARMS))), ("causal", "128", f"not measured: {REASON}")],
    )  # fmt: skip
    machines = PageTable(heading="Machines", head=("", "Abacus", "Babbage"), rows=[("processor", "A", "B")])
    return [
        Page(name="speed", title="Speed", finding=f"{LONG} is fastest", text=(f"It is {LONG}.",), blocks=(chart, wide)),
        Page(name="trust", title="Trust", finding="9 of 21 times are noisy", blocks=(forest,)),
        Page(name="machine", title="Machine", text=("Two machines.",), blocks=(machines,)),
        Page(name="cases", title="All cases", blocks=(cases(),)),
        Page(name="scaling", finding="how time grows", hint="`attnbench scaling`"),
    ]


def cases(rows: int = 40) -> PageTable:
    """Every fifth case failed with a long reason."""
    return PageTable(
        heading=f"{rows} cases", head=("backend", "length", "ms", "reason", "command"), search=True,
        numbers=(False, True, True, False, False),
        rows=[
            (
                PageCell(text=ARMS[n % 5], arm=ARMS[n % 5]), str(128 << n % 4),
                PageCell(text=f"{n / 7:.2f}", detail=f"±{n} %", bold=n % 3 == 0), "" if n % 5 else f"crashed: {REASON}",
                f"attnbench run --seq 128 --backend {ARMS[n % 5]}",
            )
            for n in range(rows)
        ],
    )  # fmt: skip
