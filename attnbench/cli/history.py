"""`attnbench history`: the trend of a project, and where it changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def history(
    file: Annotated[Path | None, typer.Argument(help="results/history.jsonl by default.", metavar="[FILE]")] = None,
    add: Annotated[
        str, typer.Option("--add", help="Append this run, or the head of this gate, first.", metavar="RUN")
    ] = "",
    case: Annotated[str, typer.Option("--case", help="Only cases whose label holds this.", metavar="TEXT")] = "",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """One line a case: first and last time, then every change of level with its commit; of this machine alone."""
    from attnbench import api, host, store
    from attnbench.gate import history as trend
    from attnbench.report import history as report

    path = file or store.results_root() / trend.FILE
    if add:
        trend.append(path, trend.point(api.load(add)))
    points, skipped = trend.load(path)
    if skipped:
        print(f"{path}: {skipped} lines could not be read", file=sys.stderr)
    fingerprint = host.fingerprint()[0]
    seen = {name: values for name, values in trend.series(points, fingerprint).items() if case in name}
    others = len({point.fingerprint for point in points} - {fingerprint})
    for line in report.text(seen, json_):
        print(line)
    if others:
        print(f"{others} other machines are in {path}: a trend is of one machine", file=sys.stderr)
