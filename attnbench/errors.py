"""User-facing exceptions and exit codes.

    AttnbenchError              one line that names the flag, file or key, its value, and what to use instead
    ├── UsageError              a wrong option, value or combination                     exit 2
    │   ├── RangeError          a list or range of numbers
    │   ├── ProblemError        an impossible problem: heads, lengths, mask, score
    │   ├── SuiteError          a suite or configuration file
    │   ├── UnknownNameError    an unknown name, with the nearest known one
    │   └── UnsupportedPlatformError
    ├── StoreError              a run directory that cannot be read or written           exit 2
    │   ├── LockedError         another process is writing to it
    │   └── SchemaError         written by a newer attnbench
    └── NotComparableError      another machine, another procedure, no baseline          exit 4

A failure of a measured kernel is not an exception but a `Status` (see `records/result.py`).
"""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes, the same for every command. `docs/ci.md` says which applies when output cannot be written."""

    OK = 0
    REGRESSED = 1
    USAGE = 2
    INCONCLUSIVE = 3
    NOT_COMPARABLE = 4
    FAILED = 5
    NOTHING_MEASURED = 6
    HUNG_UP = 129  # 128 + SIGHUP
    INTERRUPTED = 130  # 128 + SIGINT
    TERMINATED = 143  # 128 + SIGTERM


class AttnbenchError(Exception):
    """Base class: an error of the user or the environment, printed in one line without a traceback."""

    exit: Exit = Exit.USAGE


class UsageError(AttnbenchError):
    """A wrong option, value or combination."""


class RangeError(UsageError):
    """A list or range of numbers that cannot be parsed."""


class ProblemError(UsageError):
    """An impossible attention problem."""


class SuiteError(UsageError):
    """A suite or configuration file that cannot be used."""


MIN_SIMILARITY = 0.6  # of names by difflib; less similar ones are no typing errors


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, on a tie the one of most similar length; None if none is similar."""

    def similarity(other: str) -> tuple[float, int]:
        return difflib.SequenceMatcher(None, other, name).ratio(), -abs(len(other) - len(name))

    best = max(known, key=similarity, default="")
    return best if similarity(best)[0] >= MIN_SIMILARITY else None


class UnknownNameError(UsageError):
    """An unknown name; the message gives the nearest known one, or all."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(dict.fromkeys(map(str, known)))
        near = nearest(name, self.known)
        hint = f"did you mean {str(near)!r}?" if near else f"there are {', '.join(self.known) or 'none'}"
        super().__init__(f"{where + ': ' if where else ''}no {kind} {name!r}; {hint}")


class UnsupportedPlatformError(UsageError):
    """An operating system on which attnbench cannot measure."""


def check_platform() -> None:
    """Raise UnsupportedPlatformError on Windows, before importing modules that it lacks."""
    if sys.platform.startswith("win"):
        raise UnsupportedPlatformError("Windows is not supported: use Linux, or Linux in WSL 2")


class StoreError(AttnbenchError):
    """A run directory that cannot be read or written."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error


class LockedError(StoreError):
    """Another process is writing to this run directory."""


class SchemaError(StoreError):
    """A run written by a newer attnbench, or by one too old."""


class NotComparableError(AttnbenchError):
    """Two runs that must not be compared, or a missing baseline."""

    exit = Exit.NOT_COMPARABLE
