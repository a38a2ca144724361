"""`attnbench baseline`: runs stored by name, for gates against a stored run."""

import sys
from typing import Annotated

import typer

from attnbench.cli.application import Application

app = Application("Store runs by name, as baselines of this machine.")

Name = Annotated[str, typer.Argument(help="Name of the baseline: main or v1.2.", metavar="NAME")]
FromRun = Annotated[str, typer.Argument(help="Run directory, its name, or `last`.", metavar="RUN")]
Force = Annotated[
    bool, typer.Option("--force", help="Store the run even if it is noisy, incomplete, or has few restarts.")
]


@app.add
def save(name: Name, run: FromRun = "last", force: Force = False) -> None:
    """Store a run as a new baseline.

    A noisy or incomplete run is refused, and so is a name that exists on this machine.
    """
    _save(name, run, replace=False, force=force)


@app.add
def promote(name: Name, run: FromRun = "last", force: Force = False) -> None:
    """Store a run in place of an existing baseline.

    The new baseline names the replaced run.
    """
    _save(name, run, replace=True, force=force)


def _save(name: str, run: str, *, replace: bool, force: bool) -> None:
    from attnbench.cli import output
    from attnbench.gate import baselines

    print(baselines.save(name, output.load(run), replace=replace, force=force))


def list_() -> None:
    """List the baselines: name, machine, dates, commit."""
    from attnbench.gate import baselines

    stored = list(baselines.every())
    for path, baseline in stored:
        commit = f" {baseline.commit[:12]}{' with changes' if baseline.dirty else ''}" if baseline.commit else ""
        dates = f"measured {baseline.measured_at}, saved {baseline.saved_at}"
        print(f"{baseline.name}  {baseline.fingerprint}  {dates}{commit}  {path}")
    if not stored:
        print(f"none in {baselines.root()}/: attnbench baseline save NAME", file=sys.stderr)


app.add(list_, "list")


@app.add
def show(name: Name) -> None:
    """Print the table of a baseline of this machine."""
    from attnbench.cli import output
    from attnbench.gate import baselines
    from attnbench.machine import identity

    output.show(baselines.find(name, identity.fingerprint()[0]), "table")


@app.add
def rm(name: Name) -> None:
    """Remove a baseline of this machine."""
    from attnbench.gate import baselines
    from attnbench.machine import identity

    print(f"removed {baselines.remove(name, identity.fingerprint()[0])}")
