"""The first screen of a report as data: what to use, what went wrong, and how sure that is."""

from __future__ import annotations

from typing import Literal

import msgspec


class Advice(msgspec.Struct, frozen=True):
    """A sentence, with the command that helps; without a sentence the command shows the details of all others."""

    text: str
    command: str = ""


class GridCell(msgspec.Struct, frozen=True, kw_only=True):
    """One problem: its best backend, those that are tied, or why nothing was measured."""

    kind: Literal["best", "tied", "missing", "absent"]  # absent: the run has no such problem
    arms: tuple[str, ...] = ()  # the best, or all that are tied
    figure: str = ""  # `1.9×`, or `tied: 0.93..4.0×`
    detail: str = ""  # `815 µs · noisy`, or the reason
    tip: str = ""  # the problem and its figures in a sentence


class AnswerGrid(msgspec.Struct, frozen=True, kw_only=True):
    """Problems by panel (downwards) and axis (to the right)."""

    heading: str
    axis: str  # title of the axis
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[GridCell, ...]], ...]  # the heading of each row, and its cells
    compact: bool = False  # colours only: above 40 rows


class FixedChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What it costs to use one backend for every problem."""

    arm: str
    mean: float  # its time over the best time, geometric mean
    worst: float
    worst_at: str
    runs: int  # problems that it can run
    of: int
    where: str = ""  # device and run, if there are several


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The first screen."""

    context: str  # device, dtype, mode, shape, date, run
    headline: str  # `Use sdpa:flash here.`
    lead: str
    failures: tuple[Advice, ...] = ()  # the red box
    cautions: tuple[Advice, ...] = ()  # the amber box
    grid: AnswerGrid | None = None
    fixed: tuple[FixedChoice, ...] = ()
    checked: str = ""  # `All 21 outputs were checked against float64 before they were timed; all are right.`
