"""`attnbench history`: the trend of a project and its change points."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options


def history(
    file: Annotated[
        Path | None, typer.Argument(help="File of the history; results/history.jsonl by default.", metavar="[FILE]")
    ] = None,
    add: Annotated[
        str, typer.Option("--add", help="First append this run, or the head of this gate.", metavar="RUN")
    ] = "",
    case: Annotated[str, typer.Option("--case", help="Only cases whose label contains this.", metavar="TEXT")] = "",
    json_: options.Json = False,
) -> None:
    """Print one line per case: first and last time, then each change of level with its commit; this machine only."""
    from attnbench import api
    from attnbench.gate import history as trend
    from attnbench.machine import identity
    from attnbench.records import run_directory
    from attnbench.report.terminal import gate_verdicts as report

    path = file or run_directory.results_root() / trend.FILE
    if add:
        trend.append(path, trend.point(api.load(add)))
    points, skipped = trend.load(path)
    if skipped:
        print(f"{path}: {skipped} lines could not be read", file=sys.stderr)
    fingerprint = identity.fingerprint()[0]
    seen = {name: values for name, values in trend.series(points, fingerprint).items() if case in name}
    others = len({point.fingerprint for point in points} - {fingerprint})
    for line in report.level_changes(seen, json_):
        print(line)
    if others:
        print(f"{others} other machines are in {path}; a trend is of one machine", file=sys.stderr)
