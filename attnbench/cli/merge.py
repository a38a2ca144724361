"""`attnbench merge`: several runs as one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run directories or names.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new run.")],
) -> int:
    """Write one run of shards, or of several machines; what two of them hold is told, and the first stays."""
    from attnbench import api, merging
    from attnbench.errors import Exit, UsageError

    if len(runs) < 2:
        raise UsageError(f"merge: {len(runs)} run given ({runs[0]}): at least two")
    loaded = [api.load(name) for name in runs]
    for conflict in merging.merge(loaded, out):
        print(f"conflict: {conflict}", file=sys.stderr)
    print(out)
    return Exit.OK
