"""Run directories: a manifest, `run.json`, and append-only `results.jsonl`, one Result a line.

The version of the format is read before anything is decoded. Lines are synced before the next group is measured; what a
kill tears off is the last line at most, and it is measured again. docs/formats.md has every key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from attnbench import lines
from attnbench.arm import Arm
from attnbench.ceilings import Ceilings
from attnbench.errors import LockedError, NotComparableError, SchemaError, StoreError
from attnbench.result import Environment, Procedure, Record, Result, Status
from attnbench.suite import schema as suite_schema

VERSION = 1
OLDEST = 1  # that is still read
MANIFEST, RESULTS, LOCK, DRAFT = "run.json", "results.jsonl", ".lock", "run.tmp"
OUTGROWN = "a case no larger"  # how the reason begins of a case that was not tried after such a failure
BUDGET = "budget"  # how the reason of a case begins that the budget cut: a resume measures it


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
    ceilings: dict[str, Ceilings] = {}  # by device, as `calibrate` measured them before the run
    commit: dict[str, Any] | None = None  # of the working directory
    planned: int = 0  # cases, refusals and impossible cells too
    seconds: dict[str, float] = {}  # of the latest part of the run, by phase, and in total
    impossible: tuple[tuple[str, str], ...] = ()  # cells that are no problem, and why
    tags: dict[str, str] = {}
    gate: dict[str, Any] = {}  # of a gate: its sides, stages and margins; with the results it gives the verdicts again


class Run(msgspec.Struct, kw_only=True):
    """A stored run, read."""

    path: Path
    manifest: Manifest
    results: Sequence[Result]
    skipped_lines: int = 0  # lines that are no result: torn, or not ours

    @property
    def by_key(self) -> dict[lines.Key, Result]:
        """The results by (case id, arm id, launch)."""
        return {result.key: result for result in self.results}


# -- reading -----------------------------------------------------------------------------------------------------------


def read(directory: Path) -> Run:
    """The run in a directory. Lines that cannot be read are counted, never fatal."""
    manifest = read_manifest(directory)
    results, skipped = lines.read(directory / RESULTS)
    return Run(path=directory, manifest=manifest, results=results, skipped_lines=skipped)


def read_manifest(directory: Path) -> Manifest:
    """The manifest alone. Raises SchemaError for a newer or too old a format, StoreError for none."""
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
        if version < OLDEST:
            raise SchemaError(
                f"{path}: format {version}, written by an older attnbench; this one reads {OLDEST} to {VERSION}: "
                "measure again, or read it with the version that wrote it"
            )
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int


def done_keys(run: Run, retry_failed: bool) -> frozenset[lines.Key]:
    """What a resume leaves alone: all but what the budget cut and, if asked for, what failed or gave way to it."""

    def again(result: Result) -> bool:
        if result.status is Status.SKIPPED:
            return result.reason.startswith(BUDGET) or (retry_failed and result.reason.startswith(OUTGROWN))
        return retry_failed and (result.status.failed or result.status is Status.OOM)

    return frozenset(result.key for result in run.results if not again(result))


# -- places ------------------------------------------------------------------------------------------------------------


def results_root() -> Path:
    """Where runs lie: ATTNBENCH_RESULTS, or ./results."""
    return Path(os.environ.get("ATTNBENCH_RESULTS") or "results")


def new_directory(root: Path, suite: str, device: str, now: datetime) -> Path:
    """Make `20261121T001500Z-quick-cpu`, a name that sorts by time; a second run of the same second gets a suffix."""
    kind, _, index = device.partition(":")
    words = f"{suite}-{kind}{index if kind == 'cuda' else ''}"
    stem = now.astimezone(UTC).strftime(_STAMP) + "-" + re.sub(r"[^\w.+-]", "_", words)[:100]
    for count in range(1, 1000):
        path = root / (stem if count == 1 else f"{stem}.{count}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise StoreError(f"cannot write to {root}: {error.strerror}") from error
        return path
    raise StoreError(f"{root} holds a thousand runs of this second: give another --out")


_STAMP = "%Y%m%dT%H%M%SZ"


def resolve(text: str, root: Path) -> Path:
    """A run directory from `last`, a name under the root, or a path."""
    runs = sorted((path.parent for path in root.glob(f"*/{MANIFEST}")), key=_started) if root.is_dir() else []
    if text == "last":
        if not runs:
            raise StoreError(f"no run in {root}/ yet: attnbench run makes one")
        return runs[-1]
    for path in (Path(text), root / text):
        if (path / MANIFEST).is_file():
            return path
    there = ", ".join(path.name for path in runs[-3:]) or "none"
    raise StoreError(f"no run {text!r}: neither a run directory nor a name in {root}/ (newest there: {there})")


def _started(directory: Path) -> tuple[str, str]:
    """What sorts runs by time: the stamp of the name, or where the user chose the name the time of the manifest."""
    if match := re.match(r"\d{8}T\d{6}Z(?=-)", directory.name):
        return match[0], directory.name
    return datetime.fromtimestamp((directory / MANIFEST).stat().st_mtime, UTC).strftime(_STAMP), directory.name


# -- writing -----------------------------------------------------------------------------------------------------------


class RunWriter:
    """The one writer of a run directory: opens or creates it, under a lock that ends with the process.

    A run goes on only on the machine and by the procedure with which it began; `force` goes on all the same, and marks
    each result with the fingerprint of the machine that it comes from.
    """

    def __init__(self, directory: Path, manifest: Manifest, force: bool = False) -> None:
        self.directory = directory
        with _reported(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(directory)
        self._results = -1
        try:
            self._begin(manifest, force)
        except BaseException:
            self.close()
            raise

    def _begin(self, manifest: Manifest, force: bool) -> None:
        path = self.directory
        self._mark = ""
        if (path / MANIFEST).exists():
            before = read_manifest(path)
            if not force:
                _comparable(before, manifest, path)
            elif before.fingerprint != manifest.fingerprint:
                self._mark = manifest.fingerprint
            manifest = _continued(before, manifest)
        elif foreign := sorted(item.name for item in path.iterdir() if item.name not in (LOCK, DRAFT)):
            raise StoreError(f"{path} holds {foreign[0]!r} and is no run directory: give another --out")
        self.manifest = msgspec.structs.replace(manifest, command=anonymous(manifest.command))
        self._write_manifest()
        with _reported(path / RESULTS):
            self._results = os.open(path / RESULTS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            _mend_torn_line(self._results)
            _sync_folder(path)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        if self._results >= 0:
            os.close(self._results)
            self._results = -1
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
        data = b"".join(encoder.encode(_fit_to_share(result, self._mark)) + b"\n" for result in results)
        size = os.fstat(self._results).st_size
        try:
            _write(self._results, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._results, size)
            where = f"cannot write to {self.directory / RESULTS}"
            raise StoreError(f"{where}: {error.strerror}; all earlier results are kept") from error

    def update(self, *, environments: Mapping[str, Environment], seconds: Mapping[str, float]) -> None:
        """Add environments of arms to the manifest, and where the time went, atomically."""
        merged = self.manifest.environments | dict(environments)
        self.manifest = msgspec.structs.replace(self.manifest, environments=merged, seconds=dict(seconds))
        self._write_manifest()

    def _write_manifest(self) -> None:
        with _reported(self.directory / MANIFEST):
            _write_atomically(
                self.directory / MANIFEST, msgspec.json.format(msgspec.json.encode(self.manifest), indent=2)
            )


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """What the system refuses becomes one line that names the path."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot write to {path}: {error.strerror}") from error


def anonymous(text: str) -> str:
    """The text with paths relative to the working directory, and the user's home as `~`: neither names a user."""
    for folder, short in ((os.getcwd(), ""), (os.path.expanduser("~"), "~/")):
        if len(folder) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?:/|(?![\w.-]))", short, text)
    return text


def _fit_to_share(result: Result, mark: str) -> Result:
    """Free text without the user's paths; ids stay as they are. `mark` is the machine of a forced continuation."""
    facts = dict(result.facts)
    if isinstance(trace := facts.get("trace"), str):
        facts["trace"] = anonymous(trace)
    if mark:
        facts["fingerprint"] = mark
    return msgspec.structs.replace(result, reason=anonymous(result.reason), facts=facts)


def _continued(before: Manifest, now: Manifest) -> Manifest:
    """The manifest of a run that goes on: asked anew, begun then."""
    return msgspec.structs.replace(
        now,
        created_at=before.created_at,
        procedures=before.procedures | now.procedures,
        arms=tuple({arm.id: arm for arm in (*before.arms, *now.arms)}.values()),
        environments=before.environments | now.environments,
        machine=before.machine,
        fingerprint=before.fingerprint,
        tags=before.tags | now.tags,
    )


def _comparable(before: Manifest, now: Manifest, path: Path) -> None:
    """Refuse another machine, or another way of timing, naming what was and what is."""
    changed = [
        f"{kind} {name}: {getattr(before.procedures[kind], name)} then, {getattr(procedure, name)} now"
        for kind, procedure in now.procedures.items()
        for name in ("timing", "cache", "power", "inputs")
        if kind in before.procedures and getattr(before.procedures[kind], name) != getattr(procedure, name)
    ]
    if before.fingerprint != now.fingerprint:
        changed += [f"machine: {before.fingerprint} then, {now.fingerprint} now"]
        changed += [
            f"{name}: {before.machine.get(name)} then, {value} now"
            for name, value in now.machine.items()
            if name in ("cpu", "cores", "isa", "memory_gib", "gpus", "system") and before.machine.get(name) != value
        ]
    if changed:
        raise NotComparableError(f"{path} was begun otherwise ({'; '.join(changed)}); --force goes on all the same")


def _locked(directory: Path) -> IO[str]:
    lock = (directory / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise LockedError(f"{directory} is being written to by process {holder}") from None
    except OSError:
        lock.close()
        raise
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _mend_torn_line(descriptor: int) -> None:
    """Drop the piece of a line that a kill left at the end; a whole result gets the line end that it lacks."""
    end = start = os.lseek(descriptor, 0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail:
        start = max(0, start - max(65536, len(tail)))
        tail = os.pread(descriptor, end - start, start)
    rest = tail.rpartition(b"\n")[2]
    if rest and lines.decoded(rest):
        _write(descriptor, b"\n")
    elif rest:
        os.ftruncate(descriptor, end - len(rest))


def _write(descriptor: int, data: bytes) -> None:
    """All of it, synced. Not a buffered file: that would try again at its end what the system has refused."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _write_atomically(path: Path, data: bytes) -> None:
    draft = path.parent / DRAFT
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schemas of a manifest, of a line of results, and of a suite, by file name under docs/schema/."""
    return {
        "run.json": msgspec.json.schema(Manifest),
        "result.json": msgspec.json.schema(Result),
        "suite.json": suite_schema(),
    }


def write_schemas(folder: Path) -> None:
    """Bring docs/schema/ up to date."""
    for name, schema in schemas().items():
        (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n")
