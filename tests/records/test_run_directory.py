"""Run directories: what is written survives kills, full disks and rivals; what is read is what was written."""

from __future__ import annotations

import inspect
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.attention.problem import Problem
from attnbench.errors import NotComparableError, SchemaError, StoreError
from attnbench.records import run_directory, run_writer
from attnbench.records.arm import Arm
from attnbench.records.result import Cause, Environment, Procedure, Result, Sample, Status, TimedBlock, Timing
from attnbench.records.run_directory import Manifest
from attnbench.records.run_writer import RunWriter
from attnbench.studies.dispatch_table import Dispatch
from tests.records.samples import NOW, lengths, manifest, result, stored
from tools.schemas import schemas, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two results."""
    return stored(tmp_path / "run", result(8), result(16))


# -- reading -----------------------------------------------------------------------------------------------------------


def test_written_results_are_read(tmp_path: Path) -> None:
    results = [result(8), result(8, "flex", Status.UNSUPPORTED, reason="no causal"), result(8, restart=1)]
    run = run_directory.read(stored(tmp_path / "run", *results, tags={"who": "ci"}))
    assert (run.manifest, run.results, run.skipped_lines) == (manifest(tags={"who": "ci"}), results, 0)


def test_a_stored_result_holds_the_id_of_its_case(tmp_path: Path) -> None:
    made = msgspec.structs.replace(result(8), case_id="")
    (read,) = run_directory.read(stored(tmp_path / "run", made)).results
    assert read.case_id == made.case.id


def test_last_line_of_a_key_counts_in_the_place_of_the_first(run: Path) -> None:
    again = result(8, status=Status.ERROR, reason="late")
    stored(run, again)
    assert run_directory.read(run).results == [again, result(16)]


@pytest.mark.parametrize(
    "garbage",
    [b"not json", b"", b"{}", b"[1, 2]", b"\xff\xfe", b"\x00" * 40, b'{"case":' + b"[" * 100_000, b"null"],
    ids=["words", "empty", "no fields", "list", "no text", "zeros", "deep", "null"],
)
def test_garbage_line_is_counted_and_ignored(run: Path, garbage: bytes) -> None:
    with (run / run_directory.RESULTS).open("ab") as file:
        file.write(garbage + b"\n")
    stored(run, result(32))
    assert (lengths(run), run_directory.read(run).skipped_lines) == ([8, 16, 32], 1)


def test_line_with_an_impossible_problem_is_garbage(run: Path) -> None:
    line = json.loads(msgspec.json.encode(result(64)))
    line["case"]["problem"]["mask"] = "no such mask"
    with (run / run_directory.RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert (lengths(run), run_directory.read(run).skipped_lines) == ([8, 16], 1)


def test_incomplete_last_line_is_no_result(run: Path) -> None:
    torn(run)
    assert (lengths(run), run_directory.read(run).skipped_lines) == ([8], 1)


def test_manifest_without_results_is_an_empty_run(run: Path) -> None:
    (run / run_directory.RESULTS).unlink()
    assert run_directory.read(run).results == []


@pytest.mark.parametrize("version", [2, 99])
def test_newer_format_is_refused_with_both_versions(run: Path, version: int) -> None:
    # Its other keys need not be those of this version.
    (run / run_directory.MANIFEST).write_text(json.dumps({"schema_version": version, "shape": "unheard of"}))
    with pytest.raises(SchemaError, match=rf"run\.json: format {version}, .* reads up to 1: upgrade it"):
        run_directory.read(run)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"schema_version": "one"}', '{"schema_version": 1}', "[]"])
def test_manifest_that_is_none_is_refused_with_its_path(run: Path, text: str) -> None:
    (run / run_directory.MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"run/run\.json cannot be read: "):
        run_directory.read(run)


def test_directory_without_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is not a run directory: No such file or directory: run\.json"):
        run_directory.read(tmp_path)


# -- going on ----------------------------------------------------------------------------------------------------------


def torn(run: Path) -> None:
    """Cut the last line in its middle."""
    data = (run / run_directory.RESULTS).read_bytes()
    (run / run_directory.RESULTS).write_bytes(data[:-40])


def test_writer_cuts_a_torn_line_off(run: Path) -> None:
    torn(run)
    stored(run, result(32))
    assert (lengths(run), run_directory.read(run).skipped_lines) == ([8, 32], 0)


def test_whole_result_without_line_end_is_kept(run: Path) -> None:
    (run / run_directory.RESULTS).write_bytes((run / run_directory.RESULTS).read_bytes()[:-1])
    stored(run, result(32))
    assert lengths(run) == [8, 16, 32]


def test_torn_line_longer_than_a_block_is_cut_off(run: Path) -> None:
    with (run / run_directory.RESULTS).open("ab") as file:
        file.write(b'{"case":' + b" " * 300_000)
    stored(run, result(32))
    assert (lengths(run), run_directory.read(run).skipped_lines) == ([8, 16, 32], 0)


@settings(max_examples=40)
@given(share=st.floats(0, 1))
def test_file_cut_anywhere_loses_its_last_line_at_most(share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = stored(Path(folder) / "run", result(8), result(16), result(32))
        whole = (run / run_directory.RESULTS).read_bytes()
        cut = whole[: round(share * len(whole))]
        (run / run_directory.RESULTS).write_bytes(cut)
        complete = [8, 16, 32][: cut.count(b"\n")]
        stored(run, result(64))
        assert lengths(run) in ([*complete, 64], [*complete, *[8, 16, 32][len(complete) :][:1], 64])


def test_manifest_of_a_run_that_goes_on_is_the_old_one_with_what_is_new(run: Path) -> None:
    flex, naive = (Arm(backend=name, device="cpu") for name in ("flex", "naive"))
    with RunWriter(run, manifest(arms=(naive,), tags={"a": "1"}, machine={"cpu": "X"})) as writer:
        writer.update(environments={naive.id: Environment(device="X")}, seconds={"rounds": 2.5})
    stored(run, arms=(flex,), tags={"b": "2"}, created_at="later", request={"axes": {"seq": "8"}}, machine={"load": 9})
    now = run_directory.read(run).manifest
    assert (now.created_at, now.arms, now.tags) == (NOW.isoformat(), (naive, flex), {"a": "1", "b": "2"})
    assert (now.request, now.environments) == ({"axes": {"seq": "8"}}, {naive.id: Environment(device="X")})


def test_other_machine_is_refused_with_both_values(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", machine={"cpu": "Xeon", "load": 0.1})
    with pytest.raises(NotComparableError) as caught:
        RunWriter(run, manifest(fingerprint="def", machine={"cpu": "Epyc", "load": 0.9}))
    changes = "machine: abc then, def now; cpu: Xeon then, Epyc now"
    assert str(caught.value) == f"{run} was started differently ({changes}); --force continues anyway"


def test_other_timing_is_refused(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", procedures={"cuda": Procedure(timing=Timing.EVENTS)})
    with pytest.raises(NotComparableError, match="cuda timing: events then, graph now"):
        RunWriter(run, manifest(procedures={"cuda": Procedure(timing=Timing.GRAPH)}))


def test_other_budget_and_rounds_are_allowed(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", procedures={"cpu": Procedure(max_rounds=30)})
    stored(run, procedures={"cpu": Procedure(max_rounds=10, rel_ci=0.1)})
    assert run_directory.read(run).manifest.procedures["cpu"].max_rounds == 10


def test_forced_results_carry_their_machine_where_it_is_another(run: Path) -> None:
    for seq, fingerprint in ((32, "def"), (64, "abc")):
        with RunWriter(run, manifest(fingerprint=fingerprint), force=True) as writer:
            writer.append([result(seq)])
    now = run_directory.read(run)
    assert now.manifest.fingerprint == "abc"
    assert [result.facts.get("fingerprint") for result in now.results] == [None, None, "def", None]


def test_refused_writer_leaves_the_directory_free(run: Path) -> None:
    with pytest.raises(NotComparableError):
        RunWriter(run, manifest(fingerprint="def"))
    stored(run, result(32))
    assert lengths(run) == [8, 16, 32]


@pytest.mark.parametrize(
    ("status", "why", "settled", "settled_on_retry"),
    [
        (Status.OK, "", True, True),
        (Status.UNSUPPORTED, "backward unsupported", True, True),
        (Status.UNAVAILABLE, "not installed", True, True),
        (Status.SKIPPED, Cause.MEMORY, True, True),
        (Status.SKIPPED, Cause.NO_REFERENCE, True, True),
        (Status.SKIPPED, Cause.NO_LARGER, True, False),
        (Status.SKIPPED, Cause.BUDGET, False, False),
        (Status.OOM, "out of memory", True, False),
        (Status.INCORRECT, "zeros", True, False),
        (Status.TIMEOUT, "60 s", True, False),
        (Status.CRASHED, "signal 11", True, False),
        (Status.ERROR, "raised", True, False),
    ],
)
def test_keys_that_a_resume_does_not_measure_again(
    tmp_path: Path, status: Status, why: Cause | str, settled: bool, settled_on_retry: bool
) -> None:
    cause = why if isinstance(why, Cause) else None
    run = run_directory.read(stored(tmp_path / "run", result(8, status=status, reason="why", cause=cause)))
    done = [bool(run_directory.done_keys(run, retry_failed)) for retry_failed in (False, True)]
    assert done == [settled, settled_on_retry]


# -- places ------------------------------------------------------------------------------------------------------------


def test_results_are_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_RESULTS", "/elsewhere")
    assert run_directory.results_root() == Path("/elsewhere")


def test_results_are_below_the_working_directory_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNBENCH_RESULTS")
    assert run_directory.results_root() == Path("results")


@pytest.mark.parametrize(
    ("suite", "device", "name"),
    [
        ("quick", "cpu:threads=1", "20261121T001500Z-quick-cpu"),
        ("quick+ci", "cuda:1", "20261121T001500Z-quick+ci-cuda1"),
        ("my suite/../x", "cpu", "20261121T001500Z-my_suite_.._x-cpu"),
    ],
)
def test_name_of_a_run_has_time_suite_and_device(tmp_path: Path, suite: str, device: str, name: str) -> None:
    path = run_directory.new_directory(tmp_path / "results", suite, device, NOW)
    assert (path, path.is_dir()) == (tmp_path / "results" / name, True)


def test_second_run_of_a_second_has_another_name(tmp_path: Path) -> None:
    names = [run_directory.new_directory(tmp_path, "quick", "cpu", NOW).name for _ in range(3)]
    assert names == [f"20261121T001500Z-quick-cpu{suffix}" for suffix in ("", ".2", ".3")]


def test_last_is_the_newest_run(tmp_path: Path) -> None:
    for stamp in ("20261121T001500Z-b-cpu", "20261121T001501Z-a-cpu", "20251121T001500Z-c-cpu"):
        stored(tmp_path / stamp)
    assert run_directory.resolve("last", tmp_path).name == "20261121T001501Z-a-cpu"


def test_last_finds_a_run_with_a_chosen_name_by_its_age(tmp_path: Path) -> None:
    stored(tmp_path / "20261121T001500Z-quick-cpu")
    stored(tmp_path / "mine")
    os.utime(tmp_path / "mine" / run_directory.MANIFEST, (0, 0))
    assert run_directory.resolve("last", tmp_path).name == "20261121T001500Z-quick-cpu"


def test_run_is_found_by_name_and_by_path(run: Path) -> None:
    assert run_directory.resolve("run", run.parent) == run_directory.resolve(str(run), Path("nowhere")) == run


def test_missing_run_is_reported_with_the_newest(run: Path) -> None:
    with pytest.raises(StoreError, match=r"no run 'gone': .* \(newest there: run\)$"):
        run_directory.resolve("gone", run.parent)


def test_last_of_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run in .*/results/ yet: attnbench run creates one"):
        run_directory.resolve("last", tmp_path / "results")


def test_names_and_folders_of_runs_give_each_run_once(tmp_path: Path) -> None:
    """In the order of the names; the runs of a folder are the oldest first."""
    old, new = (stored(tmp_path / "runs" / f"2026112{day}T001500Z-quick-cpu") for day in (0, 1))
    other = stored(tmp_path / "root" / "mine")
    names = ["mine", str(new), str(tmp_path / "runs"), "mine"]
    assert run_directory.resolve_all(names, tmp_path / "root") == [other, new, old]


def test_a_folder_without_runs_and_a_missing_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError) as caught:
        run_directory.resolve_all([str(tmp_path / "empty")], Path("results"))
    expected = f"{tmp_path}/empty holds no run: give a run directory, or a folder of runs such as results/"
    assert str(caught.value) == expected
    with pytest.raises(StoreError, match="no run 'gone'"):
        run_directory.resolve_all(["gone"], tmp_path)


def test_a_folder_that_is_no_run_is_refused_where_one_run_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without results
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError) as caught:
        run_directory.resolve(str(tmp_path / "empty"), Path("results"))
    expected = f"{tmp_path}/empty holds no run: give a run directory, or a name in results/ (newest there: none)"
    assert str(caught.value) == expected
    newest = stored(tmp_path / "runs" / "20261121T001500Z-quick-cpu")
    with pytest.raises(StoreError) as caught:
        run_directory.resolve(str(tmp_path / "runs"), Path("results"))
    assert str(caught.value) == f"{tmp_path}/runs is a folder of runs: give one of them, such as {newest}"


def test_a_name_under_the_root_is_a_run_where_a_folder_has_that_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "mine" / "inner")
    assert run_directory.holds_runs("mine", Path("root"))
    stored(tmp_path / "root" / "mine")
    assert not run_directory.holds_runs("mine", Path("root"))
    assert run_directory.resolve_all(["mine"], Path("root")) == [Path("root/mine")]


# -- names of users ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attnbench run -o {here}/out", "attnbench run -o out"),
        ('File "{here}/my.py", line 3', 'File "my.py", line 3'),
        ("no file {home}/k.py", "no file ~/k.py"),
        ("{home}", "~/"),
        ("{home}ly/x {here}s", "{home}ly/x {here}s"),
    ],
)
def test_paths_name_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    places = {"here": tmp_path / "here", "home": tmp_path / "jane"}
    places["here"].mkdir()
    monkeypatch.chdir(places["here"])
    monkeypatch.setenv("HOME", str(places["home"]))
    assert run_writer.anonymous(text.format(**places)) == expected.format(**places)


def test_a_home_at_the_root_is_no_part_of_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert run_writer.anonymous("no file /data/k.py") == "no file /data/k.py"


def test_neither_file_names_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/export/jane")
    crash = result(8, status=Status.ERROR, reason="no /export/jane/k.so", facts={"trace": 'File "/export/jane/k.py"'})
    run = stored(tmp_path / "run", crash, command="attnbench run -b /export/jane/k.py:f")
    assert not [path.name for path in run.iterdir() if "jane" in path.read_text()]


# -- schemas -----------------------------------------------------------------------------------------------------------


def fields(kind: Any) -> set[str]:
    """Every key of a record and of the records within it."""
    names = set()
    for field in msgspec.structs.fields(kind):
        names |= {field.encode_name} | (fields(field.type) if hasattr(field.type, "__struct_fields__") else set())
    return names


@pytest.mark.parametrize("kind", [Manifest, Result, Sample, TimedBlock, Environment], ids=lambda kind: kind.__name__)
def test_every_key_is_documented(kind: type[msgspec.Struct]) -> None:
    runs = (ROOT / "docs" / "formats.md").read_text().partition("## Runs")[2]
    assert fields(kind) <= set(re.findall(r"`(\w+)`", runs))


def test_schemas_in_the_documentation_are_current(tmp_path: Path) -> None:
    write(tmp_path)
    committed = {path.name: path.read_text() for path in (ROOT / "docs" / "schema").glob("*.json")}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == committed, "run: python -m tools.schemas"


def test_schemas_are_those_of_every_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler of Python 3.13 removes the indentation of docstrings."""
    before = schemas()
    for kind in (Problem, Result, Manifest):
        assert kind.__doc__
        monkeypatch.setattr(kind, "__doc__", inspect.cleandoc(kind.__doc__))
    assert schemas() == before
    assert "\n" in before["result.json"]["$defs"]["Problem"]["description"]


@pytest.mark.parametrize(
    ("name", "kind"), [("run.json", Manifest), ("result.json", Result), ("dispatch.json", Dispatch)]
)
def test_schema_requires_what_a_reader_needs(name: str, kind: type[msgspec.Struct]) -> None:
    needed = [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
    assert schemas()[name]["$defs"][kind.__name__]["required"] == needed


def test_a_root_that_is_a_file_or_full_of_this_second_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to"):
        run_directory.new_directory(tmp_path / "file", "quick", "cpu", NOW)
    stem = run_directory.new_directory(tmp_path, "quick", "cpu", NOW).name
    for count in range(2, 1000):
        (tmp_path / f"{stem}.{count}").mkdir()
    with pytest.raises(StoreError, match="holds a thousand runs of this second: use another --out"):
        run_directory.new_directory(tmp_path, "quick", "cpu", NOW)


def test_a_directory_without_a_run_holds_no_keys(tmp_path: Path) -> None:
    assert run_directory.stored_keys(tmp_path, retry_failed=False) == frozenset()
    directory = stored(tmp_path / "run", result(64), result(128, status=Status.CRASHED))
    assert run_directory.stored_keys(directory, retry_failed=False) == {result(64).key, result(128).key}
    assert run_directory.stored_keys(directory, retry_failed=True) == {result(64).key}
