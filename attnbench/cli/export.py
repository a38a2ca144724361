"""`attnbench export`: a run in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.")] = "last",
    to: Annotated[
        str,
        typer.Option(
            "--to", help="csv, json, md, latex, github-action-benchmark, bencher, pytest-benchmark.", metavar="FORMAT"
        ),
    ] = "json",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file; stdout by default.")] = None,
) -> int:
    """Print a stored run in the format of another tool, or write it to a file."""
    from attnbench import api
    from attnbench.errors import Exit, StoreError, UnknownNameError
    from attnbench.report import export as report

    if to not in report.FORMATS:
        raise UnknownNameError("format", to, report.FORMATS, where="--to")
    text = report.text(api.load(run), to)
    if out is None:
        print(text, end="")
        return Exit.OK
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write to {out}: {error.strerror}") from error
    print(out)
    return Exit.OK
