"""`attnbench baseline`: runs stored by name, for gates against a stored run."""

import sys
from typing import Annotated

import typer

app = typer.Typer(help="Store runs by name, one per machine.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Name of the baseline: main, v1.2 ...", metavar="NAME")]
FromRun = Annotated[str, typer.Argument(help="Run directory, its name, or `last`.", metavar="RUN")]
Force = Annotated[bool, typer.Option("--force", help="Store it although it is noisy, incomplete, or has few restarts.")]


@app.command()
def save(name: Name, run: FromRun = "last", force: Force = False) -> None:
    """Store a run; refused if it is noisy or incomplete, or if the name exists on this machine."""
    _save(name, run, replace=False, force=force)


@app.command()
def promote(name: Name, run: FromRun = "last", force: Force = False) -> None:
    """Store a run in place of the baseline of that name; its provenance names the replaced run."""
    _save(name, run, replace=True, force=force)


def _save(name: str, run: str, *, replace: bool, force: bool) -> None:
    from attnbench import api
    from attnbench.gate import baselines

    print(baselines.save(name, api.load(run), replace=replace, force=force))


@app.command("list")
def list_() -> None:
    """List name, machine, dates and commit, one baseline per line."""
    from attnbench.gate import baselines

    stored = list(baselines.every())
    for path, baseline in stored:
        commit = f" {baseline.commit[:12]}{' with changes' if baseline.dirty else ''}" if baseline.commit else ""
        dates = f"measured {baseline.measured_at}, saved {baseline.saved_at}"
        print(f"{baseline.name}  {baseline.fingerprint}  {dates}{commit}  {path}")
    if not stored:
        print(f"none in {baselines.root()}/: attnbench baseline save NAME", file=sys.stderr)


@app.command()
def show(name: Name) -> None:
    """Print the table of this machine's baseline."""
    from attnbench.cli import output
    from attnbench.gate import baselines
    from attnbench.machine import identity

    output.show(baselines.find(name, identity.fingerprint()[0]), "table")


@app.command()
def rm(name: Name) -> None:
    """Remove this machine's baseline of that name."""
    from attnbench.gate import baselines
    from attnbench.machine import identity

    print(f"removed {baselines.remove(name, identity.fingerprint()[0])}")
