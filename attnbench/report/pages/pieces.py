"""What several pages are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from attnbench.frame import Row
from attnbench.metrics import METRICS
from attnbench.report.drawing import Chart
from attnbench.report.material import Table


def drawn(**charts: Chart | None) -> tuple[tuple[str, Any], ...]:
    """Those that there is data for, by name."""
    return tuple((name, chart) for name, chart in charts.items() if chart is not None)


def metrics(heading: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    """One line a case with these metrics; a column that nothing was measured of is left out."""
    kept = [name for name in names if any(row[name] is not None for row in rows)]
    lines = [
        (row["label"], *(METRICS[name].show(row[name]) for name in kept))
        for row in rows
        if any(row[name] is not None for name in kept)
    ]
    return Table(heading=heading, head=("case", *kept), rows=lines, numbers=(False, *([True] * len(kept))))


def filled(table: Table) -> Table:
    """Without the columns in which no row says anything."""
    kept = [place for place in range(len(table.head)) if any(row[place] for row in table.rows)]
    return msgspec.structs.replace(
        table,
        head=tuple(table.head[place] for place in kept),
        numbers=tuple(table.numbers[place] for place in kept),
        rows=[tuple(row[place] for place in kept) for row in table.rows],
    )
