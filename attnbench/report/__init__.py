"""Runs as people read them: one file a format; all draw from `frame.rows`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench.errors import StoreError
from attnbench.frame import roofs_of, rows
from attnbench.report import csv, markdown, plots
from attnbench.store import Run


def write(run: Run, directory: Path | None = None, title: str = "", formats: Sequence[str] = ("svg", "png")) -> Path:
    """Write report.md, tables/results.csv and plots/ to `directory`, by default RUN/report; gives the folder.

    Without altair and vl-convert there are no plots.
    """
    where = directory or run.path / "report"
    table = rows(run.results, roofs=roofs_of(run.manifest))
    texts = {where / "report.md": markdown.page(run, table, title), where / "tables" / "results.csv": csv.text(table)}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if plots.available():
            plots.write(table, where / "plots", formats)
    except OSError as error:
        raise StoreError(f"cannot write the report to {where}: {error.strerror}") from error
    return where


FORMATS: Sequence[str] = ("table", "md", "csv", "jsonl")
