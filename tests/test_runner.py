"""Sweeps over backends that misbehave: each gets its status and reason, the others their numbers; no process stays."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

import attnbench
from attnbench import stats
from attnbench.result import Result, Status

pytestmark = pytest.mark.workers

HERE = Path(__file__).parent
LIMITS = {
    "seq": "32",
    "mask": "none",
    "heads": "2",
    "rounds": "3",
    "budget": "0",
    "timeout": "20s",
    "device": "cpu:threads=1",
}


def run(tmp_path: Path, *functions: str, file: str = "misbehaving.py", **options: str) -> dict[str, Result]:
    """Results by function, of one sweep over them."""
    names = ",".join(f"{HERE / file}:{function}" for function in functions)
    stored = attnbench.run(out=tmp_path / "run", backend=names, **{**LIMITS, **options})
    return {result.arm.backend.rpartition(":")[2]: result for result in stored.results}


def processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


WRONG = {
    "wrong_shape": "out: is float32 [1, 2, 32, 63] and should be float32 [1, 2, 32, 64]",
    "wrong_dtype": "float64",
    "wrong_device": "out is on meta",
    "nan": "not finite",
    "zeros": "out: ",
    "mean_of_v": "out: ",
    "unwritten": "out: ",
    "last_output": "out: ",
    "view_of_input": "",
    "changes_inputs": "was changed",
}


def test_wrong_outputs_are_incorrect_and_never_timed(tmp_path):
    results = run(tmp_path, "right", *WRONG)
    assert results.pop("right").status is Status.OK
    assert {name: result.status for name, result in results.items()} == dict.fromkeys(WRONG, Status.INCORRECT)
    for name, words in WRONG.items():
        assert words in results[name].reason
        assert not results[name].samples


def test_failures_are_statuses_with_their_reason(tmp_path):
    results = run(tmp_path, "raises", "raises_base_exception", "not_a_tensor", "segfault", "exits", "right")
    said = {name: (result.status, result.reason) for name, result in results.items()}
    assert said["raises"] == (Status.ERROR, "prepare: ValueError: the tile size 48 is not a power of two")
    assert said["raises_base_exception"] == (Status.ERROR, "prepare: SystemExit: 3")
    assert said["not_a_tensor"] == (Status.ERROR, "verify: TypeError: out is a list, not a tensor")
    assert said["segfault"][0] is Status.CRASHED
    assert "SIGSEGV" in said["segfault"][1]
    assert said["exits"] == (Status.CRASHED, "prepare: exited with code 7")
    assert said["right"][0] is Status.OK


def test_a_hang_in_python_or_in_c_is_a_timeout(tmp_path):
    before = processes()
    results = run(tmp_path, "hang", "hang_in_c", "right", timeout="15s")
    assert results["hang"].status is results["hang_in_c"].status is Status.TIMEOUT
    assert results["hang"].reason == "prepare: no answer within 15 s"
    assert results["right"].status is Status.OK
    assert processes() == before


def test_after_a_timeout_no_larger_case_is_tried(tmp_path):
    stored = attnbench.run(
        out=tmp_path / "run", backend=f"{HERE}/misbehaving.py:hang", **{**LIMITS, "seq": "32,64", "timeout": "15s"}
    )
    short, long = sorted(stored.results, key=lambda result: result.case.problem.seq_q)
    assert (short.status, long.status) == (Status.TIMEOUT, Status.SKIPPED)
    assert "timed out at" in long.reason


def test_a_leak_ends_at_the_memory_limit(tmp_path):
    results = run(tmp_path, "leaks", "right", mem_limit="3GiB")
    assert results["leaks"].status is Status.OOM
    assert results["right"].status is Status.OK


def test_threads_left_spinning_are_found_before_anything_is_timed(tmp_path):
    results = run(tmp_path, "spins", "right")
    assert results["spins"].status is Status.ERROR
    assert "spin" in results["spins"].reason
    assert results["right"].status is Status.OK


def test_gigabytes_of_output_are_drained_and_the_end_is_kept(tmp_path):
    results = run(tmp_path, "chatty", rounds="3")
    assert results["chatty"].status is Status.OK
    (log,) = (tmp_path / "run" / "logs").iterdir()
    assert 0 < log.stat().st_size <= 1024**2


def test_a_process_that_a_backend_started_is_killed_with_it(tmp_path):
    run(tmp_path, "orphan")
    time.sleep(0.2)
    alive = [p for p in psutil.process_iter(["cmdline"]) if "attnbench-orphan" in " ".join(p.info["cmdline"] or [])]
    assert not alive


def test_a_plugin_whose_import_fails_is_an_error_of_all_its_cases(tmp_path):
    results = run(tmp_path, "attend", file="broken/import_fails.py")
    assert results["attend"].status is Status.ERROR
    assert "libcudart.so.99" in results["attend"].reason


def test_a_plugin_that_hangs_at_import_is_a_timeout(tmp_path):
    results = run(tmp_path, "attend", file="broken/import_hangs.py", timeout="15s")
    assert (results["attend"].status, results["attend"].reason) == (Status.TIMEOUT, "import: no answer within 15 s")


def test_a_kernel_that_goes_wrong_while_it_is_timed_is_incorrect(tmp_path):
    results = run(tmp_path, "wrong_later")
    assert results["wrong_later"].status is Status.INCORRECT
    assert results["wrong_later"].reason.startswith("last timed call: ")
    assert not results["wrong_later"].samples


def test_the_wrong_causal_corner_is_found_at_unequal_lengths(tmp_path):
    options = {**LIMITS, "mask": "causal", "seq_q": "24", "seq_kv": "40"}
    del options["seq"]
    stored = attnbench.run(out=tmp_path / "run", backend=f"{HERE}/misbehaving.py:top_left", **options)
    assert stored.results[0].status is Status.INCORRECT


def test_a_wrong_gradient_is_incorrect(tmp_path):
    results = run(tmp_path, "wrong_gradient", "right", mode="bwd")
    assert results["wrong_gradient"].status is Status.INCORRECT
    assert results["wrong_gradient"].reason.partition(": ")[2].startswith(("dq:", "peaked", "dq"))
    assert results["right"].status is Status.OK


def test_a_wrong_lse_is_incorrect(tmp_path):
    assert run(tmp_path, "wrong_lse", returns="lse")["wrong_lse"].reason.count("lse: off by")


def test_what_a_plugin_does_not_declare_is_unsupported(tmp_path):
    results = run(tmp_path, "wrong_gradient_refused", mode="bwd", dtype="bf16")
    assert results["wrong_gradient_refused"].status is Status.UNSUPPORTED
    assert results["wrong_gradient_refused"].reason == "no bf16 (takes fp32); no bwd (forward only)"


def test_failed_baseline_leaves_other_backends_their_numbers(tmp_path):
    failing = f"{HERE / 'misbehaving.py'}:raises"
    stored = attnbench.run(out=tmp_path / "run", backend=f"{failing},naive", reference=failing, **LIMITS)
    naive = next(result for result in stored.results if result.arm.backend == "naive")
    assert naive.status is Status.OK
    assert len(naive.samples["time"].blocks) == 3


def test_every_arm_stands_equally_often_in_every_position(tmp_path):
    stored = attnbench.run(out=tmp_path / "run", backend="naive,sdpa:math,sdpa:flash", **{**LIMITS, "rounds": "6"})
    for result in stored.results:
        positions = [block.position for block in result.samples["time"].blocks]
        assert sorted(positions) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("rounds", "most"), [("4", 4), ("4..5", 35)])
def test_noise_brings_more_rounds_unless_their_number_was_asked_for(tmp_path, rounds, most):
    sample = run(tmp_path, "erratic", rounds=rounds)["erratic"].samples["time"]
    assert stats.is_noisy(sample)
    assert len(sample.blocks) == most


def test_reference_is_timed_in_rounds_like_everyone(tmp_path):
    stored = attnbench.run(out=tmp_path / "run", backend="naive,sdpa:flash", **LIMITS)
    assert len({len(result.samples["time"].blocks) for result in stored.results}) == 1


def test_launches_are_separate_results_of_fresh_workers(tmp_path):
    stored = attnbench.run(out=tmp_path / "run", backend="sdpa:flash,sdpa:flash", launches=2, **LIMITS)
    assert sorted((result.arm.twin, result.launch) for result in stored.results) == [(1, 0), (1, 1), (2, 0), (2, 1)]
