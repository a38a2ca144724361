"""`attnbench viz`: what a mask looks like, in the terminal or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def viz(
    mask: Annotated[str, typer.Argument(help="As in `attnbench list masks`: causal+window:512.", metavar="MASK")],
    seq: Annotated[str, typer.Option("--seq", help="Tokens.", metavar="N")] = "1k",
    seq_q: Annotated[str, typer.Option("--seq-q", help="Queries, if not as many.", metavar="N")] = "",
    seq_kv: Annotated[str, typer.Option("--seq-kv", help="Keys, if not as many.", metavar="N")] = "",
    batch: Annotated[int, typer.Option(help="Sequences: padding differs among them.", metavar="N")] = 1,
    block: Annotated[int, typer.Option(help="Tokens of the blocks that are counted.", metavar="N")] = 128,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="mask.svg, mask.png or mask.pdf.", metavar="FILE")
    ] = None,
) -> None:
    """Draw a mask, and say how many pairs it shows and how many blocks it leaves empty; no torch, nothing measured."""
    from attnbench.attention import masks
    from attnbench.attention.terms import Grid
    from attnbench.errors import UsageError
    from attnbench.ranges import integer
    from attnbench.report import heat, plots
    from attnbench.report.plots import Picture

    tokens = integer(seq, "--seq")
    grid = Grid(
        batch, integer(seq_q, "--seq-q") if seq_q else tokens, integer(seq_kv, "--seq-kv") if seq_kv else tokens
    )
    for flag, value in (("--seq", min(grid.seq_q, grid.seq_kv)), ("--batch", batch), ("--block", block)):
        if value < 1:
            raise UsageError(f"{flag} {value}: at least 1")
    chosen = masks.parse(mask)
    chosen.check(grid)
    if out is None:
        for line in heat.text(chosen, grid, block):
            print(line)
        return
    if not plots.available():
        raise UsageError(plots.MISSING)
    Picture(heat.chart(chosen, grid, block)).save(out)
    print(out)
