"""What the pages of a report are made of: rows of all its runs, and tables, charts and words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from attnbench import __version__, frame
from attnbench.frame import Row
from attnbench.joined import Joined
from attnbench.report import charts
from attnbench.store import Run

ROWS_MOST = 2000  # of one table on a page; data.csv has them all


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


class Material(msgspec.Struct, frozen=True, kw_only=True):
    """What all pages draw from."""

    runs: tuple[Run, ...]
    rows: list[Row]
    joined: list[Joined]

    @property
    def caption(self) -> str:
        """Below the title of every chart."""
        return charts.caption_of(self.rows, __version__)


def material(
    runs: Sequence[Run], keep: Callable[[Any], bool] = lambda _: True, reference: str | None = None
) -> Material:
    """The rows of all runs, in order; `keep` chooses among their Results."""
    rows: list[Row] = []
    joined: list[Joined] = []
    for run in runs:
        results, roofs = list(filter(keep, run.results)), frame.roofs_of(run.manifest)
        rows += frame.rows(results, reference, roofs)
        joined += frame.join(results, reference, roofs)
    return Material(runs=tuple(runs), rows=rows, joined=joined)
