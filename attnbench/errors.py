"""What a user can do wrong, and the exit codes of every command.

    AttnbenchError              one line, names the flag, file or key, the value, and what would do
    ├── UsageError              a wrong option, value or combination                     exit 2
    │   ├── RangeError          a list or range of numbers
    │   ├── ProblemError        an impossible problem: heads, lengths, mask, score
    │   ├── SuiteError          a suite or configuration file
    │   ├── UnknownNameError    a name that is not there, with the nearest one
    │   └── UnsupportedPlatformError
    ├── StoreError              a run directory that cannot be read or written           exit 2
    │   ├── LockedError         another process is writing to it
    │   └── SchemaError         written by a newer attnbench
    ├── NotComparableError      another machine, another procedure, no baseline          exit 4
    └── NothingMeasuredError    not one result is `ok`                                   exit 6

What a measured kernel does wrong is no exception but a `Status` (see `result.py`).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    REGRESSED = 1
    USAGE = 2
    INCONCLUSIVE = 3
    NOT_COMPARABLE = 4
    FAILED = 5
    NOTHING_MEASURED = 6
    INTERRUPTED = 130


class AttnbenchError(Exception):
    """A mistake of the user, or of the surroundings: told in one line, without a traceback."""

    exit: Exit = Exit.USAGE


class UsageError(AttnbenchError):
    """A wrong option, value or combination."""


class RangeError(UsageError):
    """A list or range of numbers that cannot be read."""


class ProblemError(UsageError):
    """An impossible attention problem."""


class SuiteError(UsageError):
    """A suite or configuration file that cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like this one, of two alike the one of like length; None if none is near."""

    def likeness(other: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, other, name).ratio(), -abs(len(other) - len(name))

    best = max(known, key=likeness, default="")
    return best if likeness(best)[0] >= 0.5 else None


class UnknownNameError(UsageError):
    """A name that is not there."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(map(str, known))
        near = nearest(name, self.known)
        hint = f"did you mean {str(near)!r}?" if near else f"there are {', '.join(self.known) or 'none'}"
        super().__init__(f"{where + ': ' if where else ''}no {kind} {name!r}; {hint}")


class UnsupportedPlatformError(UsageError):
    """An operating system on which attnbench cannot measure."""


def check_platform() -> None:
    """Refuse Windows before anything is imported that it lacks. Raises UnsupportedPlatformError."""
    if sys.platform.startswith("win"):
        raise UnsupportedPlatformError("Windows is not supported: use Linux, or Linux in WSL 2")


class StoreError(AttnbenchError):
    """A run directory that cannot be read or written."""


class LockedError(StoreError):
    """Another process is writing to this run directory."""


class SchemaError(StoreError):
    """A run written by a newer attnbench, or by one too old."""


class NotComparableError(AttnbenchError):
    """Two things that must not be compared, or a baseline that is not there."""

    exit = Exit.NOT_COMPARABLE


class NothingMeasuredError(AttnbenchError):
    """A run without a single `ok` result."""

    exit = Exit.NOTHING_MEASURED
