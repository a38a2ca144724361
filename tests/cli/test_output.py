"""Tables that commands print after a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.attention.problem import Problem
from attnbench.cli import output
from attnbench.records import run_directory
from attnbench.records.result import Status
from tests.conftest import Command
from tests.golden.made import measured, refused
from tests.records.samples import stored
from tests.samples import result


def test_columns_stand_in_the_order_that_was_asked_for(tmp_path: Path, attnbench_command: Command) -> None:
    """Whatever was measured first."""
    naive, flash = result([1.0]), result([0.5], backend="sdpa:flash")
    run = stored(tmp_path / "run", flash, naive, arms=(naive.arm, flash.arm))
    for form in ("table", "md"):
        shown = attnbench_command("show", str(run), "--format", form).stdout
        (heading,) = [line for line in shown.splitlines() if "naive" in line and "seq" in line]
        assert heading.index("naive") < heading.index("sdpa:flash")


def test_failures_are_the_first_lines_and_no_reason_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten wrong and ten crashed cases are two lines, cut between words."""
    monkeypatch.setenv("COLUMNS", "60")
    problems = [Problem(seq_q=64 * (1 + number)) for number in range(10)]
    results = [measured(problem, "naive", 1e-3) for problem in problems]
    for number, problem in enumerate(problems):
        reason = f"out: max |error| {number + 1.2} at [b0 h0 q{number} d0] is over 1.5e-05"
        facts = {"errors": {"out": {"max_abs": number + 1.2, "budget": 1.5e-5}}}
        results.append(refused(problem, "my.py:f", Status.INCORRECT, reason, facts=facts))
        crash = f"timing: signal SIGSEGV, exit code -11 (my.py:{12 + number} in g)"
        results.append(refused(problem, "my.py:g", Status.CRASHED, crash))
    run = stored(tmp_path / "run", *results)
    output.show(run_directory.read(run), "table", color="never")
    shown = capsys.readouterr().out
    first, second, third, blank, *rest = shown.splitlines()
    assert first == "my.py:f is wrong in 10 cases (error 10.2, allowed 1.5e-5)"
    assert f"{second} {third.strip()}" == (
        "my.py:g crashed in 10 cases: timing: signal SIGSEGV, exit code -11 (my.py:12 in g)"
    )
    assert blank == ""
    assert shown.count("SIGSEGV") == shown.count("allowed") == 1
    assert "10 incorrect, 10 crashed" in "\n".join(rest).replace("\n  ", " ")
    assert max(map(len, shown.splitlines())) <= 60 + len(str(tmp_path))


@pytest.mark.parametrize("form", ["table", "md", "jsonl"])
def test_a_run_says_that_the_probes_of_a_wrong_case_were_not_run(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = refused(Problem(seq_q=64), "my.py:f", Status.INCORRECT, "out: wrong")
    for name, request in (("asked", {"probe": "layouts"}), ("plain", {})):
        run = run_directory.read(stored(tmp_path / name, wrong, request=request))
        output.show(run, form, color="never")
        shown = capsys.readouterr()
        told = "probes not run: the case is wrong without them" in (shown.out if form == "table" else shown.err)
        assert told is bool(request)
