"""`attnbench plot`: one chart of one's own, by the rules of the report's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.")] = "last",
    x: Annotated[
        str, typer.Option("--x", help="seq, batch, heads, kv_heads, head_dim, intensity, flops ...", metavar="AXIS")
    ] = "seq",
    y: Annotated[str, typer.Option("--y", help="Any of `attnbench list metrics`.", metavar="METRIC")] = "time_s",
    color: Annotated[str, typer.Option(help="backend, device, dtype, mask or mode.", metavar="COLUMN")] = "backend",
    facet: Annotated[str, typer.Option(help="Comma list of columns; by default all that varies.", metavar="LIST")] = "",
    only: Annotated[list[str] | None, typer.Option(help="Keep these: seq=..4k.", metavar="KEY=VALUES")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Drop these: backend=flex.", metavar="KEY=VALUES")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="plot.svg, plot.png or plot.pdf.")] = Path("plot.svg"),
) -> int:
    """Draw any metric of a run over any axis: intervals, refusals and looks as in the report."""
    from attnbench import api
    from attnbench.errors import Exit
    from attnbench.ranges import words
    from attnbench.suite import keeps

    panels = words(facet, "--facet") if facet else None
    api.load(run).plot(x, y, color, panels, keeps(only, skip)).save(out)
    print(out)
    return Exit.OK
