"""`attnbench compare`: stored runs, case by case."""

from __future__ import annotations

from typing import Annotated

import typer


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="OLD NEW...", help="Run directories, names, or `last`.")],
    cross_machine: Annotated[
        bool, typer.Option("--cross-machine", help="Look at runs of two machines all the same, labelled so.")
    ] = False,
    format_: Annotated[str, typer.Option("--format", help="table, md, csv, jsonl.", metavar="FORMAT")] = "table",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a case.")] = False,
) -> int:
    """How many times longer each case takes in the later runs, with intervals; failures first, then large effects."""
    from attnbench import api, comparison
    from attnbench.errors import Exit, UnknownNameError, UsageError
    from attnbench.report import compare as report
    from attnbench.report.table import columns

    if format_ not in report.FORMATS:
        raise UnknownNameError("format", format_, report.FORMATS, where="--format")
    if len(runs) < 2:
        raise UsageError(f"compare: {len(runs)} run given ({runs[0]}): at least two, the earlier one first")
    old, *later = (api.load(name) for name in runs)
    found = [comparison.compare(old, new, cross_machine) for new in later]
    for line in report.text(found, "jsonl" if json_ else format_, columns()):
        print(line)
    return Exit.OK
