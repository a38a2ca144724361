"""attnbench's own rule on the kernels of the corpus: the verification of `attnbench verify`, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.studies.corpus.registry import Kernel
from attnbench.worker import protocol
from attnbench.worker.session import WorkerSession

DEVICE = "cpu:threads=1"
BUDGET_S = 60.0  # of a reference: all groups of every problem


class Verifier:
    """Verifies kernels; the expected values of a problem are computed once."""

    def __init__(self, directory: Path, distributions: Sequence[str] = ("normal",)) -> None:
        self._directory, self._distributions = directory, distributions
        self._oracle = WorkerSession()
        self._oracle.answer(protocol.OpenWorker())
        self._expected: dict[tuple[Problem, Mode, str], str] = {}

    def objection(self, kernel: Kernel) -> str:
        """Why the verification finds the kernel wrong; empty if it is right on all its problems."""
        session = WorkerSession()
        opened = session.answer(protocol.OpenWorker(backend=kernel.backend, device=DEVICE))
        assert isinstance(opened, protocol.WorkerOpened), opened
        for problem in kernel.problems:
            if reason := self._verify(session, Case(problem=problem, backend=kernel.backend, mode=kernel.mode)):
                return reason
        return ""

    def _verify(self, session: WorkerSession, case: Case) -> str:
        for distribution in self._distributions:
            procedure = Procedure(inputs=distribution)
            prepared = session.answer(protocol.PrepareCase(case=case, procedure=procedure))
            if isinstance(prepared, protocol.RequestFailed):
                return prepared.reason
            further = {name: self._expect(case, name) for name in inputs.stressing(case.problem, case.mode)}
            request = protocol.VerifyCase(
                directory=self._expect(case, distribution),
                peaked_directory=further.pop("peaked"),
                further_directories=further,
            )
            reply = session.answer(request)
            if isinstance(reply, protocol.RequestFailed):
                return reply.reason
            assert isinstance(reply, protocol.CaseVerified), reply
            if not reply.ok:
                return reply.reason
        return ""

    def _expect(self, case: Case, distribution: str) -> str:
        key = case.problem, case.mode, distribution
        if key not in self._expected:
            directory = str(self._directory / str(len(self._expected)))
            request = protocol.ComputeExpected(
                problem=case.problem,
                mode=case.mode,
                seed=Procedure().seed,
                inputs=distribution,
                directory=directory,
                budget_s=BUDGET_S,
            )
            self._oracle.answer(request)
            self._expected[key] = directory
        return self._expected[key]
