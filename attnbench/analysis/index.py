"""An index of stored runs: one DuckDB file for each folder of runs, in the user's cache.

Results stay in plain files, and the index is never trusted. Its name holds the digest of its content, so a damaged file
is not opened. It holds size and time of the files that it was made from, so a run that changed is read again, and a
digest of the code that computes rows, so another version rebuilds it. Deleting it loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, get_args, get_type_hints

import msgspec
from filelock import FileLock, Timeout

from attnbench.analysis import parallel
from attnbench.analysis.metrics import METRICS
from attnbench.analysis.roofline import ceilings_by_device
from attnbench.analysis.rows import COLUMNS, Row, rows_of
from attnbench.attention import user_folders
from attnbench.errors import StoreError
from attnbench.machine import identity
from attnbench.records import results_file, run_directory
from attnbench.records.run_directory import MANIFEST, RESULTS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

FOLDER, SUFFIX, DRAFT = "index", ".duckdb", ".draft"
BATCH = 64  # runs that are added at a time
INSERTED = 4000  # rows of one statement
CODE = ("analysis/**/*.py", "attention/**/*.py", "records/**/*.py", "backends/__init__.py", "units.py", "_version.py")
RUN_COLUMNS = {
    "run": "name of the run's folder",
    "created_at": "when the run was started, UTC",
    "suite": "name of the suite",
    "attnbench": "version that measured the run",
    "fingerprint": "of the machine; runs of one machine have the same",
    "machine": "the machine's GPUs, or its CPU",
    "commit": "git commit of the working directory",
    "dirty": "whether the working directory had uncommitted changes",
    "gate": "whether it is the run of a gate, with the arms base and head",
    "tags": "tags of the run, by name: tags['key']",
    "cases": "number of its rows in `results`",
    "skipped_lines": "lines of its file that hold no result: cut off, or foreign",
    "unreadable": "why the run cannot be read",
}
HARDWARE = "hardware"  # a column of rows
_RUN_TYPES = dict.fromkeys((*RUN_COLUMNS, "signature"), "VARCHAR") | {
    "created_at": "TIMESTAMP",
    "tags": "MAP(VARCHAR, VARCHAR)",
    **dict.fromkeys(("dirty", "gate"), "BOOLEAN"),
    **dict.fromkeys(("cases", "skipped_lines"), "BIGINT"),
}

Step = Callable[[str], None]  # is called with the progress


class IndexedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the index stores it; the fields are those of RUN_COLUMNS."""

    run: str
    signature: str  # of the files that its rows were made from
    created_at: str | None = None
    suite: str = ""
    attnbench: str = ""
    fingerprint: str = ""
    machine: str = ""
    commit: str | None = None
    dirty: bool | None = None
    gate: bool = False
    tags: Mapping[str, str] = {}
    cases: int = 0
    skipped_lines: int = 0
    unreadable: str | None = None


class LinePlace(msgspec.Struct, frozen=True):
    """Where a result is in the file of its run."""

    place: int  # among the results that count
    start: int  # bytes
    size: int


class _IndexedRow(Row, frozen=True, kw_only=True):
    """A row as the index stores it."""

    run: str
    hardware: str
    lines: tuple[LinePlace, ...]


@contextlib.contextmanager
def refreshed(runs: Sequence[Path], step: Step) -> Iterator[Path]:
    """The index file with these runs, which are in one folder; it is not replaced meanwhile.

    Raises StoreError, OSError or an error of DuckDB where it cannot be written.
    """
    folder = user_folders.cache() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(str(runs[0].parent.resolve()).encode()).hexdigest()[:16]
    lock = FileLock(folder / f"{stem}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        step("waiting for another attnbench that reads these runs")
        lock.acquire()
    try:
        yield _refreshed(folder, stem, runs, step)
    finally:
        lock.release()


def _refreshed(folder: Path, stem: str, runs: Sequence[Path], step: Step) -> Path:
    file = next(filter(_is_valid, folder.glob(f"{stem}.*{SUFFIX}")), None)
    stored = _signatures(file) if file else {}
    current = {run: _signature(run) for run in runs}
    stale = [run for run, signature in current.items() if stored.get(run.name) != signature]
    gone = [name for name in stored if not (runs[0].parent / name / MANIFEST).is_file()]
    if file and not stale and not gone:
        return file
    draft = folder / f"{stem}{DRAFT}"
    draft.unlink(missing_ok=True)
    try:
        if file and stored:
            shutil.copyfile(file, draft)
        with _opened(draft) as connection:
            if file and stored:
                _remove(connection, [*gone, *(run.name for run in stale)])
            else:
                create_tables(connection)
        try:
            add(stale, lambda: _opened(draft), step)
        except KeyboardInterrupt:  # what is complete is kept
            _publish(draft, stem)
            raise
        return _publish(draft, stem)
    finally:
        for path in (draft, Path(f"{draft}.wal")):
            path.unlink(missing_ok=True)


def _is_valid(file: Path) -> bool:
    """Whether the content has the digest of the name."""
    return file.name.split(".")[1] == _digest(file)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()[:32]


def _publish(draft: Path, stem: str) -> Path:
    """Give the draft its name, and remove the indexes that it replaces. Readers that opened one keep it."""
    file = draft.with_name(f"{stem}.{_digest(draft)}{SUFFIX}")
    draft.replace(file)
    for old in draft.parent.glob(f"{stem}.*{SUFFIX}"):
        if old != file:
            old.unlink(missing_ok=True)
    return file


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Connection]:
    """The tables of a draft. The file is complete afterwards; none of DuckDB's threads is left."""
    import duckdb

    with duckdb.connect(file) as connection:
        yield connection
        connection.execute("CHECKPOINT")


def _signatures(file: Path) -> dict[str, str]:
    """What each run was made from; none where the code is another one, or the file is no index."""
    import duckdb

    try:
        with duckdb.connect(file, read_only=True) as connection:
            if connection.execute("SELECT code FROM built").fetchone() != (identity.code_digest(CODE),):
                return {}
            return dict(connection.execute("SELECT run, signature FROM runs").fetchall())
    except duckdb.Error:
        return {}


def _signature(run: Path) -> str:
    """Size and time of the files of a run; taken before they are read."""
    stats = [path.stat() if path.exists() else None for path in (run / MANIFEST, run / RESULTS)]
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" if stat else "-" for stat in stats)


def create_tables(connection: Connection) -> None:
    """The empty tables of an index."""
    for name, columns in (("runs", _RUN_TYPES), ("rows", _row_types())):
        connection.execute(f"CREATE TABLE {name} ({', '.join(f'{column} {kind}' for column, kind in columns.items())})")
    connection.execute("CREATE TABLE built AS SELECT ? AS code", [identity.code_digest(CODE)])


@cache  # typing evaluates the annotations at every call
def column_types() -> dict[str, str]:
    """The SQL type of every column of COLUMNS."""
    hints = get_type_hints(Row)
    return {name: _sql_type(hints[name], name in METRICS) for name in COLUMNS}


def _sql_type(hint: object, metric: bool) -> str:
    (kind,) = (each for each in get_args(hint) or (hint,) if each is not NoneType)
    numbers: dict[object, str] = {bool: "BOOLEAN", int: "HUGEINT" if metric else "BIGINT", float: "DOUBLE"}
    return numbers.get(kind, "VARCHAR")


def _sql_list(kind: type[msgspec.Struct]) -> str:
    return f"STRUCT({', '.join(f'{name} BIGINT' for name in kind.__struct_fields__)})[]"


def _remove(connection: Connection, runs: Sequence[str]) -> None:
    for table in ("runs", "rows"):
        connection.execute(f"DELETE FROM {table} WHERE list_contains(?, run)", [list(runs)])


def add(
    runs: Sequence[Path], opened: Callable[[], contextlib.AbstractContextManager[Connection]], step: Step,
    pooled: bool = True,
) -> None:  # fmt: skip
    """Read the runs and add them to the tables that `opened` opens; it is closed while processes are forked."""
    with contextlib.closing(parallel.stream(_read, runs, pooled)) as reads:
        for begin in range(0, len(runs), BATCH):
            step(f"reading runs for the index: {begin} of {len(runs)}")
            batch = list(islice(reads, BATCH))
            with opened() as connection:
                connection.execute("BEGIN")
                _insert(connection, "runs", [msgspec.json.encode(run) for run, _ in batch], _RUN_TYPES)
                _insert(connection, "rows", [row for _, rows in batch for row in rows], _row_types())
                connection.execute("COMMIT")


def _row_types() -> dict[str, str]:
    return {"run": "VARCHAR", **column_types(), HARDWARE: "VARCHAR", "lines": _sql_list(LinePlace)}


def _insert(connection: Connection, table: str, records: Sequence[bytes], types: Mapping[str, str]) -> None:
    """Insert JSON objects, many at a time: a statement takes long to prepare."""
    values = ", ".join(f"r.{name}" for name in types)
    insert = f"INSERT INTO {table} ({', '.join(types)}) SELECT {values} FROM (SELECT unnest(from_json(?, ?)) AS r)"
    for begin in range(0, len(records), INSERTED):
        objects = b",".join(records[begin : begin + INSERTED])
        connection.execute(insert, [f"[{objects.decode()}]", json.dumps([types])])


def _read(path: Path) -> tuple[IndexedRun, list[bytes]]:
    """A run, and its rows as JSON objects."""
    indexed = IndexedRun(run=path.name, signature=_signature(path))
    try:
        manifest = run_directory.read_manifest(path)
        results, marks, skipped = results_file.read_with_marks(path / RESULTS)
        rows = rows_of(results, ceilings=ceilings_by_device(manifest), arms=manifest.arms)
    except StoreError as error:
        return msgspec.structs.replace(indexed, unreadable=str(error)), []
    lines: dict[tuple[str, str], list[LinePlace]] = {}
    for place, mark in enumerate(marks):
        lines.setdefault((mark.head.case.id, mark.head.arm.id), []).append(LinePlace(place, mark.start, mark.size))
    devices = {arm: environment.device for arm, environment in manifest.environments.items()}
    indexed_rows = [
        _IndexedRow(
            **msgspec.structs.asdict(row), run=path.name, hardware=devices.get(row.arm) or manifest.machine_name,
            lines=tuple(lines[row.case_id, row.arm]),
        )
        for row in rows
    ]  # fmt: skip
    commit = manifest.commit or {}
    indexed = msgspec.structs.replace(
        indexed, created_at=_timestamp(manifest.created_at), suite=manifest.suite, attnbench=manifest.attnbench,
        fingerprint=manifest.fingerprint, machine=manifest.machine_name, commit=commit.get("commit"),
        dirty=commit.get("dirty"), gate=bool(manifest.gate), tags=manifest.tags, cases=len(rows), skipped_lines=skipped,
    )  # fmt: skip
    return indexed, list(map(msgspec.json.encode, indexed_rows))


def _timestamp(text: str) -> str | None:
    """The time in UTC, where the text is one."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (time.astimezone(UTC) if time.tzinfo else time).replace(tzinfo=None).isoformat()
