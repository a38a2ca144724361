"""The result of a query: a table, Markdown, CSV, JSON Lines or Parquet."""

import decimal
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from attnbench.analysis.indexed_runs import TABLES
from attnbench.analysis.query import QueryResult
from attnbench.errors import UsageError, writing
from attnbench.report import formats
from attnbench.report.formats import csv, jsonl, markdown
from attnbench.report.terminal.text_layout import cell_width

PARQUET = "parquet"
FORMATS = (*formats.FORMATS, PARQUET)
SUFFIXES = {".txt": "table", ".md": "md", ".csv": "csv", ".jsonl": "jsonl", ".parquet": PARQUET}
GAP = "  "


def chosen(format_: str | None, out: Path | None) -> str:
    """The format, by default that of the file's suffix.

    Raises UsageError for an unknown suffix, and where Parquet cannot be written.
    """
    if format_ is None and out is not None and out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: no format has this suffix: use {', '.join(SUFFIXES)}, or give --format")
    format_ = format_ or (SUFFIXES[out.suffix] if out else "table")
    if format_ == PARQUET:
        _check_parquet(out)
    return format_


def _check_parquet(out: Path | None) -> None:
    if not find_spec("pyarrow"):
        raise UsageError(f"--format {PARQUET} needs pyarrow: pip install pyarrow")
    if out is None:
        raise UsageError(f"--format {PARQUET} writes a binary file: give --out")


def write(result: QueryResult, format_: str, out: Path | None) -> None:
    """Print the result, or write it to a file. Raises StoreError if it cannot be written."""
    if out is None:
        for line in lines(result, format_):
            print(line, end="")
        return
    with writing(out):
        if format_ == PARQUET:
            import pandas as pd

            rows = [[jsonl.line(cell) if isinstance(cell, dict) else cell for cell in row] for row in result.rows]
            pd.DataFrame(rows, columns=list(result.columns)).to_parquet(out, index=False)
        else:
            with out.open("w", encoding="utf-8") as file:
                file.writelines(lines(result, format_))


def lines(result: QueryResult, format_: str) -> Iterator[str]:
    """The result as text, in lines or larger pieces."""
    columns = result.columns
    if format_ == "csv":
        yield from csv.lines(result.rows, columns)
    elif format_ == "jsonl":
        for row in result.rows:
            yield jsonl.line({name: _plain(value) for name, value in zip(columns, row, strict=True)}) + "\n"
    else:
        rows = list(result.rows)
        numbers = [any(map(_is_number, column)) for column in zip(*rows, strict=True)] or [False] * len(columns)
        texts = [[_text(value) for value in row] for row in rows]
        yield markdown.table(columns, texts, numbers) if format_ == "md" else _table(columns, texts, numbers)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    widths = [max(map(cell_width, column)) for column in zip(head, *rows, strict=True)]
    return "".join(_line(row, widths, numbers) for row in (head, *rows))


def _line(cells: Iterable[str], widths: Iterable[int], numbers: Iterable[bool]) -> str:
    padded = (
        " " * (width - cell_width(cell)) + cell if number else cell + " " * (width - cell_width(cell))
        for cell, width, number in zip(cells, widths, numbers, strict=True)
    )
    return GAP.join(padded).rstrip() + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    return " ".join(str(value).split())


def _plain(value: object) -> object:
    """A value that JSON has."""
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value) if isinstance(value, decimal.Decimal) else jsonl.strict(value)


def described() -> Iterator[str]:
    """The tables with their columns."""
    for table, columns in TABLES.items():
        yield f"{table}:"
        width = max(map(len, columns))
        for name, meaning in columns.items():
            yield f"  {name:<{width}}  {meaning}"
