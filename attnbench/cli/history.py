"""`attnbench history`: the trend of a project and its change points."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options


def history(
    file: Annotated[
        Path | None, typer.Argument(help="History file; results/history.jsonl by default.", metavar="FILE")
    ] = None,
    add: Annotated[
        str, typer.Option("--add", help="Append this run, or the head of this gate, before printing.", metavar="RUN")
    ] = "",
    case: Annotated[
        str, typer.Option("--case", help="Show only cases whose label contains this text.", metavar="TEXT")
    ] = "",
    json: options.Json = False,
) -> None:
    """Show how times changed from commit to commit.

    Prints one line per case of this machine: its first and last time, then each change of level with its commit.
    """
    from attnbench import units
    from attnbench.cli import output
    from attnbench.gate import history as trend
    from attnbench.machine import identity
    from attnbench.records import run_directory
    from attnbench.report.terminal import gate_verdicts as report

    path = file or run_directory.results_root() / trend.FILE
    if add:
        trend.append(path, trend.point(output.load(add)))
    points, skipped = trend.load(path)
    if skipped:
        print(f"{path}: {units.counted(skipped, 'line')} could not be read", file=sys.stderr)
    fingerprint = identity.fingerprint()[0]
    seen = {name: values for name, values in trend.series(points, fingerprint).items() if case in name}
    others = len({point.fingerprint for point in points} - {fingerprint})
    for line in report.level_changes(seen, json):
        print(line)
    if others:
        print(f"{others} other machines are in {path}; a trend is of one machine", file=sys.stderr)
