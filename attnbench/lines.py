"""The lines of results.jsonl, read: a small file is held in memory, a large one is indexed and read when asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import msgspec

from attnbench.arm import Arm
from attnbench.case import Case
from attnbench.errors import AttnbenchError, StoreError
from attnbench.result import Result, Status

HELD_MOST = 64 * 2**20  # bytes of a file; a larger one is not held in memory

Key = tuple[str, str, int]  # case id, arm id, launch: of several lines with one key the last counts


def read(path: Path) -> tuple[Sequence[Result], int]:
    """The results of a file, and how many of its lines are none. A file that is not there has none."""
    by_key: dict[Any, Any] = {}
    skipped = start = 0
    try:
        large = path.stat().st_size > HELD_MOST
        with path.open("rb") as file:
            for line in file:
                if (result := _head(line) if large else decoded(line)) is None:
                    skipped += 1
                else:
                    key = result.case, result.arm.id, result.launch  # equal where `key` is, and sooner computed
                    by_key[key] = Mark(start, len(line), result) if large else result
                start += len(line)
    except FileNotFoundError:
        return [], 0  # killed between the manifest and the first line
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    held = list(by_key.values())
    return (Lines(path, held) if large else held), skipped


class Mark(NamedTuple):
    """Where a line lies, and its head: the result without what was measured."""

    start: int
    size: int
    head: Result


class Lines(Sequence[Result]):
    """The results of a large file: their heads are held, the rest is read when it is asked for."""

    def __init__(self, path: Path, marks: list[Mark], file: BinaryIO | None = None) -> None:
        self.path, self.marks, self._file = path, marks, file or path.open("rb")

    @property
    def heads(self) -> list[Result]:
        """The results in their order: case, arm, status, launch and the name of the reference arm."""
        return [mark.head for mark in self.marks]

    def __len__(self) -> int:
        return len(self.marks)

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice) -> Lines: ...
    def __getitem__(self, place: int | slice) -> Result | Lines:
        found = self.marks[place]
        return self.of(found) if isinstance(found, list) else self._read(found)

    def __iter__(self) -> Iterator[Result]:
        return map(self._read, self.marks)

    def of(self, marks: list[Mark]) -> Lines:
        """Some of them."""
        return Lines(self.path, marks, self._file)

    def _read(self, mark: Mark) -> Result:
        """One line; if it has the head of a result and nonsense in the rest, or the file has changed, an error."""
        try:
            result = decoded(os.pread(self._file.fileno(), mark.size, mark.start))
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error
        reason = f"byte {mark.start} of {self.path.name}: its line holds no result"
        return result or msgspec.structs.replace(mark.head, status=Status.ERROR, reason=reason)


def chosen(results: Sequence[Result], keep: Callable[[Result], bool]) -> Sequence[Result]:
    """The results that `keep` wants, by case, arm, launch and status."""
    if isinstance(results, Lines):
        return results.of([mark for mark in results.marks if keep(mark.head)])
    return list(filter(keep, results))


_RESULT = msgspec.json.Decoder(Result)


def decoded(line: bytes) -> Result | None:
    """The result on a line, or None for what is no result."""
    try:
        return _RESULT.decode(line)
    except (msgspec.MsgspecError, AttnbenchError, RecursionError):
        return None


class _Reference(msgspec.Struct, frozen=True, gc=False):
    reference: str | None = None


class _Head(msgspec.Struct, frozen=True, gc=False):
    """A line as far as its head goes: all of it is JSON, but no more is looked at, which is many times faster."""

    case: Case
    arm: Arm
    status: Status
    launch: int = 0
    facts: _Reference = _Reference()


_HEAD = msgspec.json.Decoder(_Head)


def _head(line: bytes) -> Result | None:
    try:
        head = _HEAD.decode(line)
    except (msgspec.MsgspecError, AttnbenchError, RecursionError):
        return None
    facts = {"reference": head.facts.reference} if head.facts.reference else {}
    return Result(case=head.case, arm=head.arm, status=head.status, launch=head.launch, facts=facts)
