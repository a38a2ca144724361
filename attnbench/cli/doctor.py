"""`attnbench doctor`: the machine, its noise, installed and missing backends; short enough to paste."""

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the noise check.")] = False,
) -> None:
    """Show the machine, its noise, and missing packages."""
    from attnbench.studies.doctor import examine, text

    report = examine(noise=not quick)
    if json:
        import msgspec

        print(msgspec.json.encode(report).decode())
        return
    for line in text(report):
        print(line)
