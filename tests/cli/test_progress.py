"""Progress on stderr."""

from __future__ import annotations

from operator import attrgetter

import pytest
from msgspec.structs import replace

from attnbench.cli import progress, running
from attnbench.cli.gate import _side_of
from attnbench.records.arm import Arm
from attnbench.records.result import Result, Status
from tests.samples import result


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


def test_refusals_of_the_plan_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    refused = result(reason="sinks unsupported", status=Status.UNSUPPORTED, group="")
    measured, failed = result([1e-3]), result(reason="skipped later", status=Status.SKIPPED)
    shown = lines([refused, refused, measured, failed], attrgetter("name"), capsys)
    assert [each.partition(" b1")[0] for each in shown] == ["[2/4] 2 cases refused", "[3/4] ok", "[4/4] skipped"]
    assert lines([refused], Arm.name.fget, capsys) == ["[1/1] 1 case refused"]  # type: ignore[arg-type]


def test_the_total_grows_with_what_a_gate_adds(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.observer("lines", 1) as observer:
        observer.result(result([1e-3]), 0.0)
        observer.more(2)
        observer.result(result([1e-3]), 0.0)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["[1/1]", "[2/3]"]
