"""`attnbench report`: HTML, Markdown, plots and tables of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.checks import backend, names_in, one_of, some_of
from attnbench.cli.options import OptionGroup, option

if TYPE_CHECKING:
    from attnbench.gate.history import HistoryPoint
    from attnbench.records.run_directory import Run
    from attnbench.report.formats.report_directory import ReportOptions

FILES = ("index.html", "report.md", "data.csv", "data.json", "data.parquet")


class Content(OptionGroup, frozen=True, kw_only=True):
    """What the report shows, and how."""

    title: Annotated[str, option(help="Heading of the report.", metavar="TEXT")] = ""
    theme: Annotated[
        str,
        option(
            help="Colours: auto, light, dark or print.",
            metavar="NAME",
            check=one_of("theme", names_in("report.formats.html:THEMES")),
        ),
    ] = "auto"
    reference: Annotated[
        str,
        option(
            help="Backend that speed-ups are relative to; by default that of the run.", metavar="NAME", check=backend
        ),
    ] = ""
    pages: Annotated[
        str,
        option(
            help="Sections to write: answer, speed and others; all by default.",
            metavar="LIST",
            check=some_of("page", names_in("report.pages:NAMES")),
        ),
    ] = ""
    only: options.Only = None
    skip: options.Skip = None
    anonymize: Annotated[
        bool, option("--anonymize", help="Omit the names of runs and machines, commands, commits and tags.")
    ] = False
    history: Annotated[
        Path | None,
        option("--history", help="History to draw; results/history.jsonl by default, if it exists.", metavar="FILE"),
    ] = None
    plots: Annotated[
        str,
        option(
            "--plots",
            help="Formats of the plots: svg, png, pdf.",
            metavar="LIST",
            check=some_of("format", names_in("report.charts.rendering:FORMATS")),
        ),
    ] = "svg,png"

    def checked(self) -> ReportOptions:
        """The options of the report."""
        from attnbench.report.formats.report_directory import ReportOptions
        from attnbench.suite import keeps
        from attnbench.units import words

        formats = words(self.plots, "--plots")
        pages = words(self.pages, "--pages") if self.pages else ()
        return ReportOptions(
            title=self.title, theme=self.theme, plots=formats, reference=self.reference or None,
            keep=keeps(self.only, self.skip), only=pages, anonymize=self.anonymize, trend=_trend(self.history),
        )  # fmt: skip


@options.with_options()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Run directories, their names, or folders of runs; `last` by default."),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "-o", help="Folder of the report; RUN/report by default.", metavar="DIR")
    ] = None,
    *,
    content: Content,
) -> None:
    """Write a report of stored runs: HTML, Markdown, CSV, plots.

    index.html is one file and works offline.
    """
    from attnbench.cli.progress import steps
    from attnbench.records import run_directory
    from attnbench.report.charts import rendering
    from attnbench.report.formats.report_directory import write

    chosen, names = content.checked(), runs or ["last"]
    folders = [name for name in names if run_directory.holds_runs(name, run_directory.results_root())]
    stored = _of_folders(names, chosen) if folders else _loaded(names)
    _check_left(stored, names, chosen)
    with steps("reading results") as begin:
        where = write(stored, out or (Path(folders[0]) / "report" if folders else None), chosen, begin)
    if not rendering.available():
        print(rendering.MISSING, file=sys.stderr)
    for name in FILES:
        if (where / name).exists():
            print(where / name)
    for folder in ("tables", "plots"):
        if (where / folder).is_dir():
            print(f"{where / folder}/ ({len(list((where / folder).iterdir()))} files)")


def _loaded(names: list[str]) -> list[Run]:
    from attnbench.cli import output
    from attnbench.cli.progress import steps

    with steps("reading runs"):
        return [output.load(name) for name in names]


def _of_folders(names: list[str], chosen: ReportOptions) -> list[Run]:
    """The runs that have results of the report, with these results alone."""
    from attnbench.cli.stored_runs import indexed
    from attnbench.report.pages.page import MAX_CASES

    with indexed(names, "a report of a folder of runs") as stored:
        return stored.select(chosen.keep, MAX_CASES)


def _check_left(runs: list[Run], names: list[str], chosen: ReportOptions) -> None:
    """Raise UsageError if `--only` and `--skip` leave no result of runs that have some."""
    from attnbench.errors import UsageError

    keep, filled = chosen.keep, [run for run in runs if run.results]
    if not runs or (keep and filled and not any(any(map(keep, run.results)) for run in filled)):
        raise UsageError(f"--only, --skip: no result of {', '.join(names)} is left")


def _trend(file: Path | None) -> list[HistoryPoint]:
    """The points of this history file, or of the default one if it exists."""
    from attnbench.gate import history
    from attnbench.records import run_directory

    usual = run_directory.results_root() / history.FILE
    if file is None and not usual.is_file():
        return []
    return history.load(file or usual)[0]
