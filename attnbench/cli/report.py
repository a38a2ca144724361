"""`attnbench report`: files for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.")] = "last",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; RUN/report by default.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the report.")] = "",
) -> None:
    """Write report.md and tables/results.csv of a stored run."""
    from attnbench import api
    from attnbench.report import write

    where = write(api.load(run), out, title)
    for path in sorted(where.rglob("*.*")):
        print(path)
