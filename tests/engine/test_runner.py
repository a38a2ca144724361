"""Sweeps over failing backends: each gets its status and reason, the others their times, and no process is left."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

import attnbench
from attnbench.engine import group_runner, interpreters, sweep, worker_process, worker_start
from attnbench.records.case import Case
from attnbench.records.ceilings import Rate
from attnbench.records.result import Cause, Result, Status
from tests.samples import ceilings
from tests.waiting import wait_for_end

pytestmark = pytest.mark.workers

HERE = Path(__file__).parents[1]
MISBEHAVING = HERE / "misbehaving.py"
LIMITS = {
    "seq": "32",
    "mask": "none",
    "heads": "2",
    "rounds": "3",
    "budget": "0",
    "timeout": "10m",  # a busy machine is slow
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
    names = [name if ":" in name or name == "naive" else f"{MISBEHAVING}:{name}" for name in functions]
    chosen = {name: value for name, value in {**LIMITS, **options}.items() if value}
    return list(attnbench.run(out=folder, backend=",".join(names), **chosen).results)


def processes() -> set[int]:
    """The processes that this one has started, without those that fork workers."""
    servers = {server._process.pid for server in worker_start._servers.values()}
    return {child.pid for child in psutil.Process().children(recursive=True)} - servers


# Wrong outputs are judged in one process, by tests/worker/test_verification.py; exceptions and crashes are those of
# tests/cli/test_verify.py.
FAILING = ("spins", "restless", "wrong_later", "leaks")


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
    failing = f"{MISBEHAVING}:raises"
    names = ("right", "naive", "raises", *FAILING, f"{HERE}/broken/import_fails.py:attend")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        patch.setattr(group_runner, "VerifiedCases", Remembered)
        patch.setattr(sweep, "calibrated", lambda *_: {"cpu:threads=1": LOW})
        return run(shared / "run", *names, reference=failing, mem_limit="1500MiB")


def test_only_what_was_right_to_the_end_is_remembered_as_verified(results: Results) -> None:
    assert results["wrong_later"].status is Status.INCORRECT  # after a verification that it passed
    assert {"right", "naive"} <= set(Remembered.added)
    assert {name for name in Remembered.added if results[name].status is not Status.OK} == set()


def test_a_failure_is_a_status_with_its_reason(results: Results) -> None:
    reason = re.sub(r":\d+ in", " in", results["raises"].reason)
    text = "prepare: ValueError: the tile size 48 is not a power of two (tests/misbehaving.py in raises)"
    assert (results["raises"].status, reason) == (Status.ERROR, text)


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
    assert results["restless"].status is Status.OK
    (log,) = (file for file in (shared / "run" / "logs").iterdir() if "restless" in file.name)
    assert 0 < log.stat().st_size <= 1024**2


def test_a_process_that_a_backend_started_is_killed_with_it(results: Results, shared: Path) -> None:
    (log,) = (file for file in (shared / "run" / "logs").iterdir() if "restless" in file.name)
    (number,) = set(re.findall(r"orphan: (\d+)", log.read_text()))
    wait_for_end([int(number)])


def test_a_plugin_whose_import_fails_is_an_error_of_all_its_cases(results: Results) -> None:
    assert results["attend"].status is Status.ERROR
    assert "libcudart.so.99" in results["attend"].reason


def test_a_kernel_that_goes_wrong_while_it_is_timed_is_incorrect(results: Results) -> None:
    assert results["wrong_later"].status is Status.INCORRECT
    assert results["wrong_later"].reason.startswith("call before the rounds: ")
    assert not results["wrong_later"].samples
    assert results["wrong_later"].facts["log"] == "wrong from here"


# The reason of each that gives no answer, with the place that it has reached.
LATE = {
    f"{MISBEHAVING}:hang": r"prepare: no answer within \d+ s \(tests/misbehaving\.py:\d+ in hang\)",
    f"{MISBEHAVING}:hang_in_c": r"prepare: no answer within \d+ s \(tests/misbehaving\.py:\d+ in hang_in_c\)",
    f"{HERE}/broken/import_hangs.py:attend": r"import: no answer within \d+ s \(tests/broken/import_hangs\.py:5\)",
}


@pytest.fixture(scope="module")
def late(shared: Path) -> dict[tuple[str, int], Result]:
    """Results by function and length, of two lengths and of all that gives no answer.

    The timeout is long enough for this machine to reach the places of the reasons.
    """
    before = processes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "STACK_LIMIT_S", 60.0)
        for timeout_s in (1, 10, 100):
            measured = stored(shared / f"late{timeout_s}", *LATE, seq="32,64", timeout=f"{timeout_s}s", rounds="1")
            results = {(each.arm.backend, each.case.problem.seq_q): each for each in measured}
            if all(re.fullmatch(reason, results[name, 32].reason) for name, reason in LATE.items()):
                break
    assert processes() == before
    return results


@pytest.mark.parametrize("name", LATE, ids=lambda name: name.rpartition(":")[2])
def test_a_hang_in_python_in_c_or_at_import_is_a_timeout(late: dict[tuple[str, int], Result], name: str) -> None:
    assert late[name, 32].status is Status.TIMEOUT
    assert re.fullmatch(LATE[name], late[name, 32].reason), late[name, 32].reason
    assert "(most recent call first)" in late[name, 32].facts["log"]


def test_after_a_timeout_no_larger_case_is_tried(late: dict[tuple[str, int], Result]) -> None:
    for name in (f"{MISBEHAVING}:hang", f"{MISBEHAVING}:hang_in_c"):
        assert late[name, 64].status is Status.SKIPPED
        assert late[name, 64].cause is Cause.NO_LARGER
        assert "timed out at" in late[name, 64].reason


def test_the_workers_of_a_backend_start_in_its_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is a script that sets a variable, without which the kernel fails."""
    monkeypatch.setattr(interpreters, "PROBE_LIMIT_S", 300.0)  # a busy machine is slow
    python, kernel = tmp_path / "python", tmp_path / "kernel.py"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{HERE.parent}" MARK=other exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    kernel.write_text(
        "import os\nimport torch\n\ndef attend(q, k, v, causal, scale):\n    assert os.environ.get('MARK') == 'other'\n"
        "    return torch.nn.functional.scaled_dot_product_attention(q, k, v)\n"
    )
    name = f"{kernel}:attend"
    run = attnbench.run(out=tmp_path / "run", **LIMITS, backend=name, backend_python=f"{name}={python}")
    assert [(each.arm.python, each.status, each.reason) for each in run.results] == [(str(python), Status.OK, "")]
    (arm,) = run.manifest.arms
    assert run.manifest.environments[arm.id].packages["attnbench"]
    assert tuple(run.manifest.request["backend_python"]) == (f"{name}={python}",)
