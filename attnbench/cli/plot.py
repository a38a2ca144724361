"""`attnbench plot`: one custom chart in the style of the report."""

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options


def plot(
    run: options.RunName = "last",
    x: Annotated[
        str,
        typer.Option(
            "--x",
            help="Column of the x axis: seq, batch, heads, kv_heads, head_dim, intensity, flops ...",
            metavar="AXIS",
        ),
    ] = "seq",
    y: Annotated[
        str, typer.Option("--y", help="Metric of the y axis; see `attnbench list metrics`.", metavar="METRIC")
    ] = "time_s",
    color: Annotated[
        str, typer.Option(help="Column of the colours: backend, device, dtype, mask or mode.", metavar="COLUMN")
    ] = "backend",
    facet: Annotated[str, typer.Option(help="Columns of the panels; by default all that vary.", metavar="LIST")] = "",
    only: options.Only = None,
    skip: options.Skip = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: plot.svg, plot.png or plot.pdf.")] = Path(
        "plot.svg"
    ),
) -> int:
    """Plot any metric of a run over any axis, with intervals, refusals and styles as in the report."""
    from attnbench import api
    from attnbench.errors import Exit
    from attnbench.suite import keeps
    from attnbench.units import words

    panels = words(facet, "--facet") if facet else None
    api.load(run).plot(x, y, color, panels, keeps(only, skip)).save(out)
    print(out)
    return Exit.OK
