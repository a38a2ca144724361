"""`attnbench recommend`: which backend for which shape, and what one fixed choice would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recommend(
    run: Annotated[str, typer.Argument(help="A stored run, or `last`.", metavar="RUN")] = "last",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The dispatch table as JSON.", metavar="FILE")] = None,
    json_: Annotated[bool, typer.Option("--json", help="The dispatch table on stdout.")] = False,
) -> int:
    """The fastest backend of every shape of a run, as a dispatch table, and the regret of one choice for all.

    Measures nothing.
    """
    import msgspec

    from attnbench import api
    from attnbench.errors import Exit
    from attnbench.report import recommend as report
    from attnbench.studies.recommend import dispatch

    found = dispatch(api.load(run).rows())
    text = msgspec.json.format(msgspec.json.encode(found), indent=2)
    if out:
        out.write_bytes(text + b"\n")
    if json_:
        print(text.decode())
    else:
        for line in report.lines(found):
            print(line)
    return Exit.OK if found.choices else Exit.NOTHING_MEASURED
