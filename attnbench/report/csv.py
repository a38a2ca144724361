"""CSV: one row a (case, arm), every column of the frame, units in the names, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from attnbench.frame import COLUMNS, Row

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


def text(rows: Sequence[Row], columns: Iterable[str] = COLUMNS) -> str:
    """The whole file."""
    out, names = io.StringIO(), tuple(columns)
    writer = csv.writer(out, lineterminator="\n")  # which writes None as nothing, and floats by repr
    writer.writerow(names)
    writer.writerows([_cell(value) if type(value := row[name]) is str else value for name in names] for row in rows)
    return out.getvalue()


def _cell(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA) else text
