"""`attnbench query`: SQL over stored results."""

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options
from attnbench.cli.checks import names_in, one_of

Format = Annotated[
    str | None,
    options.option(
        "--format", help="Output format: table, md, csv, jsonl or parquet; by default that of --out.", metavar="FORMAT",
        check=one_of("format", names_in("report.formats.query_result:FORMATS")),
    ),
]  # fmt: skip


def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One SELECT over the tables `results` and `runs`.", show_default=False)
    ] = "",
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Run directories, their names, or folders of runs; all stored runs by default."
        ),
    ] = None,
    columns: Annotated[bool, typer.Option("--columns", help="List the tables and their columns.")] = False,
    format: Format = None,  # noqa: A002
    json: options.Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output file; stdout by default.", metavar="FILE")
    ] = None,
) -> None:
    """Query stored results with SQL.

    Uses an index in the cache, which is made from the plain files and follows their changes.
    """
    from attnbench.analysis import query as queries
    from attnbench.cli.stored_runs import indexed
    from attnbench.errors import UsageError
    from attnbench.report.formats import query_result

    if columns:
        for line in query_result.described():
            print(line)
        return
    if not sql:
        raise UsageError("query: no SQL: give one SELECT, or --columns for the columns")
    chosen = query_result.chosen("jsonl" if json else format, out)
    with indexed(runs or [], "query") as stored:
        result = queries.run(stored, sql)
        query_result.write(result, chosen, out)
