"""`attnbench merge`: several runs as one."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two or more run directories, or their names.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the new run.", metavar="DIR")],
) -> int:
    """Merge shards, or runs of several machines, into one run.

    Duplicates are reported; the first wins, unless the budget skipped it. Shards of a replay give its answer.
    """
    from attnbench.cli import output
    from attnbench.errors import Exit, UsageError
    from attnbench.records import merge as merging
    from attnbench.studies import replayed_steps, traffic_answer

    if len(runs) < 2:
        raise UsageError(f"merge: {len(runs)} run given ({runs[0]}): at least two are needed")
    loaded = [output.load(name) for name in runs]
    paths = [run.path.resolve() for run in loaded]
    if twice := [name for place, name in enumerate(runs) if paths[place] in paths[:place]]:
        raise UsageError(f"merge: {twice[0]} is given twice: each run counts once")
    for conflict in merging.merge(loaded, out):
        print(f"conflict: {conflict}", file=sys.stderr)
    if answer := replayed_steps.merged(loaded):
        traffic_answer.write(answer, out)
    elif any((run.path / traffic_answer.FILE).exists() for run in loaded):
        print(
            f"note: {traffic_answer.FILE} is left out: not all are shards of one replay with the same options",
            file=sys.stderr,
        )
    print(out)
    return Exit.OK
