"""`attnbench report`: files for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attnbench.gate.history import Point

FILES = ("index.html", "report.md", "data.csv", "data.json", "data.parquet")


def report(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="Run directories, names, or `last`, the default.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; RUN/report by default.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "",
    theme: Annotated[str, typer.Option(help="auto, light, dark or print.")] = "auto",
    reference: Annotated[str, typer.Option(help="Whom speed-ups are against, if not whom the run says.")] = "",
    pages: Annotated[str, typer.Option(help="Comma list: latency, memory ...; all by default.", metavar="LIST")] = "",
    only: Annotated[list[str] | None, typer.Option(help="Keep these: seq=..4k.", metavar="KEY=VALUES")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Drop these: backend=flex.", metavar="KEY=VALUES")] = None,
    anonymize: Annotated[bool, typer.Option("--anonymize", help="Without names, commands, commits and tags.")] = False,
    history_: Annotated[
        Path | None,
        typer.Option("--history", help="Trend of the project; results/history.jsonl where it is.", metavar="FILE"),
    ] = None,
    plots_: Annotated[str, typer.Option("--plots", help="Formats: svg, png, pdf.", metavar="LIST")] = "svg,png",
) -> None:
    """Write index.html (one file, offline), report.md, data.csv, tables and plots of one run or several."""
    from attnbench import api
    from attnbench.cli.progress import steps
    from attnbench.errors import UnknownNameError
    from attnbench.ranges import words
    from attnbench.report import Choice, html, plots, write
    from attnbench.report.pages import NAMES
    from attnbench.suite import keeps

    formats = words(plots_, "--plots")
    for name in formats:
        if name not in plots.FORMATS:
            raise UnknownNameError("format", name, plots.FORMATS, where="--plots")
    if theme not in html.THEMES:
        raise UnknownNameError("theme", theme, html.THEMES, where="--theme")
    chosen = words(pages, "--pages") if pages else ()
    for name in chosen:
        if name not in NAMES:
            raise UnknownNameError("page", name, NAMES, where="--pages")
    choice = Choice(
        title=title,
        theme=theme,
        plots=formats,
        reference=reference or None,
        keep=keeps(only, skip),
        only=chosen,
        anonymize=anonymize,
        trend=_trend(history_),
    )
    with steps("reading runs") as begin:
        where = write([api.load(name) for name in runs or ("last",)], out, choice, begin)
    if not plots.available():
        print(plots.MISSING, file=sys.stderr)
    for name in FILES:
        if (where / name).exists():
            print(where / name)
    for folder in ("tables", "plots"):
        if (where / folder).is_dir():
            print(f"{where / folder}/ ({len(list((where / folder).iterdir()))} files)")


def _trend(file: Path | None) -> list[Point]:
    """The points of the history that was named, or of the usual one where there is any."""
    from attnbench import store
    from attnbench.gate import history

    usual = store.results_root() / history.FILE
    if file is None and not usual.is_file():
        return []
    return history.load(file or usual)[0]
