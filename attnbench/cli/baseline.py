"""`attnbench baseline`: runs kept by name, for gates against a stored run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer(help="Keep runs by name, one for each machine.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Of the baseline: main, v1.2 ...", metavar="NAME")]
FromRun = Annotated[str, typer.Argument(help="Run directory, its name, or `last`.", metavar="RUN")]
Force = Annotated[bool, typer.Option("--force", help="Although it is noisy, incomplete, or has few launches.")]


@app.command()
def save(name: Name, run: FromRun = "last", force: Force = False) -> None:
    """Keep a run; refused for one that is noisy or incomplete, and where the name is taken on this machine."""
    _keep(name, run, replace=False, force=force)


@app.command()
def promote(name: Name, run: FromRun = "last", force: Force = False) -> None:
    """The same, in place of what was kept under the name; its provenance says of what."""
    _keep(name, run, replace=True, force=force)


def _keep(name: str, run: str, *, replace: bool, force: bool) -> None:
    from attnbench import api
    from attnbench.gate import baselines

    print(baselines.save(name, api.load(run), replace=replace, force=force))


@app.command("list")
def list_() -> None:
    """Name, machine, when and what, one a line."""
    from attnbench.gate import baselines

    found = list(baselines.every())
    for path, one in found:
        commit = f" {one.commit[:12]}{' with changes' if one.dirty else ''}" if one.commit else ""
        print(f"{one.name}  {one.fingerprint}  measured {one.measured_at}, saved {one.saved_at}{commit}  {path}")
    if not found:
        print(f"none in {baselines.root()}/: attnbench baseline save NAME", file=sys.stderr)


@app.command()
def show(name: Name) -> None:
    """The table of this machine's baseline."""
    from attnbench import host
    from attnbench.cli import output
    from attnbench.gate import baselines

    output.show(baselines.find(name, host.fingerprint()[0]), "table")


@app.command()
def rm(name: Name) -> None:
    """Forget this machine's baseline of that name."""
    from attnbench import host
    from attnbench.gate import baselines

    print(f"removed {baselines.remove(name, host.fingerprint()[0])}")
