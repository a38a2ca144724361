"""The runs that a command reads through their index."""

import contextlib
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from attnbench.cli.progress import steps
from attnbench.errors import StoreError, UnknownNameError, UsageError
from attnbench.records import run_directory
from attnbench.units import counted

if TYPE_CHECKING:
    from attnbench.analysis.indexed_runs import IndexedRuns


@contextlib.contextmanager
def indexed(names: Sequence[str], command: str) -> Iterator["IndexedRuns"]:
    """The runs that the names stand for, by default all stored ones, through their index; notes go to stderr."""
    from attnbench.analysis import indexed_runs

    root = run_directory.results_root()
    runs = run_directory.resolve_all(names, root) if names else run_directory.stored_in(root)
    if not runs:
        raise StoreError(f"no run in {root}/ yet: attnbench run creates one")
    with contextlib.ExitStack() as stack:
        with steps("reading runs") as begin:
            stored = stack.enter_context(indexed_runs.opened(runs, begin, command))
        for note in stored.notes:
            print(note, file=sys.stderr)
        yield stored


def note_others(count: int, where: str) -> None:
    """Say how many machines are left out."""
    verb = "is" if count == 1 else "are"
    print(f"{counted(count, 'other machine')} {verb} in {where}; --machine selects one", file=sys.stderr)


def machine(stored: "IndexedRuns", wanted: str) -> str:
    """The id of the machine whose results are read: the wanted one, this one, or the only one.

    Raises UsageError where there are several others.
    """
    from attnbench.machine import identity

    known = stored.machines()
    this = one_of(known, wanted)
    if not this and len(known) > 1:
        named = ", ".join(f"{machine} ({name})" for machine, name in known.items())
        raise UsageError(f"--machine is needed: the runs are of {len(known)} machines, none of them this one: {named}")
    if len(known) > 1:
        note_others(len(known) - 1, "these runs")
    return this or next(iter(known), identity.fingerprint()[0])


def one_of(known: Collection[str], wanted: str) -> str:
    """The machine with the wanted id or fingerprint, by default that of this machine; empty where it is not known.

    Raises UsageError for a wanted one that is not known, and for a fingerprint that several nodes have.
    """
    from attnbench.machine import identity

    text = wanted or identity.fingerprint()[0]
    nodes = [machine for machine in known if machine.partition("/")[0] == text]
    if text in known:
        return text
    if wanted and not nodes:
        raise UnknownNameError("machine", wanted, known, where="--machine")
    if len(nodes) > 1:
        raise UsageError(f"--machine is needed: {len(nodes)} nodes have fingerprint {text}: {', '.join(nodes)}")
    return next(iter(nodes), "")
