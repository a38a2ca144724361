"""`attnbench query`: what it reads by default, its formats, and its errors in one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from attnbench.analysis import indexed_runs
from attnbench.analysis.rows import COLUMNS
from attnbench.machine import identity
from tests.conftest import Command

STORED = Path(__file__).parents[1] / "stored" / "0.1.0"


def copied(folder: Path) -> Path:
    """A folder of two runs."""
    for name in ("run-a", "run-b"):
        shutil.copytree(STORED / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs for all tests that only read them: their index is made once."""
    return copied(tmp_path_factory.mktemp("shared") / "results")


@pytest.fixture(autouse=True)
def results(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default folder of runs, beside an empty working directory."""
    monkeypatch.setenv("ATTNBENCH_RESULTS", str(shared))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return shared


def test_all_stored_runs_are_queried_by_default(attnbench_command: Command, results: Path) -> None:
    sql = "SELECT run, count(*) AS cases FROM results GROUP BY run ORDER BY run"
    expected = [{"run": "run-a", "cases": 12}, {"run": "run-b", "cases": 12}]
    for arguments in ((), (str(results),), ("run-b", "run-a")):
        done = attnbench_command("query", sql, *arguments, "--json")
        assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    assert attnbench_command("query", sql, "run-b", "--json").stdout == '{"run":"run-b","cases":12}\n'


def test_table_aligns_numbers_and_shows_what_is_missing(attnbench_command: Command) -> None:
    sql = "SELECT arm_name, restarts, time_s, noisy FROM results WHERE run = 'run-a' AND seq_q = 32 AND mask = 'none'"
    assert attnbench_command("query", sql).stdout.splitlines() == [
        "arm_name    restarts       time_s  noisy",
        "triton             0            -  -",
        "naive              2  3.45216e-05  False",
        "sdpa:flash         2   1.9901e-05  True",
    ]


@pytest.mark.parametrize("format_", ["csv", "md", "jsonl", "parquet"])
def test_every_format_holds_every_column_and_row(attnbench_command: Command, format_: str, tmp_path: Path) -> None:
    file = tmp_path / f"all.{format_}"
    assert attnbench_command("query", "SELECT * FROM results", "--format", format_, "-o", str(file)).returncode == 0
    columns = [*COLUMNS, *indexed_runs.OF_RUN]
    if format_ == "md":
        assert len(file.read_text().splitlines()) == 2 + 24
        return
    if format_ == "parquet":
        table = pd.read_parquet(file)
    else:
        table = pd.read_csv(file) if format_ == "csv" else pd.read_json(file, lines=True)
    assert list(table.columns) == columns
    assert len(table) == 24
    assert table["time_s"].count() == 16


@pytest.mark.parametrize(("suffix", "start"), [("csv", "n,m"), ("md", "| n"), ("jsonl", '{"n":1'), ("txt", "n  m")])
def test_suffix_of_the_file_selects_the_format(attnbench_command: Command, suffix: str, start: str) -> None:
    file = Path(f"q.{suffix}")
    assert attnbench_command("query", "SELECT 1 AS n, 2 AS m", "-o", str(file)).returncode == 0
    assert file.read_text().startswith(start)


def test_unknown_suffix_is_refused_unless_a_format_is_given(attnbench_command: Command) -> None:
    done = attnbench_command("query", "SELECT 1 AS n", "-o", "q.xyz")
    suffixes = ".txt, .md, .csv, .jsonl, .parquet"
    message = f"attnbench: --out q.xyz: no format has this suffix: use {suffixes}, or give --format\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert not Path("q.xyz").exists()
    assert attnbench_command("query", "SELECT 1 AS n", "-o", "q.xyz", "--format", "csv").returncode == 0
    assert Path("q.xyz").read_text().splitlines() == ["n", "1"]


def test_case_without_a_match_and_an_age_of_zero_are_refused(attnbench_command: Command) -> None:
    copied(Path("results"))
    machine = json.loads((Path("results") / "run-a" / "run.json").read_text())["fingerprint"]
    done = attnbench_command("history", "results", "--machine", machine, "--case", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "attnbench: --case: no case contains 'nosuch'\n" in done.stderr
    done = attnbench_command("recommend", "run-a", "--expires", "0d")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--expires: '0d' is no age: give one above 0, as 90d" in done.stderr


def test_columns_are_listed(attnbench_command: Command) -> None:
    listed = attnbench_command("query", "--columns").stdout.splitlines()
    for table, columns in indexed_runs.TABLES.items():
        assert f"{table}:" in listed
        names = {line.split()[0] for line in listed if line.startswith("  ")}
        assert set(columns) <= names
    for columns in indexed_runs.TABLES.values():
        table = next(name for name, each in indexed_runs.TABLES.items() if each is columns)
        done = attnbench_command("query", f"DESCRIBE {table}", "--json")
        assert [json.loads(line)["column_name"] for line in done.stdout.splitlines()] == list(columns)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM results", "DELETE is refused"),
        ("", "give one SELECT, or --columns"),
        ("SELECT spedup FROM results", "no column 'spedup'; did you mean 'speedup'?; attnbench query --columns"),
        ("SELECT mask::INT FROM results", "Could not convert string 'none' to INT32"),
    ],
)
def test_what_does_not_read_the_tables_is_refused_in_one_line(
    attnbench_command: Command, sql: str, message: str
) -> None:
    done = attnbench_command("query", sql)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("attnbench: query: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("query", "SELECT 1"), "query needs duckdb: pip install -c constraints.txt '.[query]'"),
        (("report", "."), "a report of a folder of runs needs duckdb: pip install"),
        (("recommend", "."), "recommend for several runs needs duckdb: pip install"),
        (("history", "."), "a history of a folder of runs needs duckdb: pip install"),
    ],
)
def test_missing_duckdb_names_the_extra(
    attnbench_command: Command, arguments: Sequence[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(Path())
    monkeypatch.setitem(sys.modules, "duckdb", None)
    done = attnbench_command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_parquet_needs_a_file(attnbench_command: Command) -> None:
    done = attnbench_command("query", "SELECT 1", "--format", "parquet")
    assert (done.returncode, done.stderr) == (2, "attnbench: --format parquet writes a binary file: give --out\n")


@pytest.mark.parametrize("command", [("query", "SELECT 1"), ("report",), ("recommend",), ("history",)])
def test_folder_without_runs_is_named(attnbench_command: Command, command: Sequence[str]) -> None:
    Path("empty").mkdir()
    done = attnbench_command(*command, "empty")
    assert done.returncode == 2
    assert "empty holds no run: give a run directory, or a folder of runs such as " in done.stderr


def test_no_stored_run_at_all_is_named(attnbench_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_RESULTS", "elsewhere")
    assert "no run in elsewhere/ yet: attnbench run creates one" in attnbench_command("query", "SELECT 1").stderr


def test_recommend_and_history_read_one_machine_of_a_folder(
    attnbench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "fingerprint", lambda: ("here", {}))
    results = copied(Path("results"))
    (machine,) = {json.loads((results / name / "run.json").read_text())["fingerprint"] for name in ("run-a", "run-b")}
    other = (results / "run-b" / "run.json").read_text().replace(machine, "elsewhere")
    (results / "run-b" / "run.json").write_text(other)
    for command, lines in (("recommend", 4), ("history", 8)):
        done = attnbench_command(command, "results")
        assert done.returncode == 2
        assert "--machine is needed: the runs are of 2 machines, none of them this one: " in done.stderr
        assert f"{machine} (" in done.stderr
        assert "elsewhere (" in done.stderr
        done = attnbench_command(command, "results", "--machine", "elsewhere", "--json")
        found = json.loads(done.stdout)["choices"] if command == "recommend" else done.stdout.splitlines()
        assert len(found) == lines
        assert "1 other machine is in these runs; --machine selects one" in done.stderr
        assert "no machine 'x'" in attnbench_command(command, "results", "--machine", "x").stderr
    done = attnbench_command("history", "results", "--add", "run-a")
    assert "results is a folder of runs: leave out --add" in done.stderr


def test_a_run_that_is_still_being_measured_is_noted(attnbench_command: Command) -> None:
    copied(Path("results"))
    note = "results/run-a is still being measured: its results so far are read\n"
    with FileLock("results/run-a/.lock"):
        done = attnbench_command("recommend", "results/run-a")
        assert (done.returncode, done.stderr) == (0, note)
        assert note not in attnbench_command("recommend", "results/run-b").stderr
    assert note not in attnbench_command("recommend", "results/run-a").stderr


def test_report_of_a_folder_holds_the_chosen_results_alone(attnbench_command: Command) -> None:
    results = copied(Path("results"))
    done = attnbench_command("report", "results", "--only", "backend=naive", "--only", "seq=32", "--plots", "svg")
    assert done.returncode == 0
    table = pd.read_csv(results / "report" / "data.csv")
    assert (
        list(zip(table["backend"], table["seq_q"], table["mask"], strict=True))
        == [("naive", 32, mask) for mask in ("none", "causal")] * 2
    )
    assert set(table["run"]) == {"old", "new"}
    done = attnbench_command("report", "results", "--only", "seq=4096")
    assert (done.returncode, done.stderr) == (2, "attnbench: --only, --skip: no result of results is left\n")
