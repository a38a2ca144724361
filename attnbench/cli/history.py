"""`attnbench history`: the trend of a project and its change points."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.gate.history import HistoryPoint


def history(
    file: Annotated[
        Path | None,
        typer.Argument(help="History file, or a folder of runs; results/history.jsonl by default.", metavar="FILE"),
    ] = None,
    add: Annotated[
        str, typer.Option("--add", help="Append this run, or the head of this gate, before printing.", metavar="RUN")
    ] = "",
    case: Annotated[
        str, typer.Option("--case", help="Show only cases whose label contains this text.", metavar="TEXT")
    ] = "",
    machine: options.Machine = "",
    json: options.Json = False,
) -> None:
    """Show how times changed from commit to commit.

    Prints one line per case of a machine: its first and last time, then each change of level with its commit. Cases
    that were measured once are counted, and shown with --case.
    """
    from attnbench.cli import output
    from attnbench.errors import UsageError
    from attnbench.gate import history as trend
    from attnbench.records import run_directory
    from attnbench.report.terminal import history as report

    path = file or run_directory.results_root() / trend.FILE
    if add and path.is_dir():
        raise UsageError(f"--add appends to a history file, and {path} is a folder of runs: leave out --add")
    if add:
        output.append_run(path, output.load(add))
    points, chosen = _of_folder(path, machine, case) if path.is_dir() else _of_file(path, machine)
    seen = {name: values for name, values in trend.series(points, chosen).items() if case in name}
    if case and not seen:
        raise UsageError(f"--case: no case contains {case!r}")
    for line in report.lines(seen, json, single=bool(case)):
        print(line)


def _of_file(path: Path, machine: str) -> "tuple[list[HistoryPoint], str]":
    """The points of a history file, and the machine whose trend is shown."""
    from attnbench import units
    from attnbench.cli import stored_runs
    from attnbench.gate import history as trend

    points, skipped = trend.load(path)
    if skipped:
        print(f"{path}: {units.counted(skipped, 'line')} could not be read", file=sys.stderr)
    if not points:
        print(f"{path} is empty: {trend.adding(path)} adds a run", file=sys.stderr)
    known = {point.machine_id: None for point in points}
    chosen = stored_runs.one_of(known, machine)
    if others := len(known.keys() - {chosen}):
        stored_runs.note_others(others, str(path))
    return points, chosen


def _of_folder(path: Path, machine: str, case: str) -> "tuple[list[HistoryPoint], str]":
    from attnbench.cli import stored_runs
    from attnbench.gate import history as trend

    with stored_runs.indexed([str(path)], "a history of a folder of runs") as stored:
        chosen = stored_runs.machine(stored, machine)
        return trend.points_of(stored, chosen, case), chosen
