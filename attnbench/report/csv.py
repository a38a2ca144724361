"""CSV: one row a (case, arm), every column of the frame, units in the names, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from attnbench.frame import COLUMNS, Row

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


def text(rows: Sequence[Row], columns: Iterable[str] = COLUMNS) -> str:
    """The whole file."""
    out, names = io.StringIO(), tuple(columns)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return repr(value) if isinstance(value, float) else value
