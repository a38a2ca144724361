"""The command that is shown after a run, and the listing of its failures."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.cli import output, running, verify
from attnbench.cli.run_options import RunOptions
from attnbench.cli.running import resume_command
from attnbench.engine import sweep
from attnbench.engine.group import Group
from attnbench.engine.runner import Ending, SilentObserver
from attnbench.engine.sweep import Request
from attnbench.engine.verify_only import Verification
from attnbench.records import run_directory, speeds
from attnbench.records.arm import Arm
from attnbench.records.result import Cause, Result, Status
from attnbench.report import pages
from attnbench.report.formats import markdown
from attnbench.report.pages.page import report_data
from attnbench.units import about
from tests.conftest import Command
from tests.records.samples import stored
from tests.samples import result
from tests.simulated_runner import SimulatedRunner

OK = result([1.0])
BAD = result(backend="mine.py:f", problem=Problem(seq_q=32), reason="prepare: look", facts={"trace": "Traceback: look"})


@pytest.mark.parametrize(
    ("folder", "results", "command"),
    [
        ("results/20261121T000000Z-a-cpu", [OK], "attnbench report last"),
        ("results/20261121T000000Z-a-cpu", [OK, BAD], "attnbench show --failed last"),
        ("elsewhere/my run", [OK], "attnbench report 'elsewhere/my run'"),
        ("elsewhere/my run", [BAD], "attnbench show --failed 'elsewhere/my run'"),
    ],
)
def test_the_next_command_names_the_run_and_fits_how_it_ended(
    folder: str, results: list[Result], command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    attnbench_command: Command,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNBENCH_RESULTS", raising=False)
    stored(Path("results/20260101T000000Z-old-cpu"), OK)
    path = stored(Path(folder), *results)
    assert output.next_command(run_directory.read(path)) == command
    assert f"next: {command}\n" in attnbench_command("show", folder).stdout
    assert attnbench_command(*shlex.split(command)[1:]).returncode == 0


def test_an_older_run_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNBENCH_RESULTS", raising=False)
    old = stored(Path("results/20260101T000000Z-old-cpu"), OK)
    stored(Path("results/20261121T000000Z-new-cpu"), OK)
    assert output.next_command(run_directory.read(old)) == f"attnbench report {old}"


def test_a_resume_repeats_the_options_that_the_run_does_not_store() -> None:
    how = RunOptions(strict=True, fail_fast=True, format="md", progress="none", out=Path("there"), report=True)
    command = "attnbench run --resume there --fail-fast --strict --format md --report --progress none"
    assert resume_command(Path("there"), how) == command
    assert resume_command(Path("a b"), RunOptions()) == "attnbench run --resume 'a b'"


def test_show_failed_lists_the_traces(tmp_path: Path, attnbench_command: Command) -> None:
    path = stored(tmp_path / "run", OK, BAD)
    shown = attnbench_command("show", "--failed", str(path)).stdout
    assert "1 error: prepare: look" in shown
    assert "Traceback: look" in shown


def test_show_failed_and_skipped_are_json_lines_too(tmp_path: Path, attnbench_command: Command) -> None:
    refused = result(reason="no sinks", status=Status.UNSUPPORTED, problem=Problem(seq_q=48))
    again = result(
        backend="mine.py:f", problem=BAD.case.problem, restart=1, reason="again", facts={"log": "last words"}
    )
    path = stored(tmp_path / "run", OK, BAD, again, refused, impossible=(("seq=0", "no rows"),))
    (record,) = map(json.loads, attnbench_command("show", "--failed", "--json", str(path)).stdout.splitlines())
    assert (record["status"], record["reason"], record["backend"]) == ("error", "prepare: look", "mine.py:f")
    assert (record["trace"], record["log"], record["type"]) == ("Traceback: look", "last words", "case")
    skipped = attnbench_command("show", "--skipped", "--json", str(path)).stdout.splitlines()
    assert [json.loads(line)["reason"] for line in skipped] == ["prepare: look", "no sinks", "no rows"]
    assert attnbench_command("show", "--failed", "--json", str(stored(tmp_path / "ok", OK))).stdout == ""


def test_the_report_repeats_the_command_that_started_the_run(tmp_path: Path) -> None:
    path = stored(tmp_path / "run", OK, command="attnbench run --seq 64")
    stored(path, command="")  # a resume
    run = run_directory.read(path)
    text = markdown.page(*pages.contents(report_data([run])))
    assert "### Repeat\n\n- run: `attnbench run --seq 64`" in text
    for _ in range(2):
        stored(path, command="attnbench run --seq 128")
    command = run_directory.read(path).manifest.command
    assert command == "attnbench run --seq 64\nattnbench run --seq 128"


def test_a_run_that_is_stopped_before_its_first_case_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory.read(stored(tmp_path / "run"))
    output.show(run, "table", unmeasured=16, following="attnbench run --resume run")
    planned = run.manifest.planned
    assert capsys.readouterr().out == (
        f"stopped before the first case; 16 of {planned} not measured\n"
        f"run: {run.path}\nnext: attnbench run --resume run\n"
    )


def test_a_run_on_a_cluster_is_not_continued_on_this_machine(tmp_path: Path, attnbench_command: Command) -> None:
    path = stored(tmp_path / "run", OK, request={"hardware": "A,B"})
    done = attnbench_command("run", "--resume", str(path))
    assert done.returncode == 2
    assert done.stderr.endswith(f"--resume {path}: measured on a Ray cluster; add --engine ray --address HOST:PORT\n")


def test_an_interrupted_verification_says_how_many_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    ended = Ending(interrupted=True)
    assert verify._show(Verification(results=[OK], impossible=(), ending=ended, planned=5), True, False, False) == 130
    assert "stopped: 4 of 5 cases are not verified" in capsys.readouterr().err


def test_impossible_combinations_of_one_reason_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    impossible = (("a", "x"), ("b", "y"), ("c", "x"), ("d", "x"))
    verify._show(Verification(results=[OK], impossible=impossible, ending=Ending()), False, False, False)
    assert capsys.readouterr().err == "impossible: a and 2 more: x\nimpossible: b: y\n"


def test_verify_names_the_command_that_prints_the_traces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["attnbench", "verify", "--set", "returns=out lse"])
    for results, shown in (
        ([BAD], "next: attnbench verify --set 'returns=out lse' -v  # prints the traces\n"),
        ([OK], ""),
    ):
        verify._show(Verification(results=results, impossible=(), ending=Ending()), False, False, False)
        assert capsys.readouterr().err == shown


def test_verify_prints_the_traces_if_it_is_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    verify._show(Verification(results=[BAD], impossible=(), ending=Ending()), False, False, True)
    assert "Traceback: look" in capsys.readouterr().err


def test_statuses_decide_on_the_next_command(tmp_path: Path) -> None:
    refused = result(reason="no sinks", status=Status.UNSUPPORTED, problem=Problem(seq_q=32))
    path = stored(tmp_path / "run", OK, refused)
    assert output.next_command(run_directory.read(path)).startswith("attnbench report ")


def test_a_run_that_is_continued_when_it_is_complete_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attnbench_command: Command
) -> None:
    (tmp_path / "mine.py").write_text("def f(q, k, v, *, causal, scale): ...\n")
    monkeypatch.chdir(tmp_path)
    run = stored(tmp_path / "run", OK, result(backend="mine.py:f", reason="prepare: look"))
    options = ("--mask", "none", "--device", "cpu:threads=1", "--force", "-o", str(run))
    done = attnbench_command("run", "--seq", "64", "-b", "naive,mine.py:f", *options)
    assert "suite custom · 0 of 2 cases left · cpu:threads=1 · nothing to measure\n" in done.stderr
    assert "\nall 2 cases are already measured; --retry-failed measures those again that failed\n" in done.stderr
    assert done.stdout.startswith("mine.py:f failed with an error in 1 case: prepare: look\n\nb1 h8")


def test_the_headline_of_a_continued_run_counts_and_predicts_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    request = Request(axes={"seq": "64,8192", "mask": "none"}, backend="naive", device="cpu:threads=1", budget="0")
    ready = sweep.prepare(request)
    path = stored(tmp_path / "run", result([1.0], problem=Problem(seq_q=8192)))
    for directory, counted in ((None, "2 cases"), (path, "1 of 2 cases left")):
        rest = sweep.rest(ready, directory)
        output.headline(ready, rest)
        printed = capsys.readouterr().err.splitlines()[1]
        assert printed == f"suite custom · {counted} · cpu:threads=1 · about {about(rest.seconds)} (a rough guess)"
    assert rest.seconds < sweep.rest(ready).seconds / 2


def test_the_headline_says_what_all_cases_would_take_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    request = Request(axes={"seq": "8192", "mask": "none"}, backend="naive", device="cpu:threads=1", budget="2s")
    ready = sweep.prepare(request)
    needed_s = sweep.rest(ready).seconds
    expected = f"up to 2 s, the budget; all would take about {about(needed_s)} (a rough guess)"
    assert output.predicted(ready, needed_s) == expected


def test_the_headline_counts_what_progress_counts(capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(axes={"seq": "64,96"}, backend="naive,sdpa:flash", device="cpu:threads=1", restarts=3)
    ready = sweep.prepare(request)
    rest = sweep.rest(ready)
    output.headline(ready, rest)
    printed = capsys.readouterr().err.splitlines()[1]
    assert f" · {ready.plan.cases} cases, {rest.results} results in 3 restarts · " in printed
    assert rest.results == 3 * ready.plan.cases == 24


def test_a_budget_that_is_too_short_for_each_case_names_one_that_is_not(
    tmp_path: Path, attnbench_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    options = ("run", "--seq", "64", "--mask", "none", "-b", "naive", "--budget", "10ms")
    stored_run = attnbench_command(*options, "-o", str(tmp_path / "run"))
    assert stored_run.returncode == 6
    match = re.search(r"too short for each case that is left; try --budget (\d+)s\n", stored_run.stderr)
    assert match
    assert 2 <= int(match[1]) <= 60
    following = f"attnbench run --resume {tmp_path / 'run'} --budget {match[1]}s"
    assert f"next: {following}\n" in stored_run.stdout
    assert attnbench_command(*following.split()[1:], "--dry-run").returncode == 0
    for arguments in ((*options, "--no-save"), ("verify", *options[1:])):
        printed = attnbench_command(*arguments).stderr
        assert re.search(
            r"the budget of 10\.0 ms is too short .* try --budget \d+s: attnbench .*--budget \d+s\n", printed
        )


@pytest.mark.parametrize(
    ("needed_s", "words"),
    [(8.2, "try --budget 9s"), (1.0, "try --budget 6s, twice as much, since a case took longer than was predicted")],
)
def test_a_suggested_budget_says_where_it_is_from(needed_s: float, words: str) -> None:
    note, options = running.larger_budget(3.0, needed_s)
    assert note == f"the budget of 3.00 s is too short for each case that is left; {words}"
    assert " ".join(options) in note


class CutLonger(SimulatedRunner):
    """The budget ends before the second length, whatever was predicted."""

    def _result(self, group: Group, arm: Arm, restart: int) -> Result:
        measured = super()._result(group, arm, restart)
        cut = {"status": Status.SKIPPED, "reason": "budget", "cause": Cause.BUDGET, "samples": {}}
        return replace(measured, **cut) if group.problem.seq_q == 96 else measured


def test_a_resume_that_measures_nothing_names_a_larger_budget_though_the_prediction_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    axes = {"seq": "64,96", "mask": "none"}
    ready = sweep.prepare(Request(axes=axes, backend="naive", device="cpu:threads=1", budget="1h"))
    following = []
    for _ in range(2):
        ended = sweep.run(ready, SilentObserver(), directory=tmp_path / "run", start=CutLonger)
        following.append(running._larger_budget(ready, ended, RunOptions()))
    assert following == ["", f"attnbench run --resume {tmp_path / 'run'} --budget 7200s"]
    assert "try --budget 7200s, twice as much, since a case took longer than was predicted\n" in capsys.readouterr().err


def test_a_gate_with_a_failed_case_leads_to_its_trace(tmp_path: Path, attnbench_command: Command) -> None:
    base = stored(tmp_path / "base", OK, result([1.0], backend="mine.py:f", problem=BAD.case.problem))
    head = stored(tmp_path / "head", OK, BAD)
    judged = attnbench_command("gate", str(head), "--baseline", str(base))
    assert judged.returncode == 5
    assert f"next: attnbench show --failed {head}\n" in judged.stderr
    assert "next:" not in attnbench_command("gate", str(base), "--baseline", str(base)).stderr


def test_what_the_budget_cut_is_measured_next_unless_something_failed(tmp_path: Path) -> None:
    cut = result(reason="budget", status=Status.SKIPPED, cause=Cause.BUDGET, problem=Problem(seq_q=64, heads=1))
    run, failed = stored(tmp_path / "run", OK, cut), stored(tmp_path / "failed", OK, cut, BAD)
    assert output.next_command(run_directory.read(run)) == f"attnbench run --resume {run}"
    assert output.next_command(run_directory.read(failed)) == f"attnbench show --failed {failed}"


def test_the_headline_and_the_plan_say_how_many_cases_fit_into_the_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speeds, "load", lambda _: speeds.Speeds())
    axes = {"seq": "64,128,2048", "mask": "none"}
    request = Request(axes=axes, backend="naive", device="cpu:threads=1", budget="6s")
    ready = sweep.prepare(request)
    fitting = ready.plan.within(6.0, speeds.Speeds())
    assert [group.problem.seq_q for group in fitting] == [64, 128]
    output.headline(ready, sweep.rest(ready))
    assert capsys.readouterr().err.splitlines()[1].endswith("; about 2 cases fit")
    output.show_plan(ready, "table", {})
    printed = capsys.readouterr().out
    assert printed.count("beyond the budget\n") == 1
    assert "\n3 of 3 cases to measure, about 2 of them within the budget; refused: none\n" in printed
    output.show_plan(ready, "jsonl", {})
    *_, last, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert (last["status"], last["reason"], summary["within_budget"]) == ("planned", "beyond the budget", 2)


def test_all_cases_fit_without_a_budget_and_within_a_long_one(capsys: pytest.CaptureFixture[str]) -> None:
    for budget in ("0", "24h"):
        request = Request(axes={"seq": "64"}, backend="naive", device="cpu:threads=1", budget=budget)
        ready = sweep.prepare(request)
        assert sweep.rest(ready).within is None
        output.show_plan(ready, "table", {})
        assert "2 of 2 cases to measure; refused: none\n" in capsys.readouterr().out
