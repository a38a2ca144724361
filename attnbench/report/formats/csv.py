"""CSV: one line for each row, units in the names of columns, safe to open in a spreadsheet."""

import csv
import io
from collections.abc import Iterable, Mapping

from attnbench.analysis.rows import COLUMNS

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the first character of a cell that a spreadsheet would evaluate


def text(rows: Iterable[Mapping[str, object]], columns: Iterable[str] = COLUMNS) -> str:
    """The whole file; None is an empty cell."""
    out, names = io.StringIO(), tuple(columns)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_cell, names))
    # By exact type: the values of enums are never formulas, and there are many rows.
    writer.writerows([_cell(value) if type(value := row[name]) is str else value for name in names] for row in rows)
    return out.getvalue()


def _cell(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA) else text
