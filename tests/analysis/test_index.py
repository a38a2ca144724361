"""The index of stored runs: equal to reading them, brought up to date, and never trusted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import duckdb
import msgspec
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.analysis import index, indexed_runs, parallel
from attnbench.analysis.roofline import ceilings_by_device
from attnbench.analysis.rows import Row, rows_of
from attnbench.attention import requests
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import StoreError, UsageError
from attnbench.gate import history
from attnbench.records import results_file, run_directory
from attnbench.records.result import Result, Status
from attnbench.records.run_directory import MANIFEST, RESULTS, Manifest
from attnbench.suite import keeps
from tests.samples import ceilings, result

STORED = Path(__file__).parents[1] / "stored" / "0.1.0"
PROBLEMS = (
    Problem(seq_q=64),
    Problem(seq_q=1, seq_kv=4096, heads=8, kv_heads=2, mask="causal"),
    Problem(seq_q=128, score=Score(softcap=30.0, scale=0.5)),
    Problem(seq_q=2**20, batch=64, heads=128, mask="causal"),  # its FLOPs need more than 64 bits
    Problem(batch=2, seq_q=9, seq_kv=9, lengths=(5, 9)),
    Problem(batch=2, seq_q=16, seq_kv=48, requests=requests.spell(((16, 16), (1, 48)))),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "attnbench" / index.FOLDER


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "stream", lambda task, items, pooled=True, pieces=1: (task(item) for item in items))


def store(folder: Path, results: Sequence[Result], **fields: object) -> Path:
    """A run directory with these results."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"schema_version": 1, "attnbench": "0", "created_at": "2026-01-01T00:00:00+00:00", "suite": "made"}
    manifest = msgspec.convert({**plain, "fingerprint": "f", **fields}, Manifest)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    (folder / RESULTS).write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in results))
    return folder


def pair(n: int, share: float = 0.5, restart: int = 0) -> list[Result]:
    """Two arms of one problem, in the same rounds."""
    times = [1e-6 * n * (1 + 0.01 * k) for k in range(6)]
    facts = {"reference": "naive@cpu:threads=1"}
    return [
        result([factor * time for time in times], name, problem=Problem(seq_q=n), restart=restart, facts=facts)
        for factor, name in ((1.0, "naive"), (share, "sdpa:flash"))
    ]


def rows(*runs: Path) -> list[tuple[str, Row]]:
    with indexed_runs.opened(runs, lambda _: None, "a test") as stored:
        return list(stored.rows())


def read(run: Path) -> list[tuple[str, Row]]:
    """The rows of a run without an index."""
    loaded = run_directory.read(run)
    made = rows_of(loaded.results, ceilings=ceilings_by_device(loaded.manifest), arms=loaded.manifest.arms)
    return [(str(run), row) for row in made]


MADE = st.builds(
    lambda problem, backend, restart, times, status: (
        result(times, backend, restart=restart, problem=problem)
        if status is Status.OK
        else result((), backend, restart=restart, problem=problem, status=status, reason='it\'s "broken"\n; DROP')
    ),
    st.sampled_from(PROBLEMS), st.sampled_from(("naive", "sdpa:flash", "flex")), st.integers(0, 2),
    st.lists(st.floats(1e-7, 10), min_size=1, max_size=6), st.sampled_from((Status.OK, Status.OK, Status.CRASHED)),
)  # fmt: skip


@settings(max_examples=10)
@given(results=st.lists(MADE, max_size=12))
def test_index_has_the_rows_that_reading_gives(results: list[Result], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("runs")
    run = store(folder / "a", results, ceilings={"cpu:threads=1": msgspec.to_builtins(ceilings())})
    chosen = ["backend=naive,flex"], ["seq_q=..64"]
    with indexed_runs.opened([run], lambda _: None, "a test") as stored:
        assert list(stored.rows()) == read(run)
        selected = stored.select(keeps(*chosen), 100)
    whole = results_file.chosen(run_directory.read(run).results, keeps(*chosen))
    assert [list(each.results) for each in selected] == ([list(whole)] if whole else [])


def test_index_has_the_rows_of_stored_runs_of_all_kinds() -> None:
    runs = run_directory.stored_in(STORED)
    assert len(runs) == 3
    assert rows(*runs) == [row for run in runs for row in read(run)]
    assert rows(runs[2], runs[0]) == read(runs[2]) + read(runs[0])


class Reader:
    """Which runs are read for an index."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        original = index._read
        monkeypatch.setattr(index, "_read", lambda path: self.names.append(path.name) or original(path))

    def since(self) -> list[str]:
        names, self.names = self.names, []
        return names


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return store(tmp_path / "runs" / "a", pair(64)), store(tmp_path / "runs" / "b", pair(128))


def test_only_what_changed_is_read_again(two: tuple[Path, Path], reader: Reader) -> None:
    a, b = two
    assert rows(*two) == read(a) + read(b)
    assert reader.since() == ["a", "b"]
    assert rows(*two) == read(a) + read(b)
    assert reader.since() == []
    with (b / RESULTS).open("ab") as file:
        file.write(b"".join(msgspec.json.encode(each) + b"\n" for each in pair(256)))
    assert rows(*two) == read(a) + read(b)
    assert reader.since() == ["b"]
    c = store(b.parent / "c", pair(512))
    assert rows(*two, c) == read(a) + read(b) + read(c)
    assert reader.since() == ["c"]
    (a / MANIFEST).unlink()
    assert rows(b, c) == read(b) + read(c)
    assert reader.since() == []
    with indexed_runs.opened([b, c], lambda _: None, "a test") as stored:
        assert stored.connection.execute("SELECT DISTINCT run FROM folder_0.rows ORDER BY run").fetchall() == [
            ("b",),
            ("c",),
        ]


def test_times_of_files_are_part_of_what_an_index_was_made_from(two: tuple[Path, Path], reader: Reader) -> None:
    rows(*two)
    reader.since()
    changed = (two[0] / RESULTS).read_bytes().replace(b"1e-06", b"2e-06")
    (two[0] / RESULTS).write_bytes(changed)
    os.utime(two[0] / RESULTS, ns=(1, 1))
    assert rows(*two) == read(two[0]) + read(two[1])
    assert reader.since() == ["a"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "empty", "deleted"])
def test_damaged_index_is_made_again(damage: str, two: tuple[Path, Path], reader: Reader, own_cache: Path) -> None:
    before = rows(*two)
    reader.since()
    (file,) = own_cache.glob(f"*{index.SUFFIX}")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    changed = {"cut": content[: len(content) // 2], "foreign": b"SQLite format 3", "empty": b""}.get(damage, content)
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(changed)
    assert rows(*two) == before
    assert reader.since() == ["a", "b"]
    (file,) = own_cache.glob(f"*{index.SUFFIX}")


def test_another_version_of_the_code_makes_the_index_again(
    two: tuple[Path, Path], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(*two)
    reader.since()
    monkeypatch.setattr(index.identity, "code_digest", lambda patterns: "other")
    rows(*two)
    assert reader.since() == ["a", "b"]
    rows(*two)
    assert reader.since() == []


def test_valid_database_that_is_no_index_is_replaced(two: tuple[Path, Path], reader: Reader, own_cache: Path) -> None:
    rows(*two)
    reader.since()
    (file,) = own_cache.glob(f"*{index.SUFFIX}")
    file.unlink()
    with duckdb.connect(own_cache / "other") as connection:
        connection.execute("CREATE TABLE rows (n INT)")
    index._publish(own_cache / "other", file.name.split(".")[0])
    assert rows(*two) == read(two[0]) + read(two[1])
    assert reader.since() == ["a", "b"]


def test_run_that_is_being_written_gives_what_is_complete(tmp_path: Path) -> None:
    run = store(tmp_path / "runs" / "a", pair(64))
    whole = rows(run)
    with (run / RESULTS).open("ab") as file:
        file.write(b'garbage\n{"case": {"prob')
    with indexed_runs.opened([run], lambda _: None, "a test") as stored:
        assert list(stored.rows()) == whole
        assert stored.notes == (f"2 lines left out, not readable as results: in {run}",)


def test_at_most_three_runs_with_lines_that_hold_no_result_are_named(tmp_path: Path) -> None:
    runs = [store(tmp_path / "runs" / name, pair(64)) for name in "abcde"]
    for run in runs:
        with (run / RESULTS).open("ab") as file:
            file.write(b"garbage\n")
    with indexed_runs.opened(runs, lambda _: None, "a test") as stored:
        (note,) = stored.notes
    named = ", ".join(map(str, runs[:3]))
    assert note == f"5 lines left out, not readable as results: in {named} and 2 more runs"


def test_run_that_cannot_be_read_is_left_out_with_its_reason(two: tuple[Path, Path]) -> None:
    (two[0] / MANIFEST).write_text('{"schema_version": 99}')
    with indexed_runs.opened(two, lambda _: None, "a test") as stored:
        assert list(stored.rows()) == read(two[1])
        (note,) = stored.notes
    assert f"{two[0]} is left out" in note
    assert "format 99" in note


def test_index_is_in_memory_where_the_cache_cannot_be_written(
    two: tuple[Path, Path], own_cache: Path, tmp_path: Path
) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file in place of the folder")
    with indexed_runs.opened(two, lambda _: None, "a test") as stored:
        assert list(stored.rows()) == read(two[0]) + read(two[1])
        (note,) = stored.notes
    assert note == f"the index is in memory, because it cannot be stored: {own_cache}: File exists"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/c/x.draft"), "/c/x.draft: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (duckdb.IOException("IO Error: cannot\nwrite"), "IO Error: cannot write"),
    ],
)
def test_reason_for_an_index_in_memory_has_no_number_of_an_error(
    error: Exception, words: str, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(index, "refreshed", fail)
    with indexed_runs.opened(two, lambda _: None, "a test") as stored:
        assert stored.notes == (f"the index is in memory, because it cannot be stored: {words}",)


def test_full_disk_leaves_an_index_in_memory_and_no_draft(two: tuple[Path, Path], own_cache: Path) -> None:
    """The limit on the size of a file, in a child process, stands for a full disk."""
    program = (
        "import resource, sys; from pathlib import Path; from attnbench.cli import invoke; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "sys.exit(invoke(['query', 'SELECT count(*) AS n FROM results', sys.argv[1], '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(two[0].parent)],  # -B: modules would be stored cut off
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"n":4}\n'
    assert "the index is in memory, because it cannot be stored: " in done.stderr
    assert [file for file in own_cache.iterdir() if file.suffix != ".lock"] == []


def test_two_processes_at_once_make_one_index(two: tuple[Path, Path], own_cache: Path) -> None:
    command = [sys.executable, "-m", "attnbench", "query", "SELECT count(*) AS n FROM results", "--json"]
    processes = [
        subprocess.Popen([*command, str(two[0].parent)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, '{"n":4}\n'), error
    assert len(list(own_cache.glob(f"*{index.SUFFIX}"))) == 1


def test_interruption_keeps_what_is_complete(
    two: tuple[Path, Path], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "BATCH", 1)

    def stop(text: str) -> None:
        if "1 of 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), indexed_runs.opened(two, stop, "a test"):
        pass
    assert reader.since() == ["a"]
    rows(*two)
    assert reader.since() == ["b"]


def test_more_results_than_the_limit_are_refused_before_they_are_read(two: tuple[Path, Path]) -> None:
    with indexed_runs.opened(two, lambda _: None, "a test") as stored:
        with pytest.raises(UsageError, match="4 results are more than the 3 of one report"):
            stored.select(None, 3)
        assert [len(run.results) for run in stored.select(None, 4)] == [2, 2]


@pytest.mark.parametrize("in_memory", [0, 100])
def test_selected_results_are_those_of_the_file(
    two: tuple[Path, Path], in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed_runs, "MAX_IN_MEMORY", in_memory)
    with indexed_runs.opened(two, lambda _: None, "a test") as stored:
        selected = stored.select(keeps(["backend=naive"], None), 100)
    assert [isinstance(run.results, list) for run in selected] == [in_memory > 0] * 2
    assert [list(run.results) for run in selected] == [run_directory.read(path).results[:1] for path in two]
    assert [rows_of(run.results) for run in selected] == [rows_of(list(run.results)) for run in selected]


def test_newest_run_that_ranks_most_arms_counts(tmp_path: Path) -> None:
    runs = [
        store(tmp_path / "runs" / name, results, created_at=f"2026-01-0{day}T00:00:00+00:00", fingerprint=machine)
        for name, results, day, machine in (
            ("old", pair(64, 0.5), 1, "f"),
            ("new", pair(64, 0.7), 2, "f"),
            ("alone", pair(64, 0.1)[1:], 3, "f"),
            ("other", pair(64, 0.1), 4, "g"),
            ("first", pair(128, 0.9), 1, "f"),
        )
    ]
    with indexed_runs.opened(runs, lambda _: None, "a test") as stored:
        newest, path = stored.newest("f")
        assert stored.machines() == {"f": "None", "g": "None"}
    assert newest == [row for _, row in read(runs[1]) + read(runs[4])]
    assert path == runs[1]


def test_nodes_with_one_fingerprint_are_machines_of_their_own(tmp_path: Path) -> None:
    runs = [
        store(
            tmp_path / "runs" / name, pair(64, seconds), created_at=f"2026-01-0{day}T00:00:00+00:00", fingerprint="f",
            tags={"node": name} if name != "plain" else {},
        )
        for name, seconds, day in (("a", 0.5, 1), ("b", 0.7, 2), ("plain", 0.9, 3))
    ]  # fmt: skip
    with indexed_runs.opened(runs, lambda _: None, "a test") as stored:
        assert list(stored.machines()) == ["f", "f/a", "f/b"]
        newest = {machine: stored.newest(machine)[1] for machine in stored.machines()}
        points = {machine: history.points_of(stored, machine) for machine in stored.machines()}
    assert newest == {"f/a": runs[0], "f/b": runs[1], "f": runs[2]}
    assert {machine: [each.run for each in of] for machine, of in points.items()} == {
        "f/a": ["a"], "f/b": ["b"], "f": ["plain"]
    }  # fmt: skip
    assert points["f/a"] == [history.point(run_directory.read(runs[0]))]


def test_points_of_a_history_are_those_of_the_runs() -> None:
    runs = run_directory.stored_in(STORED)
    with indexed_runs.opened(runs, lambda _: None, "a test") as stored:
        (machine,) = stored.machines()
        points = history.points_of(stored, machine)
        causal = history.points_of(stored, machine, "causal")
    assert points == [history.point(run_directory.read(run)) for run in runs]
    assert {name for point in causal for name in point.seconds} == {
        name for point in points for name in point.seconds if "causal" in name
    }


def test_command_waits_for_another_that_makes_the_index(two: tuple[Path, Path], own_cache: Path) -> None:
    rows(*two)
    (lock,) = own_cache.glob("*.lock")
    holder, steps = FileLock(lock), list[str]()
    holder.acquire()

    def step(text: str) -> None:
        steps.append(text)
        holder.release()

    with indexed_runs.opened(two, step, "a test") as stored:
        assert len(list(stored.rows())) == 4
    assert steps == ["waiting for another attnbench that reads these runs"]


def test_time_of_a_run_that_is_no_time_is_missing(tmp_path: Path) -> None:
    run = store(tmp_path / "runs" / "a", pair(64), created_at="yesterday")
    with indexed_runs.opened([run], lambda _: None, "a test") as stored:
        assert stored.connection.execute("SELECT created_at FROM runs").fetchall() == [(None,)]


def test_file_that_vanished_after_it_was_indexed_is_named(two: tuple[Path, Path]) -> None:
    with indexed_runs.opened(two, lambda _: None, "a test") as stored:
        (two[0] / RESULTS).unlink()
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            stored.select(None, 100)
