"""Run directories: a manifest, `run.json`, and append-only `results.jsonl`, one Result a line.

The version of the format is read before anything is decoded. Lines are synced before the next group is measured; what a
kill tears off is the last line at most, and it is measured again. docs/formats.md has every key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from attnbench.arm import Arm
from attnbench.errors import AttnbenchError, LockedError, NotComparableError, SchemaError, StoreError
from attnbench.result import Environment, Procedure, Record, Result, Status

VERSION = 1
MANIFEST, RESULTS, LOCK = "run.json", "results.jsonl", ".lock"
BUDGET = "budget"  # how the reason of a case begins that the budget cut: a resume measures it

Key = tuple[str, str, int]


class Manifest(Record, frozen=True, kw_only=True):
    """What `run.json` holds: everything about a run but its results."""

    schema_version: int  # never left out: it is read before the rest
    attnbench: str
    created_at: str  # UTC, ISO 8601
    suite: str
    command: str = ""  # as typed, paths relative
    request: dict[str, Any] = {}  # what was asked for; a resume asks for it again
    procedures: dict[str, Procedure] = {}  # by kind of device
    arms: tuple[Arm, ...] = ()
    environments: dict[str, Environment] = {}  # by arm id
    machine: dict[str, Any] = {}
    fingerprint: str = ""  # of the stable facts of the machine
    commit: dict[str, Any] | None = None  # of the working directory
    planned: int = 0  # cases, refusals and impossible cells too
    impossible: tuple[tuple[str, str], ...] = ()  # cells that are no problem, and why
    tags: dict[str, str] = {}


class Run(msgspec.Struct, kw_only=True):
    """A stored run, read."""

    path: Path
    manifest: Manifest
    results: list[Result]
    skipped_lines: int = 0  # lines that are no result: torn, or not ours


# -- reading -----------------------------------------------------------------------------------------------------------


def read(directory: Path) -> Run:
    """The run in a directory. Lines that cannot be read are counted, never fatal."""
    manifest = read_manifest(directory)
    results, skipped = _read_results(directory / RESULTS)
    return Run(path=directory, manifest=manifest, results=results, skipped_lines=skipped)


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone. Raises SchemaError for a newer format, StoreError for none."""
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{directory} is no run directory: {error.strerror}: {MANIFEST}") from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version > VERSION:
            raise SchemaError(
                f"{path}: format {version}, written by a newer attnbench; this one reads up to {VERSION}: upgrade it"
            )
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int


def _read_results(path: Path) -> tuple[list[Result], int]:
    decoder = msgspec.json.Decoder(Result)
    by_key: dict[Key, Result] = {}
    skipped = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            try:
                result = decoder.decode(line)
            except (msgspec.MsgspecError, AttnbenchError):
                skipped += 1
                continue
            by_key[result.key] = result
    return list(by_key.values()), skipped


def done_keys(run: Run, retry_failed: bool) -> frozenset[Key]:
    """What a resume leaves alone: all but what the budget cut and, with `retry_failed`, what failed."""
    again = {Status.OOM} if retry_failed else set()
    return frozenset(
        result.key
        for result in run.results
        if not (result.status is Status.SKIPPED and result.reason.startswith(BUDGET))
        and not (retry_failed and (result.status.failed or result.status in again))
    )


# -- places ------------------------------------------------------------------------------------------------------------


def results_root() -> Path:
    """Where runs lie: ATTNBENCH_RESULTS, or ./results."""
    return Path(os.environ.get("ATTNBENCH_RESULTS") or "results")


def new_directory(root: Path, suite: str, device: str, now: datetime) -> Path:
    """A name that sorts by time: `20261121T001500Z-quick-cpu`; a second run of the same second gets a suffix."""
    words = f"{suite}-{device}".replace(":", "-").replace("=", "").replace("/", "_")
    stem = f"{now:%Y%m%dT%H%M%SZ}-{words}"
    path, count = root / stem, 1
    while path.exists():
        count += 1
        path = root / f"{stem}.{count}"
    return path


def resolve(text: str, root: Path) -> Path:
    """A run directory from `last`, a name under the root, or a path."""
    runs = sorted(path.parent for path in root.glob(f"*/{MANIFEST}")) if root.is_dir() else []
    if text == "last":
        if not runs:
            raise StoreError(f"no run in {root}/ yet: attnbench run makes one")
        return runs[-1]
    for path in (Path(text), root / text):
        if (path / MANIFEST).is_file():
            return path
    there = ", ".join(path.name for path in runs[-3:]) or "none"
    raise StoreError(f"no run {text!r}: neither a run directory nor a name in {root}/ (newest there: {there})")


# -- writing -----------------------------------------------------------------------------------------------------------


class RunWriter:
    """The one writer of a run directory: opens or creates it, under a lock that ends with the process."""

    def __init__(self, directory: Path, manifest: Manifest, force: bool = False) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(directory)
        except OSError as error:
            raise StoreError(f"cannot write to {directory}: {error.strerror}") from error
        try:
            self._begin(manifest, force)
        except BaseException:
            self._lock.close()
            raise

    def _begin(self, manifest: Manifest, force: bool) -> None:
        path = self.directory
        if (path / MANIFEST).exists():
            before = read_manifest(path)
            _comparable(before, manifest, path, force)
            manifest = msgspec.structs.replace(
                manifest,
                created_at=before.created_at,
                environments=before.environments,
                tags=before.tags | manifest.tags,
            )
        elif any(item.name != LOCK for item in path.iterdir()):
            raise StoreError(f"{path} is not empty and no run directory: give another --out")
        self.manifest = manifest
        self._write_manifest()
        try:
            self._file: IO[bytes] = (path / RESULTS).open("ab")
            _cut_torn_line(path / RESULTS)
        except OSError as error:
            raise StoreError(f"cannot write to {path / RESULTS}: {error.strerror}") from error

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.close()

    @property
    def run(self) -> Run:
        """What is stored so far."""
        return read(self.directory)

    def append(self, results: Sequence[Result]) -> None:
        """Add whole lines and sync them. On a full disk the file is cut back to its last whole line."""
        if not results:
            return
        encoder = msgspec.json.Encoder()
        data = b"".join(encoder.encode(result) + b"\n" for result in results)
        size = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            # What Python still holds back would be tried again when the file is closed.
            self._file = (self.directory / RESULTS).open("ab")
            where = f"cannot write to {self.directory / RESULTS}"
            raise StoreError(f"{where}: {error.strerror}; all earlier results are kept") from error

    def update(self, **fields: Any) -> None:
        """Change fields of the manifest, atomically; environments are added to."""
        if "environments" in fields:
            fields["environments"] = self.manifest.environments | fields["environments"]
        self.manifest = msgspec.structs.replace(self.manifest, **fields)
        self._write_manifest()

    def _write_manifest(self) -> None:
        try:
            _write_atomically(
                self.directory / MANIFEST, msgspec.json.format(msgspec.json.encode(self.manifest), indent=2)
            )
        except OSError as error:
            raise StoreError(f"cannot write to {self.directory / MANIFEST}: {error.strerror}") from error


def _comparable(before: Manifest, now: Manifest, path: Path, force: bool) -> None:
    """A run goes on only on the machine where it began."""
    if before.fingerprint == now.fingerprint or force:
        return
    changed = [
        f"{name}: {before.machine.get(name)} then, {value} now"
        for name, value in now.machine.items()
        if name in ("cpu", "cores", "isa", "memory_gib", "gpus", "system") and before.machine.get(name) != value
    ]
    raise NotComparableError(
        f"{path} was begun on another machine ({'; '.join(changed)}); --force goes on all the same"
    )


def _locked(directory: Path) -> IO[str]:
    lock = (directory / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise LockedError(f"{directory} is being written to by process {holder}") from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _cut_torn_line(path: Path) -> None:
    """Drop what stands behind the last line end: the piece of a line that a kill left."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                file.truncate(start + at + 1)
                return
            end = start
        file.truncate(0)


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON Schemas of both files, by file name under docs/schema/."""
    yield "run.json", msgspec.json.schema(Manifest)
    yield "result.json", msgspec.json.schema(Result)
