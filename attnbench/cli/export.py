"""`attnbench export`: a run in the format of another tool."""

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import checks, options


def export(
    run: options.RunName = "last",
    to: Annotated[
        str,
        options.option(
            "--to",
            help="Format: csv, json, parquet, md, latex, github-action-benchmark, bencher, pytest-benchmark, asv, "
            "tensorboard or wandb.",
            metavar="FORMAT",
            check=checks.one_of("format", checks.names_in("report.formats.export:FORMATS")),
        ),
    ] = "json",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output file, or folder for asv, tensorboard and wandb; stdout by default.",
            metavar="PATH",
        ),
    ] = None,
) -> int:
    """Convert a stored run to the format of another tool."""
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.report.formats import export as report

    report.check(to, out)
    stored = output.load(run)
    if out is None:
        print(report.text(stored, to), end="")
        return Exit.OK
    report.write(stored, to, out)
    print(out)
    return Exit.OK
