"""SQL over stored runs: one statement that reads, and errors in the words of the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import msgspec

from attnbench.analysis.indexed_runs import FETCHED, MEMORY, TABLES, IndexedRuns
from attnbench.errors import UsageError, nearest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

T = TypeVar("T")
READING = ("SELECT", "EXPLAIN")  # DuckDB's types of statements that read; SHOW and DESCRIBE are SELECT
PIVOT = "MULTI"  # DuckDB's type of a PIVOT that first reads its values into a table
UNKNOWN_COLUMN = re.compile(r'Referenced column "([^"]+)" (?:was )?not found|not have a column named "([^"]+)"')
UNKNOWN_TABLE = re.compile(r"Table with name (\S+) does not exist")
FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|force\s)*(\w+)", re.DOTALL | re.IGNORECASE)
HINT = "attnbench query --columns lists them"
ONLY_READ = "stored results are only read: give one SELECT"


class QueryResult(msgspec.Struct, frozen=True):
    """The columns of a result, and its rows as they are fetched."""

    columns: tuple[str, ...]
    rows: Iterator[Sequence[object]]


def run(runs: IndexedRuns, sql: str) -> QueryResult:
    """Execute one SELECT over the tables of TABLES. Raises UsageError for anything else, and for its errors."""
    import duckdb

    try:
        statements = runs.connection.extract_statements(sql)
        if len(statements) != 1:
            raise UsageError(f"query: {len(statements)} statements in {sql!r}: give one SELECT")
        (statement,) = statements
        if statement.type.name == PIVOT:
            raise UsageError("query: a PIVOT must list its values: ON backend IN ('naive', 'sdpa:flash')")
        if statement.type.name not in READING:
            raise UsageError(f"query: {_name(sql, statement.type.name)} is refused: {ONLY_READ}")
        _interruptible(runs.connection, lambda: runs.connection.execute(statement))
    except duckdb.Error as error:
        raise _explained(error, sql) from None
    names: dict[str, None] = {}
    for place, (name, *_) in enumerate(runs.connection.description or ()):
        names[f"{name} ({place})" if name in names else name] = None
    return QueryResult(tuple(names), _fetched(runs.connection))


def _name(sql: str, kind: str) -> str:
    """The statement by its first word, since DuckDB has one type for INSTALL and LOAD; after WITH by its type."""
    match = FIRST_WORD.match(sql)
    return kind if match is None or match[1].upper() == "WITH" else match[1].upper()


def _fetched(connection: Connection) -> Iterator[Sequence[object]]:
    import duckdb

    try:
        while batch := _interruptible(connection, lambda: connection.fetchmany(FETCHED)):
            yield from batch
    except duckdb.Error as error:
        raise _explained(error) from None


def _interruptible(connection: Connection, call: Callable[[], T]) -> T:
    """The value of the call. It runs in a thread: in the main thread DuckDB may not see a signal until it is done."""
    with ThreadPoolExecutor(1) as pool:
        value = pool.submit(call)
        try:
            return value.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _explained(error: Exception, sql: str = "") -> UsageError:
    """The error in one line, with the nearest name for an unknown column or table, or the quotes of a text."""
    import duckdb

    text = " ".join(str(error).partition("\n\n")[0].split())
    if isinstance(error, duckdb.PermissionException):
        return UsageError(f"query: {text}: a query reads {' and '.join(TABLES)} alone")
    if isinstance(error, duckdb.OutOfMemoryException):
        return UsageError(f"query: the result needs more than {MEMORY} of memory: aggregate it, or add LIMIT or WHERE")
    if match := UNKNOWN_COLUMN.search(text):
        wanted = match[1] or match[2]
        names = dict.fromkeys(name for table in TABLES.values() for name in table)
        near = nearest(wanted, names)
        if f'"{wanted}"' in sql and not near:
            return UsageError(f"query: no column {wanted!r}; text stands in single quotes: '{wanted}'; {HINT}")
        return UsageError(f"query: no column {wanted!r}; {f'did you mean {near!r}?; ' if near else ''}{HINT}")
    if match := UNKNOWN_TABLE.search(text):
        return UsageError(f"query: no table {match[1]!r}; there are {' and '.join(TABLES)}; {HINT}")
    return UsageError(f"query: {text}")
