"""SQL over stored runs: it reads alone, explains mistakes, and can be interrupted."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from attnbench.analysis import indexed_runs, query
from attnbench.analysis.indexed_runs import IndexedRuns
from attnbench.errors import UsageError

RUN = Path(__file__).parents[1] / "stored" / "0.1.0" / "run-a"


@pytest.fixture
def stored() -> Iterator[IndexedRuns]:
    with indexed_runs.opened([RUN], lambda _: None, "a test") as runs:
        yield runs


def rows(stored: IndexedRuns, sql: str) -> list[object]:
    return list(query.run(stored, sql).rows)


def test_columns_of_one_name_are_told_apart(stored: IndexedRuns) -> None:
    result = query.run(stored, "SELECT 1 AS n, 2 AS n")
    assert result.columns == ("n", "n (1)")
    assert list(result.rows) == [(1, 2)]


def test_rows_beyond_one_batch_are_fetched_in_order(stored: IndexedRuns) -> None:
    count = 2 * indexed_runs.FETCHED + 1
    assert rows(stored, f"SELECT range FROM range({count})") == [(n,) for n in range(count)]


def test_tables_that_are_listed_are_those_of_the_page(stored: IndexedRuns) -> None:
    assert rows(stored, "SHOW TABLES") == [("results",), ("runs",)]


def test_pivot_with_its_values_is_a_query(stored: IndexedRuns) -> None:
    sql = "PIVOT results ON backend IN ('naive', 'flex') USING count(*) GROUP BY seq_q"
    assert query.run(stored, sql).columns == ("seq_q", "naive", "flex")


def test_plan_of_a_query_is_shown_without_its_rows(stored: IndexedRuns) -> None:
    assert query.run(stored, "EXPLAIN SELECT * FROM runs").columns == ("explain_key", "explain_value")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("INSERT INTO results VALUES (1)", "INSERT is refused"),
        ("UPDATE runs SET run = ''", "UPDATE is refused"),
        ("DELETE FROM results", "DELETE is refused"),
        ("CREATE TABLE t (n INT)", "CREATE is refused"),
        ("DROP VIEW results", "DROP is refused"),
        ("COPY results TO 'x.csv'", "COPY is refused"),
        ("ATTACH 'x.db'", "ATTACH is refused"),
        ("PRAGMA database_list", "PRAGMA is refused"),
        ("CALL pragma_version()", "CALL is refused"),
        ("install httpfs", "INSTALL is refused"),
        ("-- a note\n/* and one */ FORCE INSTALL httpfs", "INSTALL is refused"),
        ("LOAD httpfs", "LOAD is refused"),
        ("SET memory_limit = '1GB'", "SET is refused"),
        ("EXPORT DATABASE 'x'", "EXPORT is refused"),
        ("BEGIN", "BEGIN is refused"),
        ("PIVOT results ON backend USING median(time_s)", "a PIVOT must list its values: ON backend IN ("),
        ("WITH old AS (SELECT 1) DELETE FROM results", "DELETE is refused"),
        ("SELECT * FROM read_csv('/etc/passwd')", "a query reads results and runs alone"),
        ("SELECT * FROM read_text('/etc/passwd')", "a query reads results and runs alone"),
        ("SELECT * FROM glob('*')", "a query reads results and runs alone"),
        ("SELECT 1; DELETE FROM results", "2 statements"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("/* nothing */", "0 statements"),
        ("", "0 statements"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT spedup FROM results", "no column 'spedup'; did you mean 'speedup'?; attnbench query --columns"),
        ("SELECT r.spedup FROM results AS r", "no column 'spedup'; did you mean 'speedup'?"),
        ('SELECT * FROM results WHERE arm_name = "naive"', "no column 'naive'; text stands in single quotes: 'naive'"),
        ("SELECT nosuch FROM results", "no column 'nosuch'; attnbench query --columns lists them"),
        ("SELECT * FROM result", "no table 'result'; there are results and runs"),
        ("SELECT * FROM columns", "no table 'columns'; there are results and runs"),
        ("SELECT sum(mask) FROM results", "No function matches"),
        ("SELECT mask::INT FROM results", "Could not convert string 'none' to INT32"),
    ],
)
def test_what_does_not_read_the_tables_is_refused_in_one_line(
    stored: IndexedRuns, sql: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        rows(stored, sql)
    text = str(refused.value)
    assert text.startswith("query: ")
    assert message in text
    assert len(text.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_error_in_a_later_row_is_explained(stored: IndexedRuns) -> None:
    with pytest.raises(UsageError, match="late"):
        rows(stored, "SELECT CASE WHEN range < 100000 THEN 1 ELSE error('late') END FROM range(200000)")


def test_query_that_needs_too_much_memory_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(indexed_runs._SETTINGS, "memory_limit", "20MB")
    message = "needs more than 3GB of memory: aggregate it, or add LIMIT or WHERE"
    with indexed_runs.opened([RUN], lambda _: None, "a test") as small, pytest.raises(UsageError, match=message):
        rows(small, "SELECT list(range) FROM range(100_000_000)")


def test_query_does_not_see_variables_of_the_process(stored: IndexedRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "secret", pd.DataFrame({"n": [1]}), raising=False)
    with pytest.raises(UsageError, match="no table 'secret'"):
        rows(stored, "SELECT * FROM secret")


def test_interrupt_ends_a_long_query(stored: IndexedRuns) -> None:
    timer = threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])

    def interrupted() -> None:
        timer.start()
        query.run(stored, "SELECT count(*) FROM range(1_000_000_000_000_000) AS n WHERE n.range % 7 = 3")

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_missing_duckdb_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    message = "^a test needs duckdb: pip install -c constraints.txt '.\\[query\\]'$"
    with pytest.raises(UsageError, match=message), indexed_runs.opened([RUN], lambda _: None, "a test"):
        pass
