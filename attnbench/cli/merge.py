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

    Duplicates are reported; the first wins.
    """
    from attnbench.cli import output
    from attnbench.errors import Exit, UsageError
    from attnbench.records import merge as merging

    if len(runs) < 2:
        raise UsageError(f"merge: {len(runs)} run given ({runs[0]}): at least two are needed")
    loaded = [output.load(name) for name in runs]
    for conflict in merging.merge(loaded, out):
        print(f"conflict: {conflict}", file=sys.stderr)
    print(out)
    return Exit.OK
