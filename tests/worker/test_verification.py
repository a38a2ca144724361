"""Each kind of wrong output fails its verification, in a session of this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Status
from attnbench.worker import protocol
from attnbench.worker.session import WorkerSession

Verify = Callable[[str, Problem, Mode], protocol.AnyReply]

MISBEHAVING = Path(__file__).parents[1] / "misbehaving.py"
PROCEDURE = Procedure()
SQUARE = Problem(seq_q=32, heads=2)
UNEQUAL = Problem(seq_q=24, seq_kv=40, heads=2, mask="causal")
# The function, the problem, the mode, and words of the reason.
WRONG = {
    "wrong_shape": (SQUARE, Mode.FWD, "out: is float32 [1, 2, 32, 63] and should be float32 [1, 2, 32, 64]"),
    "wrong_dtype": (SQUARE, Mode.FWD, "float64"),
    "wrong_device": (SQUARE, Mode.FWD, "out is on meta"),
    "nan": (SQUARE, Mode.FWD, "not finite"),
    "zeros": (SQUARE, Mode.FWD, "out: "),
    "mean_of_v": (SQUARE, Mode.FWD, "out: "),
    "unwritten": (SQUARE, Mode.FWD, "out: "),
    "last_output": (SQUARE, Mode.FWD, "out: "),
    "view_of_input": (SQUARE, Mode.FWD, ""),
    "changes_inputs": (SQUARE, Mode.FWD, "was changed"),
    "of_flash_attn": (SQUARE, Mode.FWD, "; of_flash_attn receives causal and scale, and tensors [batch, heads, seq"),
    "top_left": (UNEQUAL, Mode.FWD, "out: "),
    "wrong_lse": (msgspec.structs.replace(SQUARE, returns="lse"), Mode.FWD, "lse: off by"),
    "wrong_gradient": (msgspec.structs.replace(SQUARE, dtype="bf16"), Mode.BWD, "dq: "),
}


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Verify:
    """The reply to the verification of a function of misbehaving.py, in full."""
    pytest.importorskip("torch")
    oracle = WorkerSession()
    oracle.answer(protocol.OpenWorker(cpus=(0,)))

    @cache
    def expected(problem: Problem, mode: Mode, inputs: str) -> str:
        directory = str(tmp_path_factory.mktemp("expected"))
        request = protocol.ComputeExpected(
            problem=problem, mode=mode, seed=PROCEDURE.seed, inputs=inputs, directory=directory, budget_s=60
        )
        assert isinstance(oracle.answer(request), protocol.ExpectedComputed)
        return directory

    def verify(function: str, problem: Problem, mode: Mode) -> protocol.AnyReply:
        session = WorkerSession()
        backend = f"{MISBEHAVING}:{function}"
        opened = session.answer(protocol.OpenWorker(backend=backend, device="cpu:threads=1"))
        assert isinstance(opened, protocol.WorkerOpened)
        assert not opened.unavailable
        case = Case(problem=problem, backend=backend, mode=mode)
        prepared = session.answer(protocol.PrepareCase(case=case, procedure=PROCEDURE))
        if not isinstance(prepared, protocol.CasePrepared):
            return prepared
        full = mode if mode is Mode.FWD else Mode.FWD_BWD
        directories = (expected(problem, full, inputs) for inputs in (PROCEDURE.inputs, "peaked"))
        return session.answer(protocol.VerifyCase(directory=next(directories), peaked_directory=next(directories)))

    return verify


@pytest.mark.parametrize("function", WRONG)
def test_a_wrong_output_fails_its_verification(function: str, verdict: Verify) -> None:
    problem, mode, words = WRONG[function]
    reply = verdict(function, problem, mode)
    assert isinstance(reply, protocol.CaseVerified)
    assert not reply.ok
    assert words in reply.reason


def test_an_output_that_is_no_tensor_is_an_error(verdict: Verify) -> None:
    with pytest.raises(TypeError, match="out is a list, not a tensor"):
        verdict("not_a_tensor", SQUARE, Mode.FWD)


@pytest.mark.parametrize(
    "case", [(SQUARE, Mode.FWD), (UNEQUAL, Mode.FWD), (SQUARE, Mode.BWD)], ids=("fwd", "causal", "bwd")
)
def test_a_right_output_passes_its_verification(case: tuple[Problem, Mode], verdict: Verify) -> None:
    reply = verdict("right", *case)
    assert isinstance(reply, protocol.CaseVerified)
    assert reply.ok, reply.reason


def test_a_mode_and_a_dtype_that_are_not_declared_are_unsupported(verdict: Verify) -> None:
    reply = verdict("wrong_gradient_refused", msgspec.structs.replace(SQUARE, dtype="bf16"), Mode.BWD)
    assert isinstance(reply, protocol.RequestFailed)
    assert (reply.status, reply.reason) == (
        Status.UNSUPPORTED,
        "bf16 unsupported (supported: fp32); backward unsupported",
    )
