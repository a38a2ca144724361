"""Metrics as columns: one line a (case, arm), beside the pivot that shows times alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnbench.frame import Row
from attnbench.metrics import METRICS
from attnbench.report.pivot import Pivot, pivot
from attnbench.report.table import width_of, wrap

GAP = "  "
LABEL_MOST = 28


def lines(rows: Sequence[Row], names: Sequence[str], width: int) -> Iterator[str]:
    """A table of these metrics, at most `width` wide, then what a reader must know of single rows."""
    laid = pivot(rows)
    notes = list(dict.fromkeys(row["notes"] for row in rows if row["notes"] and _shown(row, names)))
    yield from wrap(laid.constant, width)
    labels = _labels(laid)
    label_width = min(LABEL_MOST, max((width_of(label) for label, _ in labels), default=0))
    for part in _parts(rows, names, width - label_width):
        yield ""
        yield from _part(labels, part, label_width, notes)
    for number, note in enumerate(notes, start=1):
        yield from wrap(f"[{number}] {note}", width, indent=4)
    absent = [name for name in names if all(row[name] is None for row in rows)]
    if absent:
        yield from wrap(f"not measured here: {', '.join(absent)}", width, indent=2)


def _shown(row: Row, names: Sequence[str]) -> bool:
    return any(row[name] is not None for name in names) or row["status"] == "ok"


def _labels(laid: Pivot) -> list[tuple[str, Row | None]]:
    """Headings of blocks (with no row), and the label of every row: the row axis and the arm."""
    found: list[tuple[str, Row | None]] = []
    for block in laid.blocks:
        if block.heading:
            found.append((block.heading, None))
        for label, cells in block.lines:
            for column in laid.columns:
                if column.arm in cells:
                    found.append((f"{label} {' '.join(column.heading)}", cells[column.arm]))
    return found


def _cell(row: Row, name: str, notes: Sequence[str]) -> str:
    shown = METRICS[name].show(row[name])
    if name == "roofline_share" and row[name] is not None:
        shown = f"{row[name]:.1%} {row['bound']}"
        if row["notes"]:
            shown += f" [{notes.index(row['notes']) + 1}]"
    return shown


def _parts(rows: Sequence[Row], names: Sequence[str], width: int) -> Iterator[list[str]]:
    """As many columns side by side as fit; those that nothing was measured of are left out."""
    part: list[str] = []
    used = 0
    for name in (name for name in names if any(row[name] is not None for row in rows)):
        notes = [row["notes"] for row in rows if row["notes"]]
        own = len(GAP) + max(width_of(name), *(width_of(_cell(row, name, notes)) for row in rows))
        if part and used + own > width:
            yield part
            part, used = [], 0
        part.append(name)
        used += own
    if part:
        yield part


def _part(
    labels: Sequence[tuple[str, Row | None]], names: Sequence[str], label_width: int, notes: Sequence[str]
) -> Iterator[str]:
    cells = {id(row): [_cell(row, name, notes) for name in names] for _, row in labels if row is not None}
    widths = [
        max([width_of(name), *(width_of(own[place]) for own in cells.values())]) for place, name in enumerate(names)
    ]
    yield " " * label_width + "".join(GAP + name.rjust(wide) for name, wide in zip(names, widths, strict=True))
    for label, row in labels:
        if row is None:
            yield label
            continue
        first, *rest = wrap(label, label_width)
        line = first.ljust(label_width)
        line += "".join(GAP + cell.rjust(wide) for cell, wide in zip(cells[id(row)], widths, strict=True))
        yield line.rstrip()
        yield from (f"  {piece}" for piece in rest)
