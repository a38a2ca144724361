"""Runs as people read them: one file a format; all draw from `frame.rows`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from attnbench import crew, frame
from attnbench.errors import StoreError
from attnbench.gate.history import Point
from attnbench.report import csv, html, latex, markdown, pages, plots
from attnbench.report.material import ROWS_MOST, Material, Page, Table, material
from attnbench.store import Run

FORMATS: Sequence[str] = ("table", "md", "csv", "jsonl")
MADE = "made by attnbench report"  # in the folder's own file: what is not ours is never touched
MARK = ".attnbench-report"
MANY = 20_000  # rows; to write more of them is worth a second process
NAME_MOST = 120  # characters of a file's name: headings hold names of runs

Step = Callable[[str], None]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a report holds and how it looks."""

    title: str = ""
    theme: str = "auto"
    plots: tuple[str, ...] = ("svg", "png")
    reference: str | None = None
    keep: Callable[[Any], bool] | None = None
    only: tuple[str, ...] = ()  # pages; empty: all
    anonymize: bool = False
    trend: Sequence[Point] = ()  # of the project's history; none where it is anonymous


def _silent(_: str) -> None:
    """Nobody watches."""


def write(
    runs: Sequence[Run], directory: Path | None = None, choice: Choice | None = None, step: Step = _silent
) -> Path:
    """Write index.html, report.md, data.*, tables/ and plots/ to `directory`, by default RUN/report.

    Without altair and vl-convert there are neither plots nor charts in the page, without pyarrow no Parquet. Files that
    are not a report's are left alone; StoreError for a folder that holds only such. `step` is told what begins.
    """
    choice = choice or Choice()
    where = directory or runs[0].path / "report"
    _check(where)
    if choice.anonymize:
        runs = [_anonymous(run, number) for number, run in enumerate(runs)]
    step("reading")
    found = material(runs, choice.keep, choice.reference, () if choice.anonymize else choice.trend)
    with plots.unchecked():
        made = [page for page in pages.pages(found) if not choice.only or page.name in choice.only]
        step("drawing")
        drawn = html.draw(made) if plots.available() else []
    title = choice.title or f"attnbench: {', '.join(dict.fromkeys(run.manifest.suite for run in runs))}"
    columns = (*frame.COLUMNS, "run") if len(runs) > 1 else tuple(frame.COLUMNS)
    step("writing")
    try:
        (where / "tables").mkdir(parents=True, exist_ok=True)
        texts = _texts(made, drawn, found, columns, title, choice)
        crew.share(lambda one: _put(where, *one), texts, pooled=len(found.rows) > MANY, pieces=1)
        if find_spec("pyarrow"):
            frame.table(found.rows, columns).to_parquet(where / "data.parquet", index=False)
        if drawn:
            plots.write(_files(drawn), where / "plots", choice.plots)
    except OSError as error:
        raise StoreError(f"cannot write the report to {where}: {error.strerror}") from error
    return where


def _files(drawn: Sequence[html.Drawing]) -> dict[str, str]:
    """SVGs by the names of their files, without the summary's small copies of other pages' charts."""
    elsewhere = {one.name for one in drawn if one.page != "summary"}
    return {one.file: one.svg for one in drawn if one.page != "summary" or one.name not in elsewhere}


def _texts(
    made: Sequence[Page], drawn: Sequence[html.Drawing], found: Material, columns: Sequence[str], title: str,
    choice: Choice,
) -> list[tuple[str, Callable[[], str]]]:  # fmt: skip
    """Every file of text by its name, and what makes it."""
    page = html.page(made, drawn, title, choice.theme)
    files: list[tuple[str, Callable[[], str]]] = [
        (MARK, lambda: MADE + "\n"),
        ("data.csv", lambda: csv.text(found.rows, columns)),
        ("data.json", lambda: _json(found)),
        ("index.html", lambda: page),
        ("report.md", lambda: markdown.page(found.runs[0], found.rows, choice.title)),
    ]
    return files + [file for one in made for table in one.tables if table.rows for file in _tables(one, table)]


def _put(where: Path, name: str, make: Callable[[], str]) -> None:
    (where / name).write_text(make(), encoding="utf-8")


def _json(found: Material) -> str:
    manifests = {run.path.name: run.manifest for run in found.runs}
    return msgspec.json.encode({"manifests": manifests, "columns": frame.COLUMNS, "rows": found.rows}).decode() + "\n"


def _tables(page: Page, table: Table) -> list[tuple[str, Callable[[], str]]]:
    """A table in three formats; nobody sets or reads very many rows, so CSV alone has them all."""
    stem = f"{page.name}-{re.sub(r'[^a-z0-9]+', '-', table.heading.lower()).strip('-')}"[:NAME_MOST]
    numbers = table.numbers or (False,) * len(table.head)
    rows = table.rows[:ROWS_MOST]
    said = f"{ROWS_MOST} of {len(table.rows)} rows; {stem}.csv has all\n" if len(rows) < len(table.rows) else ""
    return [
        (f"tables/{stem}.csv", lambda: _csv(table)),
        (f"tables/{stem}.md", lambda: markdown.table(table.head, rows, numbers) + (said and f"\n{said}")),
        (f"tables/{stem}.tex", lambda: (said and f"% {said}") + latex.table(table.head, rows, numbers)),
    ]


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


def _csv(table: Table) -> str:
    head = [name or f"column_{place}" for place, name in enumerate(table.head)]
    return csv.text([dict(zip(head, row, strict=True)) for row in table.rows], head)
