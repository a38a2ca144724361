"""Run directories: what is written survives kills, full disks and rivals; what is read is what was written."""

from __future__ import annotations

import json
import os
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench import store
from attnbench.arm import Arm
from attnbench.attention.problem import Mode, Problem
from attnbench.case import Case
from attnbench.errors import NotComparableError, SchemaError, StoreError
from attnbench.result import Block, Environment, Procedure, Result, Sample, Status, Timing, sample
from attnbench.store import Manifest, RunWriter

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 21, 0, 15, tzinfo=UTC)


def manifest(**fields: Any) -> Manifest:
    usual = {"schema_version": store.VERSION, "attnbench": "0.1.0", "created_at": NOW.isoformat(), "suite": "quick"}
    return Manifest(**(usual | {"fingerprint": "abc"} | fields))


def result(seq: int, backend: str = "naive", status: Status = Status.OK, **fields: Any) -> Result:
    case = Case(problem=Problem(seq_q=seq, mask="causal"), backend=backend, mode=Mode.FWD)
    arm = Arm(backend=backend, device="cpu:threads=1")
    samples = {"time": sample("s", [1e-3, 1.1e-3], (Block(round=0, position=1, readings=2),))} if status == "ok" else {}
    return Result(case=case, case_id=case.id, arm=arm, status=status, samples=samples, **fields)


def stored(directory: Path, *results: Result, **fields: Any) -> Path:
    with RunWriter(directory, manifest(**fields)) as writer:
        writer.append(results)
    return directory


def lengths(directory: Path) -> list[int]:
    return [one.case.problem.seq_q for one in store.read(directory).results]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two results."""
    return stored(tmp_path / "run", result(8), result(16))


# -- reading -----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    results = [result(8), result(8, "flex", Status.UNSUPPORTED, reason="no causal"), result(8, launch=1)]
    run = store.read(stored(tmp_path / "run", *results, tags={"who": "ci"}))
    assert (run.manifest, run.results, run.skipped_lines) == (manifest(tags={"who": "ci"}), results, 0)


def test_last_line_of_a_key_counts_in_the_place_of_the_first(run: Path) -> None:
    again = result(8, status=Status.ERROR, reason="late")
    stored(run, again)
    assert store.read(run).results == [again, result(16)]


def test_results_are_found_by_their_keys(run: Path) -> None:
    assert store.read(run).by_key[result(16).key] == result(16)


@pytest.mark.parametrize(
    "garbage",
    [b"not json", b"", b"{}", b"[1, 2]", b"\xff\xfe", b"\x00" * 40, b'{"case":' + b"[" * 100_000, b"null"],
    ids=["words", "empty", "no fields", "list", "no text", "zeros", "deep", "null"],
)
def test_garbage_line_is_counted_and_passed_over(run: Path, garbage: bytes) -> None:
    with (run / store.RESULTS).open("ab") as file:
        file.write(garbage + b"\n")
    stored(run, result(32))
    assert (lengths(run), store.read(run).skipped_lines) == ([8, 16, 32], 1)


def test_line_with_an_impossible_problem_is_garbage(run: Path) -> None:
    line = json.loads(msgspec.json.encode(result(64)))
    line["case"]["problem"]["mask"] = "no such mask"
    with (run / store.RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert (lengths(run), store.read(run).skipped_lines) == ([8, 16], 1)


def test_torn_last_line_is_no_result(run: Path) -> None:
    torn(run)
    assert (lengths(run), store.read(run).skipped_lines) == ([8], 1)


def test_manifest_without_results_is_an_empty_run(run: Path) -> None:
    (run / store.RESULTS).unlink()
    assert store.read(run).results == []


@pytest.mark.parametrize("version", [2, 99])
def test_newer_format_is_refused_with_both_versions(run: Path, version: int) -> None:
    # Its other keys need not be those of this version.
    (run / store.MANIFEST).write_text(json.dumps({"schema_version": version, "shape": "unheard of"}))
    with pytest.raises(SchemaError, match=rf"run\.json: format {version}, .* reads up to 1: upgrade it"):
        store.read(run)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"schema_version": "one"}', '{"schema_version": 1}', "[]"])
def test_manifest_that_is_none_is_refused_with_its_path(run: Path, text: str) -> None:
    (run / store.MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"run/run\.json cannot be read: "):
        store.read(run)


def test_directory_without_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no run directory: No such file or directory: run\.json"):
        store.read(tmp_path)


# -- going on ----------------------------------------------------------------------------------------------------------


def torn(run: Path) -> None:
    """Cut the last line in its middle."""
    data = (run / store.RESULTS).read_bytes()
    (run / store.RESULTS).write_bytes(data[:-40])


def test_writer_cuts_a_torn_line_off(run: Path) -> None:
    torn(run)
    stored(run, result(32))
    assert (lengths(run), store.read(run).skipped_lines) == ([8, 32], 0)


def test_whole_result_without_line_end_is_kept(run: Path) -> None:
    (run / store.RESULTS).write_bytes((run / store.RESULTS).read_bytes()[:-1])
    stored(run, result(32))
    assert lengths(run) == [8, 16, 32]


def test_torn_line_longer_than_a_block_is_cut_off(run: Path) -> None:
    with (run / store.RESULTS).open("ab") as file:
        file.write(b'{"case":' + b" " * 300_000)
    stored(run, result(32))
    assert (lengths(run), store.read(run).skipped_lines) == ([8, 16, 32], 0)


@settings(max_examples=40)
@given(share=st.floats(0, 1))
def test_file_cut_anywhere_loses_its_last_line_at_most(share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = stored(Path(folder) / "run", result(8), result(16), result(32))
        whole = (run / store.RESULTS).read_bytes()
        cut = whole[: round(share * len(whole))]
        (run / store.RESULTS).write_bytes(cut)
        complete = [8, 16, 32][: cut.count(b"\n")]
        stored(run, result(64))
        assert lengths(run) in ([*complete, 64], [*complete, *[8, 16, 32][len(complete) :][:1], 64])


def test_manifest_of_a_run_that_goes_on_is_the_old_one_with_what_is_new(run: Path) -> None:
    flex, naive = (Arm(backend=name, device="cpu") for name in ("flex", "naive"))
    with RunWriter(run, manifest(arms=(naive,), tags={"a": "1"}, machine={"cpu": "X"})) as writer:
        writer.update(environments={naive.id: Environment(device="X")}, seconds={"rounds": 2.5})
    stored(run, arms=(flex,), tags={"b": "2"}, created_at="later", request={"axes": {"seq": "8"}}, machine={"load": 9})
    now = store.read(run).manifest
    assert (now.created_at, now.arms, now.tags) == (NOW.isoformat(), (naive, flex), {"a": "1", "b": "2"})
    assert (now.request, now.environments) == ({"axes": {"seq": "8"}}, {naive.id: Environment(device="X")})


def test_other_machine_is_refused_with_both_values(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", machine={"cpu": "Xeon", "load": 0.1})
    with pytest.raises(NotComparableError) as caught:
        RunWriter(run, manifest(fingerprint="def", machine={"cpu": "Epyc", "load": 0.9}))
    changes = "machine: abc then, def now; cpu: Xeon then, Epyc now"
    assert str(caught.value) == f"{run} was begun otherwise ({changes}); --force goes on all the same"


def test_other_timing_is_refused(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", procedures={"cuda": Procedure(timing=Timing.EVENTS)})
    with pytest.raises(NotComparableError, match="cuda timing: events then, graph now"):
        RunWriter(run, manifest(procedures={"cuda": Procedure(timing=Timing.GRAPH)}))


def test_other_budget_and_rounds_are_no_matter(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", procedures={"cpu": Procedure(rounds_most=30)})
    stored(run, procedures={"cpu": Procedure(rounds_most=10, rel_ci=0.1)})
    assert store.read(run).manifest.procedures["cpu"].rounds_most == 10


def test_forced_results_carry_their_own_machine(run: Path) -> None:
    with RunWriter(run, manifest(fingerprint="def"), force=True) as writer:
        writer.append([result(32)])
    now = store.read(run)
    assert now.manifest.fingerprint == "abc"
    assert [one.facts.get("fingerprint") for one in now.results] == [None, None, "def"]


def test_refused_writer_leaves_the_directory_free(run: Path) -> None:
    with pytest.raises(NotComparableError):
        RunWriter(run, manifest(fingerprint="def"))
    stored(run, result(32))
    assert lengths(run) == [8, 16, 32]


@pytest.mark.parametrize(
    ("status", "reason", "settled", "settled_on_retry"),
    [
        (Status.OK, "", True, True),
        (Status.UNSUPPORTED, "no bwd", True, True),
        (Status.UNAVAILABLE, "not installed", True, True),
        (Status.SKIPPED, "needs 16.1 GiB, limit 9.6 GiB", True, True),
        (Status.SKIPPED, "budget", False, False),
        (Status.SKIPPED, "budget: 45 s are over", False, False),
        (Status.OOM, "out of memory", True, False),
        (Status.INCORRECT, "zeros", True, False),
        (Status.TIMEOUT, "60 s", True, False),
        (Status.CRASHED, "signal 11", True, False),
        (Status.ERROR, "raised", True, False),
    ],
)
def test_what_a_resume_leaves_alone(
    tmp_path: Path, status: Status, reason: str, settled: bool, settled_on_retry: bool
) -> None:
    run = store.read(stored(tmp_path / "run", result(8, status=status, reason=reason)))
    done = [bool(store.done_keys(run, retry_failed)) for retry_failed in (False, True)]
    assert done == [settled, settled_on_retry]


# -- places ------------------------------------------------------------------------------------------------------------


def test_results_lie_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNBENCH_RESULTS", "/elsewhere")
    assert store.results_root() == Path("/elsewhere")


def test_results_lie_below_the_working_directory_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNBENCH_RESULTS")
    assert store.results_root() == Path("results")


@pytest.mark.parametrize(
    ("suite", "device", "name"),
    [
        ("quick", "cpu:threads=1", "20261121T001500Z-quick-cpu"),
        ("quick+ci", "cuda:1", "20261121T001500Z-quick+ci-cuda1"),
        ("my suite/../x", "cpu", "20261121T001500Z-my_suite_.._x-cpu"),
    ],
)
def test_name_of_a_run_has_time_suite_and_device(tmp_path: Path, suite: str, device: str, name: str) -> None:
    made = store.new_directory(tmp_path / "results", suite, device, NOW)
    assert (made, made.is_dir()) == (tmp_path / "results" / name, True)


def test_second_run_of_a_second_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = [store.new_directory(tmp_path, "quick", "cpu", NOW).name for _ in range(3)]
    assert names == [f"20261121T001500Z-quick-cpu{suffix}" for suffix in ("", ".2", ".3")]


def test_last_is_the_newest_run(tmp_path: Path) -> None:
    for stamp in ("20261121T001500Z-b-cpu", "20261121T001501Z-a-cpu", "20251121T001500Z-c-cpu"):
        stored(tmp_path / stamp)
    assert store.resolve("last", tmp_path).name == "20261121T001501Z-a-cpu"


def test_last_knows_the_age_of_a_run_with_a_name_of_its_own(tmp_path: Path) -> None:
    stored(tmp_path / "20261121T001500Z-quick-cpu")
    stored(tmp_path / "mine")
    os.utime(tmp_path / "mine" / store.MANIFEST, (0, 0))
    assert store.resolve("last", tmp_path).name == "20261121T001500Z-quick-cpu"


def test_run_is_found_by_name_and_by_path(run: Path) -> None:
    assert store.resolve("run", run.parent) == store.resolve(str(run), Path("nowhere")) == run


def test_missing_run_comes_with_what_is_there(run: Path) -> None:
    with pytest.raises(StoreError, match=r"no run 'gone': .* \(newest there: run\)$"):
        store.resolve("gone", run.parent)


def test_last_of_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run in .*/results/ yet: attnbench run makes one"):
        store.resolve("last", tmp_path / "results")


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
    assert store.anonymous(text.format(**places)) == expected.format(**places)


def test_neither_file_names_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/export/jane")
    crash = result(8, status=Status.ERROR, reason="no /export/jane/k.so", facts={"trace": 'File "/export/jane/k.py"'})
    run = stored(tmp_path / "run", crash, command="attnbench run -b /export/jane/k.py:f")
    assert not [path.name for path in run.iterdir() if "jane" in path.read_text()]


# -- schemas -----------------------------------------------------------------------------------------------------------


def fields(kind: Any) -> set[str]:
    """Every key of a record and of the records within it."""
    found = set()
    for field in msgspec.structs.fields(kind):
        found |= {field.name} | (fields(field.type) if hasattr(field.type, "__struct_fields__") else set())
    return found


@pytest.mark.parametrize("kind", [Manifest, Result, Sample, Block, Environment], ids=lambda kind: kind.__name__)
def test_every_key_is_documented(kind: type[msgspec.Struct]) -> None:
    runs = (ROOT / "docs" / "formats.md").read_text().partition("## Runs")[2]
    assert fields(kind) <= set(re.findall(r"`(\w+)`", runs))


def test_schemas_in_the_documentation_are_current(tmp_path: Path) -> None:
    store.write_schemas(tmp_path)
    kept = {path.name: path.read_text() for path in (ROOT / "docs" / "schema").glob("*.json")}
    remedy = (
        "python -c 'from pathlib import Path; from attnbench import store; store.write_schemas(Path(\"docs/schema\"))'"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == kept, f"to mend: {remedy}"


@pytest.mark.parametrize(("name", "kind"), [("run.json", Manifest), ("result.json", Result)])
def test_schema_requires_what_a_reader_needs(name: str, kind: type[msgspec.Struct]) -> None:
    needed = [field.name for field in msgspec.structs.fields(kind) if field.required]
    assert store.schemas()[name]["$defs"][kind.__name__]["required"] == needed
