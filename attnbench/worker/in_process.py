"""Verification in this process, for functions that cannot harm it: no worker, no timing."""

from pathlib import Path

from attnbench import backends
from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import ProblemError
from attnbench.records.arm import Device
from attnbench.records.case import Case
from attnbench.records.result import Procedure
from attnbench.worker import expected_values, prepared_case, verification
from attnbench.worker.process_state import ProcessState
from attnbench.worker.protocol import RequestFailed, VerifyCase
from attnbench.worker.session import with_changed_state

BUDGET_S = 60.0  # of a reference, so that it covers the whole output


class Verifier:
    """Verifies backends on one thread; the expected values of a problem are computed once."""

    def __init__(self, directory: Path) -> None:
        from attnbench.machine.device import open_instrument

        self._directory, self._procedure = directory, Procedure()
        self._instrument = open_instrument(Device(kind="cpu", threads=1))
        self._expected: dict[tuple[Problem, Mode, str], str] = {}

    def objection(self, case: Case, state: ProcessState | None = None) -> str:
        """Why a full verification does not pass; empty if it does.

        Raises ProblemError for a case that the backend does not support, and whatever the backend raises.
        """
        state = state or ProcessState()
        with state.backend_code():
            backend = backends.load(case.backend)
        if objections := backend.objections(case, "cpu"):
            raise ProblemError(f"{case.backend}: {'; '.join(objections)}")
        prepared, _ = prepared_case.prepare(case, self._procedure, backend, self._instrument, state)
        further = {name: self._expect(case, name) for name in inputs.stressing(case.problem, case.mode)}
        request = VerifyCase(
            directory=self._expect(case, self._procedure.inputs),
            peaked_directory=further.pop("peaked"),
            further_directories=further,
        )
        reply = with_changed_state(verification.verify(prepared, request)[0], prepared)
        return reply.reason if isinstance(reply, RequestFailed) or not reply.ok else ""

    def _expect(self, case: Case, distribution: str) -> str:
        mode = case.mode if case.mode is Mode.FWD else Mode.FWD_BWD
        key = case.problem, mode, distribution
        if key not in self._expected:
            directory = self._directory / str(len(self._expected))
            expected_values.compute(case.problem, mode, self._procedure.seed, distribution, directory, BUDGET_S)
            self._expected[key] = str(directory)
        return self._expected[key]
