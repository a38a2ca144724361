"""`attnbench show`: a stored run again."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.cli import options


def show(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.")] = "last",
    format_: Annotated[str, typer.Option("--format", help="table, md, csv, jsonl.", metavar="FORMAT")] = "table",
    json_: Annotated[bool, typer.Option("--json", help="The lines of `run --json`.")] = False,
    metrics: options.Metrics = "",
    skipped: Annotated[bool, typer.Option("--skipped", help="List every case without a time, and why.")] = False,
) -> None:
    """Print the table of a stored run."""
    from attnbench import api, frame
    from attnbench.cli import output
    from attnbench.metrics import named
    from attnbench.report.pivot import why

    stored = api.load(run)
    if skipped:
        for row in frame.rows(stored.results):
            if row["time_s"] is None:
                print(f"{row['label']}@{row['device']}  {why(row)}")
        for text, reason in stored.manifest.impossible:
            print(f"{text}  impossible: {reason}")
        return
    names = named(metrics or str(stored.manifest.request.get("metrics", "")))
    output.show(stored, "jsonl" if json_ else format_, color=context.obj["color"], metrics=names)
