"""`attnbench explain`: why a backend can or cannot run a case, and which kernel it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request


@options.with_options(
    options.PROBLEM,
    options.BACKEND.but(
        help="Backends: names, auto, all, my_kernel.py:attend or package.module:attend; by default all, of which those "
        "that run by default are tried."
    ),
    options.DEVICE,
)
def explain(
    request: Request,
    case: Annotated[
        str,
        typer.Argument(
            help="Case of a stored run: its id, or a unique part of its label; without it, options give the case.",
            metavar="CASE",
        ),
    ] = "",
    run: Annotated[str, typer.Option(help="Run that contains CASE.", metavar="RUN")] = "last",
) -> None:
    """Explain why a backend refuses a case, and which kernel it runs.

    Without a length: seq 512, causal.
    """
    import msgspec

    from attnbench.studies.explain import of_request, of_stored

    lines = of_stored(case, run) if case else of_request(msgspec.structs.replace(request, budget="0"))
    for line in lines:
        print(line, flush=True)
