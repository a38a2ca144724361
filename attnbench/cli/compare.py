"""`attnbench compare`: stored runs, case by case."""

from typing import Annotated

import typer

from attnbench.cli import options


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Two or more run directories, names, or `last`; the earlier first."),
    ],
    cross_machine: Annotated[
        bool, typer.Option("--cross-machine", help="Compare runs of different machines; the output says so.")
    ] = False,
    format: options.Format = "table",  # noqa: A002
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per case.")] = False,
) -> int:
    """Compare stored runs case by case.

    Prints failures first, then the ratio of times with its interval, largest changes first.
    """
    from attnbench.analysis import comparison
    from attnbench.cli import output
    from attnbench.errors import Exit, UsageError
    from attnbench.report.formats import comparison as report
    from attnbench.report.terminal.text_layout import terminal_width

    if len(runs) < 2:
        raise UsageError(f"compare: {len(runs)} run given ({runs[0]}): at least two are needed, the earlier one first")
    old = output.load(runs[0])
    comparisons = [comparison.compare(old, output.load(name), cross_machine) for name in runs[1:]]  # two in memory
    for line in report.text(comparisons, "jsonl" if json else format, terminal_width()):
        print(line)
    return Exit.OK
