"""`attnbench plot`: one custom chart in the style of the report."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options
from attnbench.cli.checks import one_of, some_of


def _axes() -> Iterable[str]:
    from attnbench.api import PLOT_AXES

    return PLOT_AXES


def _metrics() -> Iterable[str]:
    from attnbench.analysis.metrics import METRICS

    return METRICS


def _colors() -> Iterable[str]:
    from attnbench.api import COLORS

    return COLORS


def _panels() -> Iterable[str]:
    from attnbench.report.charts.drawing import PANEL_COLUMNS

    return PANEL_COLUMNS


def plot(
    run: options.RunName = "last",
    x: Annotated[
        str,
        options.option(
            "--x",
            help="Column of the x axis: seq, batch, heads, kv_heads, head_dim, intensity, flops and others.",
            metavar="AXIS",
            check=one_of("column", _axes),
        ),
    ] = "seq",
    y: Annotated[
        str,
        options.option(
            "--y",
            help="Metric of the y axis; see `attnbench list metrics`.",
            metavar="METRIC",
            check=one_of("metric", _metrics),
        ),
    ] = "time_s",
    color: Annotated[
        str,
        options.option(
            help="Column that sets the colours: backend, device, dtype, mask or mode.",
            metavar="COLUMN",
            check=one_of("column", _colors),
        ),
    ] = "backend",
    facet: Annotated[
        str,
        options.option(
            help="Columns with a panel per value; by default all that vary.",
            metavar="LIST",
            check=some_of("column", _panels),
        ),
    ] = "",
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
    output.load(run).plot(x, y, color, panels, keeps(only, skip)).save(out)
    print(out)
    return Exit.OK
