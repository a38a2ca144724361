"""`attnbench plot`: one chart of one's own, by the rules of the report's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AXES = ("seq", "seq_q", "seq_kv", "batch", "heads", "kv_heads", "head_dim", "head_dim_v", "intensity", "flops", "bytes")
COLORS = ("backend", "device", "dtype", "mask", "mode")


def plot(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.")] = "last",
    x: Annotated[str, typer.Option("--x", help=f"One of {', '.join(AXES)}.", metavar="AXIS")] = "seq",
    y: Annotated[str, typer.Option("--y", help="Any of `attnbench list metrics`.", metavar="METRIC")] = "time_s",
    color: Annotated[str, typer.Option(help=f"One of {', '.join(COLORS)}.", metavar="COLUMN")] = "backend",
    facet: Annotated[str, typer.Option(help="Comma list of columns; by default all that varies.", metavar="LIST")] = "",
    only: Annotated[list[str] | None, typer.Option(help="Keep these: seq=..4k.", metavar="KEY=VALUES")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Drop these: backend=flex.", metavar="KEY=VALUES")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="plot.svg, plot.png or plot.pdf.")] = Path("plot.svg"),
) -> int:
    """Draw any metric of a run over any axis: intervals, refusals and looks as in the report."""
    from attnbench import __version__, api, frame, lines
    from attnbench.errors import Exit, StoreError, UnknownNameError, UsageError
    from attnbench.metrics import METRICS
    from attnbench.ranges import words
    from attnbench.report import charts, drawing, plots
    from attnbench.suite import keeps

    for value, known, flag in ((x, AXES, "--x"), (y, METRICS, "--y"), (color, COLORS, "--color")):
        if value not in known:
            raise UnknownNameError("column", value, known, where=flag)
    panels = words(facet, "--facet") if facet else None
    for name in panels or ():
        if name not in drawing.PANEL:
            raise UnknownNameError("column", name, drawing.PANEL, where="--facet")
    format_ = out.suffix.removeprefix(".")
    if format_ not in plots.FORMATS:
        raise UsageError(f"--out {out}: ends with none of .{', .'.join(plots.FORMATS)}")
    if not plots.available():
        raise UsageError(plots.MISSING)
    stored = api.load(run)
    rows = frame.rows(lines.chosen(stored.results, keeps(only, skip)), roofs=frame.roofs_of(stored.manifest))
    column = {"seq": "seq_q"}.get(x, x)
    by = {"backend": "arm_name"}.get(color, color)
    chart = charts.custom(rows, column, y, by, panels, drawing.caption_of(rows, __version__))
    if chart is None:
        raise UsageError(f"--y {y}: nothing of it was measured in {stored.path.name}")
    try:
        out.write_bytes(plots.render(chart, format_))
    except OSError as error:
        raise StoreError(f"cannot write to {out}: {error.strerror}") from error
    print(out)
    return Exit.OK
