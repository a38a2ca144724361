"""`attnbench recommend`: the best backend by shape, and the cost of one fixed choice."""

from pathlib import Path
from typing import Annotated

import typer


def recommend(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.", metavar="RUN")] = "last",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the dispatch table as JSON to this file.", metavar="FILE")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the dispatch table as JSON.")] = False,
) -> int:
    """Choose the fastest backend for each shape of a stored run.

    Also prints how much slower one backend for all shapes would be.
    """
    import msgspec

    from attnbench.analysis.roofline import ceilings_by_device
    from attnbench.analysis.rows import rows_of
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.report.terminal import dispatch_table as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies.recommend import dispatch

    stored = output.load(run)
    ceilings = ceilings_by_device(stored.manifest)
    table = dispatch(rows_of(stored.results, ceilings=ceilings, arms=stored.manifest.arms), ceilings)
    text = msgspec.json.format(msgspec.json.encode(table), indent=2)
    if out:
        out.write_bytes(text + b"\n")
    for line in [text.decode()] if json else report.lines(table, terminal_width()):
        print(line)
    return Exit.OK if table.choices else Exit.NOTHING_MEASURED
