"""`attnbench show`: print a stored run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.api import StoredRun


def show(
    context: typer.Context,
    run: options.RunName = "last",
    format: options.Format = "table",  # noqa: A002
    json: Annotated[bool, typer.Option("--json", help="Print JSON Lines, as `attnbench run --json` does.")] = False,
    metrics: options.Metrics = "",
    failed: Annotated[
        bool, typer.Option("--failed", help="List every failed case with its trace and what its worker printed.")
    ] = False,
    skipped: Annotated[
        bool, typer.Option("--skipped", help="List the cases without a time, with their reasons.")
    ] = False,
) -> None:
    """Print the table of a stored run."""
    from attnbench import api
    from attnbench.analysis.metrics import named
    from attnbench.cli import output

    others = {"format": format != "table", "metrics": bool(metrics), "skipped": failed and skipped}
    if failed or skipped:
        _refuse_beside("--failed" if failed else "--skipped", others, context)
    stored = api.load(run)
    if failed or skipped:
        (_failed if failed else _skipped)(stored, json)
        return
    names = named(metrics or str(stored.manifest.request.get("metrics", "")))
    output.show(stored, "jsonl" if json else format, color=options.global_options(context).color, metrics=names)


def _failed(stored: "StoredRun", as_json: bool) -> None:
    from attnbench.analysis.rows import rows_of
    from attnbench.cli import output
    from attnbench.report.formats import jsonl
    from attnbench.report.terminal import failures

    rows = rows_of(stored.results, arms=stored.manifest.arms) if as_json else []
    output.lines(jsonl.failures(rows, stored.results), failures.text(stored.results), as_json)


def _skipped(stored: "StoredRun", as_json: bool) -> None:
    from attnbench.analysis.rows import rows_of
    from attnbench.cli import output
    from attnbench.report.formats import jsonl
    from attnbench.report.pivot import why

    rows = [row for row in rows_of(stored.results, arms=stored.manifest.arms) if row.time_s is None]
    impossible = stored.manifest.impossible
    records = [*map(jsonl.record, rows), *(jsonl.impossible(text, reason) for text, reason in impossible)]
    text = [f"{row.name}  {why(row)}" for row in rows]
    output.lines(records, [*text, *(f"{cell}  impossible: {reason}" for cell, reason in impossible)], as_json)


def _refuse_beside(listing: str, others: Mapping[str, bool], context: typer.Context) -> None:
    """Raise UsageError if the command line has another option, which the list would ignore."""
    from attnbench.errors import UsageError

    for name, chosen in others.items():
        source = context.get_parameter_source(name)
        if chosen and source and source.name == "COMMANDLINE":  # a configuration file sets what the table needs
            raise UsageError(
                f"show {listing} lists cases as text, or as JSON Lines with --json, and takes no --{name}; "
                f"without {listing}, --format csv has the status and the reason of every case"
            )
