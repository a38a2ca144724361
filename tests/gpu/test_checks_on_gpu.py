"""Checks of outputs that need streams of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import protocol
from attnbench.worker.session import WorkerSession
from attnbench.worker.unfinished_outputs import UNFINISHED

pytestmark = pytest.mark.gpu

KERNELS = Path(__file__).parents[1] / "misbehaving.py"


@pytest.mark.parametrize(("function", "reason"), [("right", ""), ("in_stream", UNFINISHED)])
def test_work_in_another_stream_is_no_finished_output(function: str, reason: str, tmp_path: Path) -> None:
    backend, problem = f"{KERNELS}:{function}", Problem(seq_q=64, heads=2)
    session = WorkerSession()
    session.answer(protocol.OpenWorker(backend=backend, device="cuda:0"))
    session.answer(
        protocol.ComputeExpected(
            problem=problem, mode=Mode.FWD, seed=0, inputs="normal", directory=str(tmp_path), budget_s=5
        )
    )
    case = Case(problem=problem, backend=backend, mode=Mode.FWD)
    session.answer(protocol.PrepareCase(case=case, procedure=Procedure()))
    reply = session.answer(protocol.VerifyCase(directory=str(tmp_path)))
    assert isinstance(reply, protocol.CaseVerified)
    assert (reply.ok, reply.reason) == (not reason, reason)
