"""`attnbench recommend`: the best backend by shape, and the cost of one fixed choice."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import checks, options


def _engines() -> Iterable[str]:
    from attnbench.studies.engine_advice import ENGINES

    return ENGINES


Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write the dispatch table as JSON to this file.", metavar="FILE")
]
Expires = Annotated[
    str,
    options.option(
        "--expires",
        help="Age of the measurements at which `attnbench.dispatch` warns.",
        metavar="TIME",
        check=checks.duration,
    ),
]
Engine = Annotated[
    str | None,
    options.option(
        "--to",
        help="Print what selects the best backend in vllm, sglang or transformers, and why.",
        metavar="ENGINE",
        names=_engines,
        check=checks.one_of("engine", _engines),
    ),
]


def recommend(
    run: Annotated[str, typer.Argument(help="Run directory, its name, or `last`.", metavar="RUN")] = "last",
    out: Out = None,
    expires: Expires = "90d",
    to: Engine = None,
    json: Annotated[bool, typer.Option("--json", help="Print the table, or with --to the setting, as JSON.")] = False,
) -> int:
    """Choose the fastest backend for each shape of a stored run.

    Also prints how much slower one backend for all shapes would be.
    """
    import msgspec

    from attnbench import units
    from attnbench.analysis.roofline import ceilings_by_device
    from attnbench.analysis.rows import rows_of
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.report.terminal import dispatch_table as report
    from attnbench.report.terminal.text_layout import terminal_width
    from attnbench.studies import dispatch_table, engine_advice
    from attnbench.studies.recommend import dispatch

    valid_s = units.parse_seconds(expires, "--expires")
    stored = output.load(run)
    ceilings = ceilings_by_device(stored.manifest)
    rows = rows_of(stored.results, ceilings=ceilings, arms=stored.manifest.arms)
    table = dispatch(rows, ceilings, dispatch_table.origin(stored.manifest, valid_s))
    text = msgspec.json.format(msgspec.json.encode(table), indent=2)
    if out:
        out.write_bytes(text + b"\n")
    if to:
        advice = engine_advice.advise(table, to)
        output.lines(msgspec.to_builtins(advice), report.advice_lines(advice, terminal_width()), json)
    else:
        for line in [text.decode()] if json else report.lines(table, terminal_width()):
            print(line)
    return Exit.OK if table.choices else Exit.NOTHING_MEASURED
