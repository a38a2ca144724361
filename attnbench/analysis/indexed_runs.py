"""Stored runs through their indexes: as tables for SQL, as rows, and as runs with the results that a filter selects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from attnbench.analysis import index
from attnbench.analysis.index import HARDWARE, RUN_COLUMNS, Step
from attnbench.analysis.rows import AXES, COLUMNS, Row, one_line, problem_from
from attnbench.attention.choices import Mode
from attnbench.errors import StoreError, UsageError
from attnbench.records import results_file, run_directory
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Facts, Result, Status
from attnbench.records.run_directory import NODE_TAG, RESULTS, Run
from attnbench.units import counted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

MISSING = "{} needs duckdb: pip install -c constraints.txt '.[query]'"
MEMORY = "3GB"
MAX_IN_MEMORY = 20_000  # selected results; more are read one by one
FETCHED = 2000  # rows at a time
MAX_NAMED = 3  # runs of a note
MACHINE_ID = f"fingerprint || coalesce('/' || nullif(tags['{NODE_TAG}'], ''), '')"  # `Manifest.machine_id` in SQL
# What a row has beside COLUMNS.
OF_RUN = {
    "run": RUN_COLUMNS["run"],
    "path": "the run's folder",
    "created_at": RUN_COLUMNS["created_at"],
    "fingerprint": RUN_COLUMNS["fingerprint"],
    HARDWARE: "name of the CPU or GPU that the arm ran on",
    **{name: RUN_COLUMNS[name] for name in ("suite", "commit", "tags")},
}
TABLES = {"results": {**COLUMNS, **OF_RUN}, "runs": {"run": RUN_COLUMNS["run"], "path": OF_RUN["path"], **RUN_COLUMNS}}


class IndexedRuns(msgspec.Struct, frozen=True):
    """An open connection with the tables of TABLES."""

    connection: Connection
    notes: tuple[str, ...]  # what is not as usual: an index that is not stored, runs and lines that are left out

    def rows(self, condition: str = "true", values: Sequence[object] = ()) -> Iterator[tuple[str, Row]]:
        """The rows that fulfil a condition in SQL, in the order of the runs, each with the path of its run."""
        names = ("path", *COLUMNS)
        self.connection.execute(
            f"SELECT {', '.join(names)} FROM internal.located WHERE {condition} ORDER BY position, lines[1].place",
            list(values),
        )
        while batch := self.connection.fetchmany(FETCHED):
            for path, *columns in batch:
                yield path, msgspec.convert(dict(zip(COLUMNS, columns, strict=True)), Row)

    def newest(self, machine: str) -> tuple[list[Row], Path | None]:
        """The rows of each problem on each device of a machine from one run: the newest of those that rank most arms.

        Gates do not count: their arms are two versions of one backend. Also the path of the newest of these runs.
        """
        measured = (
            "SELECT path, problem, device, created_at, position, count(*) FILTER (place <> 'alone') AS arms "
            f"FROM internal.located WHERE {MACHINE_ID} = ? AND NOT gate GROUP BY ALL"
        )
        order = "(arms, coalesce(created_at, 'epoch'::TIMESTAMP), position)"
        best = f"SELECT problem, device, arg_max(path, {order}) FROM ({measured}) GROUP BY problem, device"
        rows = list(self.rows(f"(problem, device, path) IN ({best})", [machine]))
        paths = list({path for path, _ in rows})
        newest = "SELECT path FROM runs WHERE list_contains(?, path) ORDER BY created_at DESC NULLS LAST LIMIT 1"
        newest_path = self.connection.execute(newest, [paths]).fetchone()
        return [row for _, row in rows], Path(newest_path[0]) if newest_path else None

    def machines(self) -> dict[str, str]:
        """The machines of the runs: their names by `Manifest.machine_id`."""
        known = f"SELECT DISTINCT ON (id) {MACHINE_ID} AS id, machine FROM runs WHERE unreadable IS NULL ORDER BY ALL"
        return dict(self.connection.execute(known).fetchall())

    def select(self, keep: Callable[[Result], bool] | None, limit: int) -> list[Run]:
        """The runs with the results for which `keep` is true; it sees case, backend and device.

        Raises UsageError for more than `limit` results.
        """
        self._keep(keep)
        located = (
            "(SELECT position, path, unnest(lines) AS line FROM internal.located "
            "SEMI JOIN internal.chosen_cases USING (case_id, device))"
        )
        ((count,),) = self.connection.execute(f"SELECT count(*) FROM {located}").fetchall()
        if count > limit:
            raise UsageError(f"{count} results are more than the {limit} of one report: choose with --only and --skip")
        self.connection.execute(f"SELECT path, line.start, line.size FROM {located} ORDER BY position, line.place")
        places = groupby(self.connection.fetchall(), itemgetter(0))
        return [
            _run(Path(path), [(start, size) for _, start, size in lines], count <= MAX_IN_MEMORY, keep is not None)
            for path, lines in places
        ]

    def _keep(self, keep: Callable[[Result], bool] | None) -> None:
        """Make the table `internal.chosen_cases` of the cases and devices of the results for which `keep` is true."""
        names = ("case_id", "device", "backend", "mode", *AXES)
        cases = f"SELECT DISTINCT ON (case_id, device) {', '.join(names)} FROM internal.located"
        if not keep:
            self.connection.execute(f"CREATE OR REPLACE TABLE internal.chosen_cases AS {cases}")
            return
        chosen_cases = []
        self.connection.execute(cases)
        while batch := self.connection.fetchmany(FETCHED):
            for columns in batch:
                values = dict(zip(names, columns, strict=True))
                if keep(_head(values)):
                    chosen_cases.append({"case_id": values["case_id"], "device": values["device"]})
        types = {"case_id": "VARCHAR", "device": "VARCHAR"}
        _create_table(self.connection, "internal.chosen_cases", types, chosen_cases)


@contextlib.contextmanager
def opened(runs: Sequence[Path], step: Step, needs: str) -> Iterator[IndexedRuns]:
    """The runs as tables, after their indexes are brought up to date; other processes wait meanwhile.

    `needs` is what needs DuckDB. Raises UsageError where it is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise UsageError(MISSING.format(needs)) from None
    by_folder: dict[Path, list[Path]] = {}
    for run in runs:
        by_folder.setdefault(run.parent, []).append(run)
    notes: list[str] = []
    files: list[Path | None] = []
    with contextlib.ExitStack() as locks:
        for of_folder in by_folder.values():
            try:
                files.append(locks.enter_context(index.refreshed(of_folder, step)))
            except (OSError, StoreError, duckdb.Error) as error:
                notes.append(f"the index is in memory, because it cannot be stored: {_cause(error)}")
                files.append(None)
        connection = duckdb.connect(config=_SETTINGS)
        for number, (file, of_folder) in enumerate(zip(files, by_folder.values(), strict=True)):
            _attach(connection, f"folder_{number}", file, of_folder, step)
    with connection:
        _create_views(connection, runs, list(by_folder))
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield IndexedRuns(connection, (*notes, *_left_out(connection)))


def _cause(error: Exception) -> str:
    """Why an index is not stored; of an error of the system the file and the words, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return one_line(str(error))


# No query reads or writes a file, loads code, or sees variables of this process.
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": MEMORY,
    "temp_directory": "",
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def _attach(connection: Connection, name: str, file: Path | None, runs: Sequence[Path], step: Step) -> None:
    """Attach an index; without a file, make it in memory."""
    if file:
        quoted = str(file).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS {name} (READ_ONLY)")
        return
    connection.execute(f"ATTACH ':memory:' AS {name}")
    connection.execute(f"USE {name}")
    index.create_tables(connection)
    # In this process: DuckDB's threads are running, and a process with threads is not forked.
    index.add(runs, lambda: contextlib.nullcontext(connection), step, pooled=False)
    connection.execute("USE memory")


def _create_views(connection: Connection, runs: Sequence[Path], folders: Sequence[Path]) -> None:
    """The tables of TABLES, and `internal.located`: rows with the places of their results."""
    chosen = [
        {"folder": folders.index(run.parent), "position": position, "path": str(run), "run": run.name}
        for position, run in enumerate(runs)
    ]
    types = {"folder": "BIGINT", "position": "BIGINT", "path": "VARCHAR", "run": "VARCHAR"}
    connection.execute("CREATE SCHEMA internal")  # its tables are not among those that SHOW TABLES lists
    _create_table(connection, "internal.chosen", types, chosen)
    of_run = ", ".join(f"u.{name}" for name in ("gate", *OF_RUN) if name in RUN_COLUMNS and name != "run")
    of_folder = (
        f"FROM internal.chosen AS c JOIN folder_{number}.runs AS u ON c.run = u.run AND c.folder = {number}"
        for number in range(len(folders))
    )
    parts = list(of_folder)
    located = (
        f"SELECT r.*, c.position, c.path, {of_run} {part} JOIN folder_{number}.rows AS r ON r.run = c.run"
        for number, part in enumerate(parts)
    )
    described = ", ".join("c.path" if name == "path" else f"u.{name}" for name in TABLES["runs"])
    connection.execute(f"CREATE VIEW internal.located AS {' UNION ALL '.join(located)}")
    connection.execute(f"CREATE VIEW results AS SELECT {', '.join(TABLES['results'])} FROM internal.located")
    connection.execute(f"CREATE VIEW runs AS {' UNION ALL '.join(f'SELECT {described} {part}' for part in parts)}")


def _create_table(connection: Connection, name: str, types: dict[str, str], rows: Sequence[dict[str, object]]) -> None:
    connection.execute(
        f"CREATE OR REPLACE TABLE {name} AS SELECT unnest(from_json(?, ?), max_depth := 2)",
        [json.dumps(rows), json.dumps([types])],
    )


def _left_out(connection: Connection) -> Iterator[str]:
    """The runs and the lines that cannot be read."""
    for path, reason in connection.execute("SELECT path, unreadable FROM runs WHERE unreadable IS NOT NULL").fetchall():
        yield f"{path} is left out: {reason}"
    skipped = connection.execute("SELECT path, skipped_lines FROM runs WHERE skipped_lines > 0").fetchall()
    if skipped:
        lines = counted(sum(count for _, count in skipped), "line")
        paths = [path for path, _ in skipped[:MAX_NAMED]]
        others = len(skipped) - len(paths)
        where = ", ".join(paths) + (f" and {counted(others, 'more run')}" if others else "")
        yield f"{lines} left out, not readable as results: in {where}"


def _head(values: Facts) -> Result:
    """A result of a row, without what was measured."""
    problem = problem_from(values)
    case = Case(problem=problem, backend=values["backend"], mode=Mode(values["mode"]))
    return Result(case=case, arm=Arm(backend=values["backend"], device=values["device"]), status=Status.OK)


def _run(path: Path, places: Sequence[tuple[int, int]], in_memory: bool, partial: bool) -> Run:
    results = results_file.read_lines(path / RESULTS, places, in_memory)
    return Run(path=path, manifest=run_directory.read_manifest(path), results=results, partial=partial)
