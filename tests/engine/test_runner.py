"""Sweeps over failing backends: each gets its status and reason, the others their times, and no process is left."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

import attnbench
from attnbench.engine import group_runner, sweep
from attnbench.records.case import Case
from attnbench.records.ceilings import Rate
from attnbench.records.result import Cause, Result, Status
from tests.samples import ceilings

pytestmark = pytest.mark.workers

HERE = Path(__file__).parents[1]
LIMITS = {
    "seq": "32",
    "mask": "none",
    "heads": "2",
    "rounds": "3",
    "budget": "0",
    "timeout": "20s",
    "device": "cpu:threads=1",
}


Results = dict[str, Result]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that several tests look at."""
    return tmp_path_factory.mktemp("runs")


def run(folder: Path, *functions: str, **options: str) -> Results:
    """Results by function, of one sweep over them."""
    return {result.arm.backend.rpartition(":")[2]: result for result in stored(folder, *functions, **options)}


def stored(folder: Path, *functions: str, **options: str | int) -> list[Result]:
    """Results of one sweep over functions of `misbehaving.py` and other backends; an empty option is left out."""
    names = [name if ":" in name or name == "naive" else f"{HERE}/misbehaving.py:{name}" for name in functions]
    chosen = {name: value for name, value in {**LIMITS, **options}.items() if value}
    return list(attnbench.run(out=folder, backend=",".join(names), **chosen).results)


def processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


# Every other wrong output is judged in one process, by tests/worker/test_verification.py.
FAILING = ("raises", "raises_base_exception", "segfault", "exits")
OTHERS = ("spins", "chatty", "orphan", "wrong_later", "leaks")


# Every rate is above it.
LOW = ceilings(matmul={"fp32": Rate(burst=1.0, sustained=1.0, size=8)})


class Remembered:
    """A cache of verified cases that holds none, and what was added to it, by function."""

    added: ClassVar[list[str]] = []

    def holds(self, *_: object) -> bool:
        return False

    def add(self, case: Case, *_: object) -> None:
        self.added.append(case.backend.rpartition(":")[2])


@pytest.fixture(scope="module")
def results(shared: Path) -> Results:
    """One sweep over all that fails without a timeout, with a failing reference, beside two backends that are right.

    The memory limit is for the backend that leaks.
    """
    failing = f"{HERE}/misbehaving.py:raises"
    names = ("right", "naive", "zeros", *FAILING, *OTHERS, f"{HERE}/broken/import_fails.py:attend")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_runner, "VerifiedCases", Remembered)
        patch.setattr(sweep, "calibrated", lambda *_: {"cpu:threads=1": LOW})
        return run(shared / "run", *names, reference=failing, mem_limit="1500MiB")


def test_only_what_was_right_to_the_end_is_remembered_as_verified(results: Results) -> None:
    assert results["wrong_later"].status is Status.INCORRECT  # after a verification that it passed
    assert {"right", "naive"} <= set(Remembered.added)
    assert {name for name in Remembered.added if results[name].status is not Status.OK} == set()


def test_wrong_outputs_are_incorrect_and_never_timed(results: Results) -> None:
    assert results["zeros"].status is Status.INCORRECT
    assert not results["zeros"].samples


def test_failures_are_statuses_with_their_reason(results: Results) -> None:
    failures = {name: (result.status, re.sub(r":\d+ in", " in", result.reason)) for name, result in results.items()}
    text = "the tile size 48 is not a power of two"
    assert failures["raises"] == (Status.ERROR, f"prepare: ValueError: {text} (tests/misbehaving.py in raises)")
    assert failures["raises_base_exception"] == (
        Status.ERROR,
        "prepare: SystemExit: 3 (tests/misbehaving.py in raises_base_exception)",
    )
    assert failures["segfault"][0] is Status.CRASHED
    assert failures["segfault"][1].startswith("prepare: died of SIGSEGV (tests/misbehaving.py in segfault)")
    assert "Fatal Python error" in results["segfault"].facts["log"]
    assert failures["exits"] == (Status.CRASHED, "prepare: exited with code 7")


def test_correct_backends_have_times_beside_failing_ones(results: Results) -> None:
    assert results["right"].status is Status.OK
    assert len(results["right"].samples["time"].blocks) == 3
    assert 0 <= results["right"].facts["idle_cores"] < 0.5


def test_a_rate_above_a_ceiling_is_checked_on_new_inputs(results: Results) -> None:
    assert results["right"].facts["new_inputs"] == results["naive"].facts["new_inputs"] == "right"
    assert results["right"].facts["errors"]["out"]["budget"]


def test_other_backends_have_times_when_the_reference_fails(results: Results) -> None:
    assert results["naive"].status is Status.OK
    assert len(results["naive"].samples["time"].blocks) == 3


def test_a_leak_ends_at_the_memory_limit(results: Results) -> None:
    assert results["leaks"].status is Status.OOM


def test_threads_left_spinning_are_found_before_anything_is_timed(results: Results) -> None:
    assert results["spins"].status is Status.ERROR
    assert "spin" in results["spins"].reason


def test_hundreds_of_megabytes_of_output_are_drained_and_the_end_is_stored(results: Results, shared: Path) -> None:
    assert results["chatty"].status is Status.OK
    (log,) = (file for file in (shared / "run" / "logs").iterdir() if "chatty" in file.name)
    assert 0 < log.stat().st_size <= 1024**2


def test_a_process_that_a_backend_started_is_killed_with_it(results: Results) -> None:
    assert results["orphan"].status is Status.OK
    alive = [p for p in psutil.process_iter(["cmdline"]) if "attnbench-orphan" in " ".join(p.info["cmdline"] or [])]
    assert not alive


def test_a_plugin_whose_import_fails_is_an_error_of_all_its_cases(results: Results) -> None:
    assert results["attend"].status is Status.ERROR
    assert "libcudart.so.99" in results["attend"].reason


def test_a_kernel_that_goes_wrong_while_it_is_timed_is_incorrect(results: Results) -> None:
    assert results["wrong_later"].status is Status.INCORRECT
    assert results["wrong_later"].reason.startswith("call before the rounds: ")
    assert not results["wrong_later"].samples


@pytest.fixture(scope="module")
def late(shared: Path) -> dict[tuple[str, int], Result]:
    """Results by function and length, of two lengths and of all that gives no answer."""
    before = processes()
    names = ("hang", "hang_in_c", "right", f"{HERE}/broken/import_hangs.py:attend")
    results = stored(shared / "late", *names, seq="32,64", timeout="4s", rounds="1")
    assert processes() == before
    return {(result.arm.backend.rpartition(":")[2], result.case.problem.seq_q): result for result in results}


def test_a_hang_in_python_or_in_c_is_a_timeout(late: dict[tuple[str, int], Result]) -> None:
    assert late["hang", 32].status is late["hang_in_c", 32].status is Status.TIMEOUT
    for name in ("hang", "hang_in_c"):
        place = rf"\(tests/misbehaving\.py:\d+ in {name}\)"
        assert re.fullmatch(f"prepare: no answer within 4 s {place}", late[name, 32].reason), late[name, 32].reason
        assert "(most recent call first)" in late[name, 32].facts["log"]
    assert late["right", 32].status is late["right", 64].status is Status.OK


def test_after_a_timeout_no_larger_case_is_tried(late: dict[tuple[str, int], Result]) -> None:
    assert late["hang", 64].status is late["hang_in_c", 64].status is Status.SKIPPED
    assert late["hang", 64].cause is Cause.NO_LARGER
    assert "timed out at" in late["hang", 64].reason


def test_a_plugin_that_hangs_at_import_is_a_timeout(late: dict[tuple[str, int], Result]) -> None:
    result = late["attend", 32]
    assert (result.status, result.reason) == (
        Status.TIMEOUT,
        "import: no answer within 4 s (tests/broken/import_hangs.py:5)",
    )


def test_every_arm_takes_every_position_equally_often_in_every_restart(tmp_path: Path) -> None:
    """The reference too: it is timed in rounds like everyone. Each restart has results and workers of its own."""
    measured = stored(tmp_path / "run", "naive", "sdpa:flash", "sdpa:flash", restarts=2, rounds="6")
    arms = sorted((result.arm.backend, result.arm.copy, result.restart) for result in measured)
    names = ("naive", 1), ("sdpa:flash", 1), ("sdpa:flash", 2)
    assert arms == [(*name, restart) for name in names for restart in (0, 1)]
    for result in measured:
        samples = (result.samples[name] for name in ("warmup_time", "time") if name in result.samples)
        positions = [block.position for sample in samples for block in sample.blocks]
        assert sorted(positions[:6]) == [0, 0, 1, 1, 2, 2]


def test_the_budget_ends_a_case_that_is_being_prepared(tmp_path: Path) -> None:
    started = time.monotonic()
    (result,) = stored(tmp_path / "run", "hang", budget="5s", timeout="60s")
    assert time.monotonic() - started < 50  # before its timeout, on a busy machine too
    assert (result.status, result.cause, result.reason) == (Status.SKIPPED, Cause.BUDGET, "budget")


def test_the_workers_of_a_backend_start_in_its_interpreter(tmp_path: Path) -> None:
    """The interpreter is a script that sets a variable, without which the kernel fails."""
    python, kernel = tmp_path / "python", tmp_path / "kernel.py"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{HERE.parent}" MARK=other exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    kernel.write_text(
        "import os\nimport torch\n\ndef attend(q, k, v, causal, scale):\n    assert os.environ.get('MARK') == 'other'\n"
        "    return torch.nn.functional.scaled_dot_product_attention(q, k, v)\n"
    )
    name = f"{kernel}:attend"
    options = {**LIMITS, "backend": f"naive,{name}", "backend_python": f"{name}={python}"}
    run = attnbench.run(out=tmp_path / "run", **options)
    assert {each.arm.python: (each.status, each.reason) for each in run.results} == {
        "": (Status.OK, ""), str(python): (Status.OK, "")
    }  # fmt: skip
    (arm,) = (arm for arm in run.manifest.arms if arm.python)
    assert run.manifest.environments[arm.id].packages["attnbench"]
    assert tuple(run.manifest.request["backend_python"]) == (f"{name}={python}",)
