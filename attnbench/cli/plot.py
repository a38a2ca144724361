"""`attnbench plot`: one custom chart in the style of the report."""

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options
from attnbench.cli.checks import names_in, one_of, some_of


def _size(text: str, flag: str) -> None:
    from attnbench.report.charts import sizes

    if text:
        sizes.parse(text, flag)


X = Annotated[
    str,
    options.option(
        "--x",
        help="Column of the x axis: seq, batch, heads, head_dim, flops and others; by default what varies most.",
        metavar="AXIS",
        check=one_of("column", names_in("api:PLOT_AXES")),
    ),
]
Y = Annotated[
    str,
    options.option(
        "--y",
        help="Metric of the y axis; see `attnbench list metrics`.",
        metavar="METRIC",
        check=one_of("metric", names_in("analysis.metrics:METRICS")),
    ),
]
Color = Annotated[
    str,
    options.option(
        help="Column that sets the colours: backend, device, dtype, mask or mode.",
        metavar="COLUMN",
        check=one_of("column", names_in("api:COLORS")),
    ),
]
Facet = Annotated[
    str,
    options.option(
        help="Columns with a panel per value; by default all that vary.",
        metavar="LIST",
        check=some_of("column", names_in("report.charts.panels:FACETS")),
    ),
]
Size = Annotated[
    str,
    options.option(
        "--size",
        help="Size on paper: column (85 mm wide), page (178 mm), or WxH in mm; text of 7.5 pt, no title.",
        metavar="SIZE",
        check=_size,
    ),
]


def plot(
    run: options.RunName = "last",
    x: X = "",
    y: Y = "time_s",
    color: Color = "backend",
    facet: Facet = "",
    size: Size = "",
    only: options.Only = None,
    skip: options.Skip = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .svg, .png or .pdf.", metavar="FILE")] = Path(
        "plot.svg"
    ),
) -> int:
    """Plot a metric of a run over an axis, in the report's style."""
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.suite import keeps
    from attnbench.units import words

    panels = words(facet, "--facet") if facet else None
    picture = output.load(run).plot(x, y, color, panels, keeps(only, skip), size)
    picture.save(out)
    print(out)
    if size:
        print(picture.caption)
    return Exit.OK
