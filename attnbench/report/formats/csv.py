"""CSV: one line for each row, units in the names of columns, safe to open in a spreadsheet."""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from attnbench.analysis.rows import COLUMNS

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the first character of a cell that a spreadsheet would evaluate


class _Echo:
    """A file that returns what is written to it."""

    def write(self, text: str) -> str:
        return text


def text(rows: Iterable[Mapping[str, object]], columns: Iterable[str] = COLUMNS) -> str:
    """The whole file; None is an empty cell."""
    names = tuple(columns)
    return "".join(lines(([row[name] for name in names] for row in rows), names))


def lines(rows: Iterable[Sequence[object]], columns: Sequence[str]) -> Iterator[str]:
    """The lines of the file, the first with the names of the columns."""
    write: Callable[[Iterable[object]], str] = csv.writer(_Echo(), lineterminator="\n").writerow
    yield write(map(_cell, columns))
    for row in rows:
        # By exact type: the values of enums are never formulas, and there are many rows.
        yield write([_cell(value) if type(value) is str else value for value in row])


def _cell(text: str) -> str:
    return "'" + text if text.startswith(_FORMULA) else text
