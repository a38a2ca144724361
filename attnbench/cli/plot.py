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
            help="Column of the x axis: seq, batch, heads, kv_heads, head_dim, intensity, flops and others.",
            metavar="AXIS",
        ),
    ] = "seq",
    y: Annotated[
        str, typer.Option("--y", help="Metric of the y axis; see `attnbench list metrics`.", metavar="METRIC")
    ] = "time_s",
    color: Annotated[
        str, typer.Option(help="Column that sets the colours: backend, device, dtype, mask or mode.", metavar="COLUMN")
    ] = "backend",
    facet: Annotated[
        str, typer.Option(help="Columns with a panel per value; by default all that vary.", metavar="LIST")
    ] = "",
    only: options.Only = None,
    skip: options.Skip = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .svg, .png or .pdf.", metavar="FILE")] = Path(
        "plot.svg"
    ),
) -> int:
    """Plot a metric of a run over an axis, in the report's style."""
    from attnbench import api
    from attnbench.errors import Exit
    from attnbench.suite import keeps
    from attnbench.units import words

    panels = words(facet, "--facet") if facet else None
    api.load(run).plot(x, y, color, panels, keeps(only, skip)).save(out)
    print(out)
    return Exit.OK
