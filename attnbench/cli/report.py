"""`attnbench report`: files for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.")] = "last",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; RUN/report by default.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "",
    plots_: Annotated[str, typer.Option("--plots", help="Formats: svg, png, pdf.", metavar="LIST")] = "svg,png",
) -> None:
    """Write report.md, tables/results.csv and plots of a stored run."""
    from attnbench import api
    from attnbench.errors import UnknownNameError
    from attnbench.ranges import words
    from attnbench.report import plots, write

    formats = words(plots_, "--plots")
    for name in formats:
        if name not in plots.FORMATS:
            raise UnknownNameError("format", name, plots.FORMATS, where="--plots")
    where = write(api.load(run), out, title, formats)
    if not plots.available():
        print(plots.MISSING, file=sys.stderr)
    for path in sorted(where.rglob("*.*")):
        print(path)
