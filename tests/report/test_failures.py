"""The listing of failed cases."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.records.arm import Arm
from attnbench.records.result import Result, Status
from attnbench.report.terminal import failures
from tests.samples import result

TRACE = "Traceback (most recent call last):\n  File my_kernel.py\nRuntimeError: look"


def failed(seq: int, reason: str = "prepare: RuntimeError: look", backend: str = "naive", **facts: Any) -> Result:
    """A case that raised an exception."""
    return result(backend=backend, problem=Problem(seq_q=seq), reason=reason, status=Status.ERROR, facts=facts)


def test_a_failed_case_has_its_whole_trace_and_the_end_of_the_log() -> None:
    lines = list(failures.text([result([1.0]), failed(64, trace=TRACE, log="ninja: stopped\nbye")]))
    assert lines[0] == "naive on cpu:threads=1: 1 error: prepare: RuntimeError: look"
    assert [line.strip() for line in lines[2:-1]] == [
        "trace:", *map(str.strip, TRACE.splitlines()), "the worker's last lines:", "ninja: stopped", "bye",
    ]  # fmt: skip


def test_identical_failures_are_one_group_with_every_case() -> None:
    several = [failed(seq, f"prepare: ValueError: got {seq}", trace=TRACE) for seq in (64, 128, 256)]
    text = "\n".join(failures.text([*several, failed(64, backend="sdpa:flash", trace=TRACE)]))
    assert text.count("Traceback") == 2  # one for each arm
    assert text.startswith("naive on cpu:threads=1: 3 error: prepare: ValueError: got 64\n")
    assert "q256 kv256 d64 none fp32 fwd: 256" in text.replace("\n    ", " ")


def test_of_reasons_alike_the_words_that_differ_are_shown() -> None:
    reasons = [f"out: max |error| {error} at [b0 h0 q{row} d5] is over 1.5e-5" for error, row in ((5.2, 1), (0.3, 7))]
    text = "\n".join(failures.text([failed(64, reasons[0]), failed(128, reasons[1])]))
    assert text.replace("\n  1.5e-5", " 1.5e-5").startswith(f"naive on cpu:threads=1: 2 error: {reasons[0]}\n")
    assert "q128 kv128 d64 none fp32 fwd: ... 0.3 at [b0 h0 q7 ...\n" in text.replace("\n    ", " ")


def test_restarts_of_a_case_are_one_line() -> None:
    restarts = [result(problem=Problem(seq_q=64), restart=number, reason="x") for number in range(3)]
    assert "\n".join(failures.text(restarts)).count("q64") == 1


def test_what_a_group_has_in_common_is_said_once() -> None:
    fine = [result([1.0], problem=Problem(seq_q=64))]
    text = "\n".join(failures.text([*fine, failed(128), failed(256)]))
    assert text.count("all 2 failures have seq > 64") == 1


def test_control_characters_of_a_kernel_do_not_reach_the_terminal() -> None:
    text = "\n".join(failures.text([failed(64, reason="a\x1b[31mb", trace="c\x1b]0;d\x07e", log="f\x08g\rh")]))
    assert text.isprintable() or all(line.isprintable() for line in text.split("\n"))


def test_a_run_without_failures_says_so() -> None:
    assert list(failures.text([result([1.0])])) == ["no case failed"]


def test_two_arms_of_one_backend_have_different_names() -> None:
    arms = [Arm(backend="naive", device="cpu:threads=1", env=(("A", value),)) for value in ("1", "2")]
    text = "\n".join(failures.text([replace(failed(64, trace=TRACE), arm=arm) for arm in arms]))
    assert "naive@A=1 on cpu:threads=1: 1 " in text
    assert "naive@A=2 on cpu:threads=1: 1 " in text
