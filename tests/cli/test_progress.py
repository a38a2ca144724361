"""Progress on stderr."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from attnbench import api
from attnbench.attention.problem import Problem
from attnbench.cli import progress, running
from attnbench.cli.gate import _side_of
from attnbench.engine import verify_only
from attnbench.engine.runner import Ending, Observer
from attnbench.engine.sweep import Sweep
from attnbench.engine.verify_only import Verification
from attnbench.records.arm import Arm
from attnbench.records.result import Result, Status, sample
from tests.samples import result

ABSENT: dict[str, Any] = {"status": Status.UNAVAILABLE, "reason": "no file 'k.py'"}


def lines(results: list[Result], name_of: progress.NameOf, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with progress.observer("lines", len(results), name_of) as observer:
        for each in results:
            observer.result(each, 0.0)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        ([Arm(backend="naive", device="cpu"), Arm(backend="naive", device="cpu", copy=2)], ["naive", "naive#2"]),
        (
            [Arm(backend="naive", device="cpu:threads=1"), Arm(backend="naive", device="cpu:threads=2")],
            ["naive@cpu:threads=1", "naive@cpu:threads=2"],
        ),
        (
            [Arm(backend="naive", device="cpu"), Arm(backend="naive", device="cpu", env=(("A", "1"),))],
            ["naive", "naive@A=1"],
        ),
    ],
)
def test_a_line_has_the_name_that_no_other_arm_has(
    arms: list[Arm], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = [replace(result([1e-3]), arm=arm) for arm in arms]
    shown = lines(results, running.names_beside(arms), capsys)
    assert [f" {name} 1.00 ms " in line for name, line in zip(names, shown, strict=True)] == [True, True]


def test_a_line_of_a_gate_names_the_side(capsys: pytest.CaptureFixture[str]) -> None:
    arms = [Arm(backend="naive", device="cpu", copy=copy) for copy in (1, 2, 3)]
    shown = lines([replace(result([1e-3]), arm=arm) for arm in arms], _side_of, capsys)
    assert [line.split(" 1.00 ms")[0].rpartition("fwd ")[2] for line in shown] == [
        "naive base", "naive head", "naive control",
    ]  # fmt: skip


def test_a_line_has_the_memory_where_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    timed = result([1e-3])
    measured = replace(timed, samples={"time": timed.samples["time"], "total_memory": sample("B", [2.0**20])})
    by_mark = replace(measured, facts={"memory_method": "high-water mark"})
    shown = lines([timed, measured, by_mark], attrgetter("name"), capsys)
    assert [line.rpartition("FLOP/s")[2] for line in shown] == [
        "", " peak 1.00 MiB", " peak 1.00 MiB of the process",
    ]  # fmt: skip


def test_refusals_of_the_plan_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    refused = result(reason="sinks unsupported", status=Status.UNSUPPORTED, group="")
    measured, failed = result([1e-3]), result(reason="look")
    shown = lines([refused, refused, measured, failed], attrgetter("name"), capsys)
    assert [each.partition(" b1")[0] for each in shown] == ["[2/4] 2 cases refused", "[3/4] ok", "[4/4] error"]
    assert lines([refused], Arm.name.fget, capsys) == ["[1/1] 1 case refused"]  # type: ignore[arg-type]


def test_cases_that_were_skipped_are_one_line_for_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """A case counts once, whatever the number of its restarts."""
    skipped = [
        result(problem=Problem(seq_q=seq), restart=restart, reason=reason, status=Status.SKIPPED)
        for restart in range(2)
        for seq, reason in ((64, "budget"), (128, "budget"), (256, "a case no larger timed out"))
    ]
    shown = lines([skipped[0], result([1e-3]), *skipped[1:]], attrgetter("name"), capsys)
    assert [each.partition(" b1")[0] for each in shown] == [
        "[2/7] ok", "[7/7] 2 cases skipped: budget", "[7/7] 1 case skipped: a case no larger timed out",
    ]  # fmt: skip


def test_cases_that_a_backend_refuses_for_one_reason_are_a_line_and_their_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = [
        result(problem=Problem(seq_q=seq), reason="sinks unsupported", status=Status.UNSUPPORTED)
        for seq in (64, 128, 256)
    ]
    shown = lines([*refused, result([1e-3])], attrgetter("name"), capsys)
    assert [each.partition(" b1")[0] for each in shown] == [
        "[1/4] unsupported", "[4/4] ok", "[4/4] 2 more cases unsupported, for the same reasons",
    ]  # fmt: skip


def test_the_reason_of_a_side_that_is_unavailable_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A gate measures base, its control and head in every restart, where base lacks the kernel."""
    results = [
        replace(result(**fields), arm=Arm(backend="k.py:f", device="cpu", copy=copy), restart=restart)
        for restart in range(3)
        for copy, fields in ((1, ABSENT), (2, {"values": [1e-3]}), (3, ABSENT))
    ]
    shown = lines(results, _side_of, capsys)
    assert [each.partition(" b1")[0] for each in shown] == ["[1/9] unavailable", "[2/9] ok", "[5/9] ok", "[8/9] ok"]
    assert shown[0].endswith(" k.py:f base: no file 'k.py'")


def test_a_backend_that_is_unavailable_is_a_line_and_the_number_of_its_further_cases(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = [result(problem=Problem(seq_q=seq), restart=restart, **ABSENT) for seq in (64, 128) for restart in (0, 1)]
    first, more = lines(results, attrgetter("name"), capsys)
    assert first.endswith(": no file 'k.py'")
    assert more == "[4/4] 1 more case unavailable, for the same reasons"


def test_a_failure_of_every_restart_has_its_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    restarts = [result(reason=reason, restart=n) for n, reason in enumerate(("out: 0.3", "out: 0.3", "out: 0.4"))]
    shown = lines([*restarts, result(backend="other", reason="out: 0.3")], attrgetter("name"), capsys)
    assert [each.partition(" fwd ")[2] for each in shown] == [
        "naive: out: 0.3", "naive: as in an earlier restart", "naive: out: 0.4", "other: out: 0.3",
    ]  # fmt: skip


def test_a_case_that_was_verified_alone_has_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    verified = replace(result([1e-3]), samples={})
    (line,) = lines([verified], attrgetter("name"), capsys)
    assert line.startswith("[1/1] ok b1 ")
    assert line.endswith(" naive")


def test_the_total_grows_with_what_a_gate_adds(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.observer("lines", 1) as observer:
        observer.result(result([1e-3]), 0.0)
        observer.more(3, "3 more restarts of 1 of 8 cases, undecided after 6")
        observer.result(result([1e-3]), 0.0)
        observer.more(-1)
        observer.more(-1, "it is decided")
    first, why, second, fewer = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in (first, second)] == ["[1/1]", "[2/4]"]
    assert why == "[1/4] +3 results: 3 more restarts of 1 of 8 cases, undecided after 6"
    assert fewer == "[2/2] -1 results: it is decided"


def test_the_progress_of_random_problems_counts_what_was_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Round by round; a user's kernel refuses much of it."""
    request = api.request(
        backend=f"{Path(__file__).parents[1] / 'misbehaving.py'}:right,naive", device="cpu:threads=1", seq="24"
    )

    def run(planned: Sweep, observer: Observer, *_: object) -> Verification:
        results = [*planned.plan.refusals, *(result([1e-3]) for group in planned.plan.groups for _ in group.arms)]
        results[-2] = result(status=Status.SKIPPED, reason="budget")
        results[-3] = result(status=Status.UNSUPPORTED, reason="sliding window unsupported")  # found by its worker
        for each in results:
            observer.result(each, 0.0)
        stopped = Ending(interrupted=True)
        return Verification(results=results, impossible=(), ending=stopped)

    monkeypatch.setattr(verify_only, "run", run)
    with progress.observer("lines", 0) as observer:
        assert verify_only.soak(request, 60.0, observer).results
    shown = capsys.readouterr().err
    assert re.fullmatch(r"\[(\d+)/\1\] ok .*", shown.splitlines()[-1])
    assert "skipped" not in shown
    assert "refused" not in shown
    assert "sliding window" not in shown
