"""Requests to a session in this process: without a device, and with a CPU and kernels of tests/misbehaving.py."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from attnbench import backends
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import torch_sdpa
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Status
from attnbench.suite.readers import parse_score
from attnbench.worker import (
    memory_of_inputs,
    output_checks,
    process_settings,
    protocol,
    session,
    unfinished_outputs,
    verification,
)
from attnbench.worker.session import WorkerSession


def test_a_request_of_another_version_is_refused() -> None:
    reply = WorkerSession().answer(protocol.OpenWorker(version=1, device="cpu"))
    assert isinstance(reply, protocol.WorkerOpened)
    assert reply.unavailable == f"speaks protocol {protocol.VERSION}, not 1"


def test_a_device_that_is_not_available_has_a_reason() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    reply = WorkerSession().answer(protocol.OpenWorker(device="cuda:0"))
    assert isinstance(reply, protocol.WorkerOpened)
    assert reply.unavailable.startswith("torch ")


def test_a_request_about_a_case_needs_a_prepared_case() -> None:
    with pytest.raises(RuntimeError, match="no case is prepared"):
        WorkerSession().answer(protocol.SettleCase())


@pytest.mark.parametrize("gradients", [False, True])
def test_a_worker_that_will_need_gradients_makes_a_first_backward_pass_when_it_opens(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    grad, passes = torch.autograd.grad, list[object]()
    monkeypatch.setattr(torch.autograd, "grad", lambda *args: passes.append(grad(*args)))
    opened = WorkerSession().answer(protocol.OpenWorker(backend="naive", device="cpu:threads=1", gradients=gradients))
    assert not opened.unavailable
    assert passes == ([(torch.ones(1) * 2,)] if gradients else [])


def test_plain_backends_follow_one_another_in_one_process() -> None:
    driver = Driver("naive")
    assert driver.opened.changes_backend
    for name in ("sdpa:math", "naive", "sdpa:flash"):
        driver.case = Case(problem=driver.case.problem, backend=name)
        assert driver.verify().ok
        assert driver.session._prepared_case().backend.name == name
        assert driver.session._prepared_case().state.intended == backends.load(name).sets


SEEDS = itertools.count(1)


@pytest.fixture(autouse=True)
def time_for_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough on a busy machine. No kernel here finishes a wrong output later."""
    monkeypatch.setattr(output_checks, "VERIFYING_S", 60.0)
    monkeypatch.setattr(output_checks, "CHECKS_S", 60.0)
    monkeypatch.setattr(unfinished_outputs, "LATE_S", 0.0)


FOLDERS: list[Path] = []  # of the expected values of this module


@pytest.fixture(scope="module", autouse=True)
def _folder_of_expected_values(tmp_path_factory: pytest.TempPathFactory) -> None:
    FOLDERS[:] = [tmp_path_factory.mktemp("expected")]


@cache
def expected(problem: Problem, mode: Mode) -> dict[str, str]:
    """The folders of expected values by inputs, which an oracle computes once for all tests."""
    oracle = WorkerSession()
    oracle.answer(protocol.OpenWorker())
    folders = {}
    for name in ("normal", "peaked"):
        folders[name] = str(FOLDERS[0] / f"{len(list(FOLDERS[0].iterdir()))}")
        oracle.answer(
            protocol.ComputeExpected(
                problem=problem, mode=mode, seed=0, inputs=name, directory=folders[name], budget_s=60
            )
        )
    return folders


class Driver:
    """A session with a kernel of tests/misbehaving.py or of a file, driven as the engine drives a worker."""

    def __init__(self, function: str, mode: Mode = Mode.FWD, **fields: Any) -> None:
        backend = (
            function
            if function == "naive" or ":" in function
            else f"{Path(__file__).parents[1] / 'misbehaving.py'}:{function}"
        )
        problem = Problem(**{"seq_q": 16, "heads": 2, "head_dim": 16, **fields})
        self.case, self.procedure = Case(problem=problem, backend=backend, mode=mode), Procedure(block_s=1e-3)
        self.session = WorkerSession()
        self.opened = self.session.answer(protocol.OpenWorker(backend=backend, device="cpu:threads=1"))

    def verify(self, brief: bool = False) -> protocol.CaseVerified:
        reply = self.verify_or_fail(brief)
        assert isinstance(reply, protocol.CaseVerified), reply
        return reply

    def verify_or_fail(self, brief: bool = False) -> protocol.AnyReply:
        inputs = expected(self.case.problem, self.case.mode)
        self.prepared = self.session.answer(protocol.PrepareCase(case=self.case, procedure=self.procedure))
        peaked = "" if brief else inputs["peaked"]
        return self.session.answer(
            protocol.VerifyCase(directory=inputs["normal"], peaked_directory=peaked, brief=brief, seed=next(SEEDS))
        )

    def time(self, blocks: int = 5) -> protocol.CaseVerified:
        self.session.answer(protocol.SettleCase())
        for _ in range(blocks):
            assert isinstance(self.session.answer(protocol.TimeBlock(seed=next(SEEDS))), protocol.BlockTimed)
        return self.checked(protocol.CheckOutput(seed=next(SEEDS)))

    def checked(self, request: protocol.CheckOutput) -> protocol.CaseVerified:
        reply = self.session.answer(request)
        assert isinstance(reply, protocol.CaseVerified), reply
        return reply


RIGHT = """
import gc, os, time, warnings
import numpy as np
import torch
import torch.nn.functional as F

def attend(q, k, v, *, causal, scale):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

def sets_threads(q, k, v, *, causal, scale):
    torch.set_num_threads(2)
    return attend(q, k, v, causal=causal, scale=scale)

"""


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("torch.set_default_dtype(torch.bfloat16)", "default dtype: float32 -> bfloat16"),
        ("torch.set_default_device('meta')", "default device: cpu -> meta"),
        ("torch.set_grad_enabled(False)", "grad mode: True -> False"),
        ("torch.set_num_threads(2)", "threads: 1 -> 2"),
        ("torch.set_num_interop_threads(3)", "inter-op threads: 1 -> 3"),
        ("np.seterr(all='raise')", "numpy errors: divide raise, over raise, under raise, invalid raise"),
        ("torch.randn = lambda *shape, **options: torch.zeros(*shape)", "functions: torch.randn replaced"),
        ("torch.Tensor.isfinite = torch.Tensor.isnan", "functions: torch.Tensor.isfinite replaced"),
        ("time.perf_counter = lambda: 0.0", "functions of the measurement: time.perf_counter replaced"),
        ("warnings.simplefilter('error')", "warning filters: changed"),
        ("gc.disable()", "garbage collector: on ((700, 10, 10)) -> off ((700, 10, 10))"),
    ],
)
def test_state_that_a_file_sets_for_its_process_makes_no_right_kernel_wrong(
    line: str, change: str, tmp_path: Path
) -> None:
    # A module by the name of an earlier one would count as replaced, and be put back around each call.
    file = tmp_path / f"{tmp_path.name}.py"
    file.write_text(RIGHT + line)
    driver = Driver(f"{file}:attend", Mode.FWD_BWD)
    reply = driver.verify()
    assert reply.ok, reply.reason
    assert change in reply.changed_state
    assert isinstance(driver.prepared, protocol.CasePrepared)
    assert change in driver.prepared.facts["changed_state"]  # type: ignore[operator]
    assert driver.time(blocks=2).ok


def test_a_wrong_kernel_that_sets_state_is_told_what_it_set(tmp_path: Path) -> None:
    source = RIGHT.replace("    return F.", "    return 2 * F.") + "torch.set_default_dtype(torch.bfloat16)"
    (tmp_path / "wrong_and_sets.py").write_text(source)
    reply = Driver(f"{tmp_path}/wrong_and_sets.py:attend").verify()
    assert not reply.ok
    assert "settings of the process: default dtype: float32 -> bfloat16" in reply.reason


WRONG_IN_PAGES = """
import attnbench, torch

@attnbench.backend(features={"paged", "scale"}, modes={"fwd"})
def attend(q, k, v, problem, page_table=None):
    if page_table is not None:
        k, v = (pages[page_table].flatten(1, 2)[:, : problem.seq_kv].transpose(1, 2) for pages in (k, v))
    return (q @ k.mT * problem.scale).softmax(-1) @ v * 1.1
"""


@pytest.mark.parametrize(
    ("file", "line"), [("wrong_in_pages.py", ""), ("wrong_in_pages_and_sets.py", "torch.set_grad_enabled(False)")]
)
def test_a_wrong_kernel_with_pages_is_told_what_it_set_and_not_what_attnbench_set(
    file: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(WRONG_IN_PAGES + line)
    reply = Driver(f"{tmp_path}/{file}:attend", page_size=16).verify()
    assert not reply.ok
    assert reply.changed_state == (("grad mode: True -> False",) if line else ())
    assert reply.reason.endswith("settings of the process: grad mode: True -> False") == bool(line)


def test_a_kernel_that_sets_the_threads_in_every_call_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sets_threads.py").write_text(RIGHT)
    driver = Driver(f"{tmp_path}/sets_threads.py:sets_threads")
    with pytest.raises(AssertionError, match="every call changes a setting that belongs to the arm: threads: 1 -> 2"):
        driver.verify()


def test_a_setting_that_every_call_changes_is_named_with_the_failure_that_it_may_have_caused() -> None:
    driver = Driver("naive")
    assert driver.verify().ok
    case = driver.session._prepared_case()
    case.state._changes_of_arm["threads"] = "1 -> 2"
    failed = protocol.RequestFailed(status=Status.ERROR, reason="keeps 1.0 cores busy while idle")
    reply = session.with_changed_state(failed, case)
    assert isinstance(reply, protocol.RequestFailed)
    assert reply.reason.endswith("belongs to the arm: threads: 1 -> 2; keeps 1.0 cores busy while idle")


def test_a_score_function_whose_file_sets_state_changes_no_reference(tmp_path: Path) -> None:
    (tmp_path / "score_sets.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.bfloat16)\ndef dot(q, k): return q @ k.mT\n"
    )
    score = parse_score(f"{tmp_path}/score_sets.py:dot")
    reply = Driver("naive", score=score).verify()
    assert reply.ok, reply.reason


@pytest.mark.parametrize("phase", range(8))
def test_a_kernel_that_is_wrong_in_every_eighth_call_is_found(phase: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import misbehaving

    driver = Driver("wrong_in_eighth")
    misbehaving._calls = itertools.count(1, 8)  # right so far
    assert driver.verify(brief=True).ok
    for request in (protocol.SettleCase(), *[protocol.TimeBlock()] * 5):
        driver.session.answer(request)
    checks = driver.session._checks
    assert checks
    monkeypatch.setattr(checks, "_timed_s", 1e-12)
    monkeypatch.setattr(output_checks, "CHECKS_S", 0.0)  # no time for more than the fewest calls, as on a busy machine
    monkeypatch.setattr(memory_of_inputs, "SUSPICIOUS", 0.0)  # its calls separate the last check from those before
    misbehaving._calls = itertools.count(phase)
    reply = driver.checked(protocol.CheckOutput())
    assert not reply.ok
    assert "error" in reply.reason
    assert reply.errors["out"]["max_abs"]


@pytest.mark.parametrize("phase", range(0, 8, 3))
def test_a_kernel_that_is_wrong_in_every_eighth_call_is_found_by_its_verification_alone(phase: int) -> None:
    from tests import misbehaving

    driver = Driver("wrong_in_eighth")
    misbehaving._calls = itertools.count(phase)
    assert not driver.verify().ok


def test_a_call_that_is_wrong_by_chance_on_stressing_inputs_is_not_blamed_on_their_values() -> None:
    from tests import misbehaving

    misbehaving._calls = itertools.count(7)  # preparation, then peaked inputs
    reply = Driver("wrong_in_eighth").verify()
    assert reply.reason.startswith("some calls, as one on peaked inputs that is right when it is repeated: out: ")


def test_a_case_that_was_verified_in_full_before_has_fewer_calls_after_its_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver("right")
    calls, looked = [], list[bool]()
    for brief in (False, True):
        driver.verify(brief=True)
        checks = driver.session._checks
        assert checks
        driver.session.answer(protocol.SettleCase())
        driver.session.answer(protocol.TimeBlock(seed=next(SEEDS)))
        monkeypatch.setattr(checks.memory, "objection", lambda _, brief=brief: looked.append(brief) or "")
        before = checks.calls
        driver.checked(protocol.CheckOutput(brief=brief))
        calls.append(checks.calls - before)
    # The checked call of the block is the last of its calls or not.
    assert calls[0] >= output_checks.MAX_IN_A_ROW - 1
    assert output_checks.BRIEF_IN_A_ROW - 1 <= calls[1] <= output_checks.BRIEF_IN_A_ROW
    assert looked == [False]  # for a memory of inputs


def test_a_call_that_is_judged_again_counts_once() -> None:
    driver = Driver("right")
    driver.verify(brief=True)
    checks = driver.session._checks
    assert checks
    assert checks.judge_again().ok
    assert checks.calls == 1


def test_a_kernel_that_is_wrong_in_one_call_of_eight_at_random_is_found() -> None:
    driver = Driver("wrong_at_random")
    reply = driver.verify(brief=True)
    assert not (reply.ok and driver.time(blocks=100).ok)  # a miss has a probability of 1e-6


def test_a_wrong_output_of_one_block_is_found_though_all_later_ones_are_right() -> None:
    from tests import misbehaving

    driver = Driver("wrong_while_set")
    assert driver.verify().ok
    driver.session.answer(protocol.SettleCase())
    misbehaving.wrong_now.set()
    driver.session.answer(protocol.TimeBlock())
    misbehaving.wrong_now.clear()
    driver.session.answer(protocol.TimeBlock())
    reply = driver.checked(protocol.CheckOutput())
    assert (reply.ok, reply.reason.partition(": ")[0]) == (False, "timed call")


@pytest.mark.parametrize("function", ["right", "rounds_differently"])
def test_right_kernels_pass_the_checks_of_further_calls(function: str) -> None:
    driver = Driver(function, seq_q=13, dtype="fp32")
    assert driver.verify().ok
    assert driver.time().ok
    checks = driver.session._checks
    assert checks
    assert checks.calls >= output_checks.MIN_IN_A_ROW


def test_the_kernel_of_sdpa_is_the_named_one_in_every_step() -> None:
    """Which kernel runs is a setting of the process. The math kernel has scores and weights in memory."""
    peaks = {}
    for name in ("math", "flash"):
        driver = Driver(f"sdpa:{name}", seq_q=128)
        assert driver.verify().ok
        assert driver.time().ok
        memory = driver.session.answer(protocol.MeasureMemory())
        assert isinstance(memory, protocol.MemoryMeasured)
        peaks[name] = memory.peak
    scores = 2 * 128 * 128 * 4
    assert peaks["flash"] < scores < peaks["math"]


REPEATS = f"; {output_checks.REPEATED}"


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_the_switches_by_which_sdpa_chooses_a_kernel_are_no_change_of_a_setting(kernel: str) -> None:
    driver = Driver(f"sdpa:{kernel}")
    reply = driver.verify(brief=True)
    assert (reply.ok, reply.changed_state) == (True, ())
    assert isinstance(driver.prepared, protocol.CasePrepared)
    assert "changed_state" not in driver.prepared.facts


def test_the_switches_of_sdpa_are_settings_that_are_watched() -> None:
    assert {name for name, _, _ in process_settings.CUDA_FLAGS} == torch_sdpa.SWITCHES


TRANSFORMED, REMEMBERS = "second call, with transformed inputs: out: ", "remembers its inputs: a call takes "
BENT = "every call changes a setting that belongs to the arm: functions of the measurement: "
REMEMBERING = {
    "last_output": (Status.INCORRECT, REPEATS),
    "keeps_first_v": (Status.INCORRECT, verification.KEPT),
    "remembers_shape": (Status.INCORRECT, REPEATS),
    "remembers_version": (Status.INCORRECT, REPEATS),
    "remembers_sign": (Status.INCORRECT, TRANSFORMED),
    "remembers_digest": (Status.INCORRECT, REMEMBERS),
    "remembers_sample": (Status.INCORRECT, REMEMBERS),
    "remembers_round": (Status.INCORRECT, REMEMBERS),
    "remembers_weights": (Status.INCORRECT, REMEMBERS),
    "skips_between": (Status.INCORRECT, "out: "),
    "stops_after_calls": (Status.INCORRECT, "out: "),
    "in_thread": (Status.INCORRECT, "call"),
    "bends_time": (Status.ERROR, f"{BENT}time.perf_counter_ns replaced"),
    "bends_clock": (Status.ERROR, f"{BENT}attnbench.machine.device.cpu._clock replaced"),
}


@pytest.mark.parametrize("function", REMEMBERING)
def test_a_kernel_that_remembers_or_leaves_work_out_is_not_timed(function: str) -> None:
    status, words = REMEMBERING[function]
    driver = Driver(function, seq_q=64)  # so many tokens can be shifted in many ways
    reply = driver.verify_or_fail()
    if isinstance(reply, protocol.CaseVerified) and reply.ok:
        reply = driver.time()
    assert words in reply.reason
    assert (reply.status if isinstance(reply, protocol.RequestFailed) else Status.INCORRECT) is status


def test_a_cached_output_is_named_in_the_rounds_too() -> None:
    driver = Driver("last_output")
    assert driver.verify(brief=True).ok  # as in a restart: a single call
    assert driver.time().reason.endswith(REPEATS)


@pytest.mark.parametrize("function", ["zeros", "mean_of_v", "wrong_later"])
def test_other_wrong_outputs_are_not_called_cached(function: str) -> None:
    driver = Driver(function)
    reply = driver.verify()
    assert "cache" not in (driver.time() if reply.ok else reply).reason


@pytest.mark.parametrize(
    ("function", "ok", "words"),
    [("right", True, ""), ("remembers_weights_for_long", False, f"new inputs: {REMEMBERS}")],
)
def test_a_check_on_new_inputs_finds_what_single_calls_hide(
    function: str, ok: bool, words: str, tmp_path: Path
) -> None:
    driver = Driver(function, seq_q=64)
    assert driver.verify().ok
    assert driver.time().ok
    oracle = WorkerSession()
    oracle.answer(protocol.OpenWorker())
    fields = {"seed": 77, "inputs": "normal", "directory": str(tmp_path / "new")}
    oracle.answer(protocol.ComputeExpected(problem=driver.case.problem, mode=Mode.FWD, budget_s=60, **fields))
    reply = driver.session.answer(protocol.CheckNewInputs(**fields))
    assert isinstance(reply, protocol.CaseVerified)
    assert (reply.ok, words in reply.reason) == (ok, True)
    assert driver.session.answer(protocol.CheckNewInputs(**{**fields, "seed": 78})).status is Status.ERROR
