"""Reading results.jsonl: a small file is loaded into memory, a large one is indexed and read line by line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple, overload

import msgspec

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import AttnbenchError, StoreError
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Result, Sample, Status

MAX_IN_MEMORY = 64 * 2**20  # bytes of a file; a larger one is indexed


def read(path: Path) -> tuple[Sequence[Result], int]:
    """Read the results of a file, and count the lines that hold none. A missing file has no results."""
    results, _, skipped = read_with_marks(path)
    return results, skipped


def read_with_marks(path: Path) -> tuple[Sequence[Result], list[Mark], int]:
    """As `read`, with the mark of each result."""
    marks_by_key: dict[tuple[Case, str, int], Mark] = {}
    skipped = start = 0
    try:
        large = path.stat().st_size > MAX_IN_MEMORY
        with path.open("rb") as file:
            for line in file:
                if (result := _head(line) if large else decoded(line)) is None:
                    skipped += 1
                else:
                    # Equal where `Result.key` is equal, without the hash of each case id.
                    marks_by_key[result.case, result.arm.id, result.restart] = Mark(start, len(line), result)
                start += len(line)
    except FileNotFoundError:
        return [], [], 0  # the process was killed between the manifest and the first line
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    marks = list(marks_by_key.values())
    return Lines(path, marks, path.open("rb")) if large else [mark.head for mark in marks], marks, skipped


def read_lines(path: Path, places: Iterable[tuple[int, int]], in_memory: bool) -> Sequence[Result]:
    """The results on the lines at these places: first byte and size. A line that holds none is left out."""
    decode = decoded if in_memory else _head
    try:
        with path.open("rb") as file:
            lines = [(start, size, decode(os.pread(file.fileno(), size, start))) for start, size in places]
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    marks = [Mark(start, size, head) for start, size, head in lines if head]
    return [mark.head for mark in marks] if in_memory else Lines(path, marks)


class Mark(NamedTuple):
    """Position and head of a line: the result without what was measured."""

    start: int
    size: int
    head: Result


class Lines(Sequence[Result]):
    """The results of a large file: their heads are in memory, each result is read on access.

    `file`: the file, kept open; by default it is opened for each result, as many files cannot be open at once.
    `plain`: leave out the tags and facts of the timed blocks, which take most of the time to read.
    """

    def __init__(self, path: Path, marks: list[Mark], file: BinaryIO | None = None, plain: bool = False) -> None:
        self.path, self.marks, self._file, self._plain = path, marks, file, plain

    @property
    def heads(self) -> list[Result]:
        """The results in their order: case, arm, status, restart and the name of the reference arm."""
        return [mark.head for mark in self.marks]

    def __len__(self) -> int:
        return len(self.marks)

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice) -> Lines: ...
    def __getitem__(self, place: int | slice) -> Result | Lines:
        marks = self.marks[place]
        return self.of(marks) if isinstance(marks, list) else self._read(marks)

    def __iter__(self) -> Iterator[Result]:
        return map(self._read, self.marks)

    def of(self, marks: list[Mark]) -> Lines:
        return Lines(self.path, marks, self._file, self._plain)

    def plain(self) -> Lines:
        """The same results without tags and facts of blocks."""
        return Lines(self.path, self.marks, self._file, plain=True)

    def _read(self, mark: Mark) -> Result:
        """Read one line. If it holds no result after all, or the file has changed, a Result with status `error`."""
        try:
            with contextlib.nullcontext(self._file) if self._file else self.path.open("rb") as file:
                line = os.pread(file.fileno(), mark.size, mark.start)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            measured = msgspec.structs.asdict(_DECODERS[self._plain].decode(line))
        except (msgspec.MsgspecError, RecursionError):
            reason = f"byte {mark.start} of {self.path.name}: its line holds no result"
            return msgspec.structs.replace(mark.head, status=Status.ERROR, reason=reason)
        return _with_cause(Result(**measured | {"case": mark.head.case, "arm": mark.head.arm}))


def chosen(results: Sequence[Result], keep: Callable[[Result], bool]) -> Sequence[Result]:
    """The results for which `keep` is true. It sees case, arm, restart and status."""
    if isinstance(results, Lines):
        return results.of([mark for mark in results.marks if keep(mark.head)])
    return list(filter(keep, results))


# Version 0.1.0 stored no cause: it is derived from how its reasons begin.
_CAUSES_BY_REASON = {
    "budget": Cause.BUDGET,
    "a case no larger": Cause.NO_LARGER,
    "needs ": Cause.MEMORY,
    "no reference to verify against": Cause.NO_REFERENCE,
}


def decoded(line: bytes) -> Result | None:
    """The result on a line; None if it holds none."""
    try:
        fields = msgspec.structs.asdict(_WHOLE.decode(line))
        return _with_cause(Result(**fields | {"case": _case(fields["case"])}))
    except (msgspec.MsgspecError, AttnbenchError, RecursionError):
        return None


def _with_cause(result: Result) -> Result:
    if result.status is Status.SKIPPED and result.cause is None:
        cause = next((cause for begin, cause in _CAUSES_BY_REASON.items() if result.reason.startswith(begin)), None)
        return msgspec.structs.replace(result, cause=cause)
    return result


class _Reference(msgspec.Struct, frozen=True, gc=False):
    reference: str | None = None


class _HeadCase(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A case whose problem is decoded apart: the arms of one problem share it."""

    problem: msgspec.Raw
    backend: str
    mode: Mode = Mode.FWD


class _Head(msgspec.Struct, frozen=True, gc=False):
    """The fields of a line that are decoded at first, which is many times faster than the whole line."""

    case: _HeadCase
    arm: Arm
    status: Status
    restart: int = msgspec.field(default=0, name="launch")
    facts: _Reference = _Reference()


_HEAD = msgspec.json.Decoder(_Head)
_PROBLEM = msgspec.json.Decoder(Problem)
_problem = lru_cache(maxsize=100_000)(_PROBLEM.decode)  # the second run of a comparison has the problems of the first


def _case(head: _HeadCase) -> Case:
    return Case(problem=_problem(bytes(head.problem)), backend=head.backend, mode=head.mode)


_WHOLE = msgspec.json.Decoder(
    msgspec.defstruct("_Whole", [("case", _HeadCase)], bases=(Result,), frozen=True, kw_only=True)
)


class _PlainBlock(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A TimedBlock without its tags and facts."""

    round: int
    position: int
    readings: int
    calls: int = 1
    tags: ClassVar[tuple[str, ...]] = ()
    facts: ClassVar[dict[str, float]] = {}


class _PlainSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A Sample of plain blocks."""

    unit: str
    values: tuple[float | None, ...]
    blocks: tuple[_PlainBlock, ...] = ()
    not_finite: int = 0


# Of a line whose head is known: a case is slow to decode.
_KNOWN = [("case", msgspec.Raw), ("arm", msgspec.Raw)]
_SAMPLES = {False: dict[str, Sample], True: dict[str, _PlainSample]}
_DECODERS = {
    plain: msgspec.json.Decoder(
        msgspec.defstruct("_Measured", [*_KNOWN, ("samples", samples, {})], bases=(Result,), frozen=True, kw_only=True)
    )
    for plain, samples in _SAMPLES.items()
}


def _head(line: bytes) -> Result | None:
    try:
        head = _HEAD.decode(line)
        case = _case(head.case)
    except (msgspec.MsgspecError, AttnbenchError, RecursionError):
        return None
    facts = {"reference": head.facts.reference} if head.facts.reference else {}
    return Result(case=case, arm=head.arm, status=head.status, restart=head.restart, facts=facts)
