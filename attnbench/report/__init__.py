"""Runs as people read them: one file a format; all draw from `frame.rows`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from attnbench.errors import StoreError
from attnbench.report import csv, html, markdown, pages, plots
from attnbench.report.markdown import escape
from attnbench.report.material import Page, Table, material
from attnbench.store import Run

FORMATS: Sequence[str] = ("table", "md", "csv", "jsonl")
MADE = "made by attnbench report"  # in the folder's own file: what is not ours is never touched
MARK = ".attnbench-report"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a report holds and how it looks."""

    title: str = ""
    theme: str = "auto"
    plots: tuple[str, ...] = ("svg", "png")
    reference: str | None = None
    keep: Callable[[Any], bool] = lambda _: True
    only: tuple[str, ...] = ()  # pages; empty: all
    anonymize: bool = False


def write(runs: Sequence[Run], directory: Path | None = None, choice: Choice | None = None) -> Path:
    """Write index.html, report.md, data.csv, tables/ and plots/ to `directory`, by default RUN/report.

    Without altair and vl-convert there are neither plots nor charts in the page. Files that are not a report's are left
    alone; StoreError for a folder that holds only such.
    """
    choice = choice or Choice()
    where = directory or runs[0].path / "report"
    _check(where)
    if choice.anonymize:
        runs = [_anonymous(run, number) for number, run in enumerate(runs)]
    found = material(runs, choice.keep, choice.reference)
    drawn = plots.available()
    made = [page for page in pages.pages(found) if not choice.only or page.name in choice.only]
    if not drawn:
        made = [msgspec.structs.replace(page, charts=()) for page in made]
    title = choice.title or f"attnbench: {', '.join(dict.fromkeys(run.manifest.suite for run in runs))}"
    texts = {
        "index.html": html.page(made, title, choice.theme),
        "report.md": markdown.page(runs[0], found.rows, choice.title),
        "data.csv": csv.text(found.rows),
        MARK: MADE + "\n",
        **{f"tables/{name}.csv": text for name, text in _tables(made, _csv)},
        **{f"tables/{name}.md": text for name, text in _tables(made, _markdown)},
    }
    try:
        for name, text in texts.items():
            path = where / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if drawn:
            plots.write(found.rows, where / "plots", choice.plots)
    except OSError as error:
        raise StoreError(f"cannot write the report to {where}: {error.strerror}") from error
    return where


def _check(where: Path) -> None:
    """Refuse a folder of somebody else's: a report overwrites only what a report wrote."""
    if where.is_dir() and not (where / MARK).exists():
        foreign = sorted(path.name for path in where.iterdir() if path.name not in ("report.md", "tables", "plots"))
        if foreign:
            raise StoreError(f"{where} holds {foreign[0]!r} and is no report: give another --out")


def _anonymous(run: Run, number: int) -> Run:
    """Without folder names, commands, tags, commits: what is left names neither user nor project."""
    manifest = msgspec.structs.replace(run.manifest, command="", tags={}, commit=None)
    return msgspec.structs.replace(run, path=Path(f"run-{number + 1}"), manifest=manifest)


def _tables(made: Sequence[Page], spell: Callable[[Table], str]) -> Sequence[tuple[str, str]]:
    found = []
    for page in made:
        for table in page.tables:
            if table.rows:
                found.append(
                    (f"{page.name}-{re.sub(r'[^a-z0-9]+', '-', table.heading.lower()).strip('-')}", spell(table))
                )
    return found


def _csv(table: Table) -> str:
    head = [name or f"column_{place}" for place, name in enumerate(table.head)]
    return csv.text([dict(zip(head, row, strict=True)) for row in table.rows], head)


def _markdown(table: Table) -> str:
    numbers = table.numbers or (False,) * len(table.head)
    lines = [
        f"| {' | '.join(map(escape, table.head))} |",
        f"|{'|'.join('---:' if number else '---' for number in numbers)}|",
        *(f"| {' | '.join(map(escape, row))} |" for row in table.rows),
    ]
    return "\n".join(lines) + "\n"
