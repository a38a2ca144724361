"""`attnbench doctor`: the machine, how noisy it is, what is installed and what is missing; fit to paste."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Without the noise check.")] = False,
) -> None:
    """Print the machine card, a noise check, and every backend with the command that brings what is missing."""
    from attnbench import checkup

    report = checkup.examine(noise=not quick)
    if json_:
        import msgspec

        print(msgspec.json.encode(report).decode())
        return
    for line in checkup.text(report):
        print(line)
