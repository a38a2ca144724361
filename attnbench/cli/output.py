"""A run on stdout: as a table with its verdict, or in another format."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence

from attnbench import frame
from attnbench.errors import UnknownNameError
from attnbench.report import FORMATS, columns, csv, jsonl, markdown, summary, table
from attnbench.store import Run

COLORS = ("auto", "always", "never")


def show(
    run: Run,
    format_: str,
    *,
    color: str = "auto",
    saved: bool = True,
    code: int = 0,
    printed: Collection[str] = (),
    metrics: Sequence[str] = (),
) -> None:
    """Print the run. `printed` are case ids and arms that stand on stdout already, for JSON Lines."""
    if format_ not in FORMATS:
        raise UnknownNameError("format", format_, FORMATS, where="--format")
    rows = frame.rows(run.results, roofs=frame.roofs_of(run.manifest))
    if format_ == "jsonl":
        for row in rows:
            if row["case_id"] + row["arm"] not in printed:
                print(jsonl.line(jsonl.record(row, metrics)))
        for text, reason in run.manifest.impossible:
            print(jsonl.line(jsonl.impossible(text, reason)))
        path = str(run.path) if saved else ""
        print(jsonl.line(summary.record(rows, run.manifest.planned, path, code)))
    elif format_ == "md":
        print(markdown.tables(rows), end="")
    elif format_ == "csv":
        print(csv.text(rows), end="")
    else:
        _table(rows, color)
        if metrics:
            _metrics(run, rows, metrics)
    if format_ != "jsonl":
        _after(run, rows, saved, sys.stdout if format_ == "table" else sys.stderr)


def _table(rows: Sequence[frame.Row], color: str) -> None:
    if color not in COLORS:
        raise UnknownNameError("colour", color, COLORS, where="--color")
    if _styled(color):
        from rich.console import Console

        Console(force_terminal=True, highlight=False).print(table.styled(rows), soft_wrap=True, end="")
    else:
        print(table.text(rows), end="")
    print()


def _metrics(run: Run, rows: Sequence[frame.Row], names: Sequence[str]) -> None:
    for line in columns.lines(rows, names, table.columns()):
        print(line)
    if not frame.roofs_of(run.manifest) and any(name.startswith("roofline") for name in names):
        print("no ceilings of this machine yet, so no roofline: attnbench calibrate")
    print()


def _styled(color: str) -> bool:
    if color != "auto":
        return color == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def _after(run: Run, rows: Sequence[frame.Row], saved: bool, stream: object) -> None:
    """The finding, the counts, where the run lies, and what to do next."""
    width = table.columns()
    for text in (summary.sentence(rows), summary.tally(rows, len(run.manifest.impossible))):
        for line in table.wrap(text, width):
            print(line, file=stream)  # type: ignore[call-overload]
    if run.skipped_lines:
        print(f"{run.skipped_lines} lines of the results could not be read", file=stream)  # type: ignore[call-overload]
    if saved:
        print(f"run: {run.path}", file=stream)  # type: ignore[call-overload]
        print("next: attnbench report last", file=stream)  # type: ignore[call-overload]
