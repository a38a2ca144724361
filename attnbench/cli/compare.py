"""`attnbench compare`: stored runs, case by case."""

from typing import Annotated

import typer

from attnbench.cli import options


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="OLD NEW...", help="Run directories, names, or `last`.")],
    cross_machine: Annotated[
        bool, typer.Option("--cross-machine", help="Compare runs of different machines, with a label that says so.")
    ] = False,
    format_: options.Format = "table",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object per case.")] = False,
) -> int:
    """Compare stored runs: time ratio of each case with its interval; failures first, then the largest effects."""
    from attnbench import api
    from attnbench.analysis import comparison
    from attnbench.cli import output
    from attnbench.errors import Exit, UsageError
    from attnbench.report.formats import comparison as report
    from attnbench.report.terminal.text_layout import terminal_width

    output.check_format(format_)
    if len(runs) < 2:
        raise UsageError(f"compare: {len(runs)} run given ({runs[0]}): at least two are needed, the earlier one first")
    old, *later = (api.load(name) for name in runs)
    comparisons = [comparison.compare(old, new, cross_machine) for new in later]
    for line in report.text(comparisons, "jsonl" if json_ else format_, terminal_width()):
        print(line)
    return Exit.OK
