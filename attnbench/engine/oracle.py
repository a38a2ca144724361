"""The oracle: the process that computes expected values, which every arm's output is compared with."""

import math
import shutil
from pathlib import Path
from typing import NamedTuple

from attnbench.attention import inputs
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import expected_cache
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.machine import resources
from attnbench.records.result import Procedure
from attnbench.worker.protocol import ComputeExpected

BUDGET_S = 2.0  # of computing expected values; beyond it, whole (batch, kv head) groups are sampled by seed
STRESSING_BUDGET_S = 0.2  # of one distribution
MAX_STORED_BYTES = 2 * 1024**3  # of expected values on disk


class ExpectedFiles(NamedTuple):
    """Expected values on disk."""

    directory: Path
    share: float  # of the query rows that they cover


class Oracle:
    """Computes expected values once for each problem. Workers read them from memory-mapped files in `directory`."""

    def __init__(self, directory: Path, timeout_s: float, spent: dict[str, float]) -> None:
        self._directory, self._timeout_s, self._spent = directory, timeout_s, spent
        self._worker: Worker | None = None
        self._files: dict[tuple[Problem, Mode, str], ExpectedFiles] = {}
        self._count = 0

    def start(self) -> Worker:
        """Start the process if it does not run: its imports take seconds."""
        if self._worker is None:
            self._worker = Worker(None, resources.available_cores(), 0, spent=self._spent)
        return self._worker

    def start_for(self, problem: Problem, mode: Mode, procedure: Procedure) -> None:
        """Start the process if the expected values of this problem are not stored yet."""
        cached = mode if mode is Mode.FWD else Mode.FWD_BWD
        entry = expected_cache.entry(problem, cached, procedure.seed, procedure.inputs, BUDGET_S)
        known = (problem, cached, procedure.inputs) in self._files
        if not known and not (entry and expected_cache.stored(entry) is not None):
            self.start()

    def expect(
        self, problem: Problem, mode: Mode, procedure: Procedure, deadline: float = math.inf
    ) -> tuple[ExpectedFiles, dict[str, ExpectedFiles]]:
        """Expected values for the inputs of the procedure, and for stressing inputs by distribution.

        Raises WorkerFailedError, also when they are not there at the deadline.
        """
        files = self._expect(problem, mode, procedure.seed, procedure.inputs, BUDGET_S, deadline)
        return files, {
            distribution: self._expect(problem, mode, procedure.seed, distribution, STRESSING_BUDGET_S, deadline)
            for distribution in inputs.stressing(problem, mode)
        }

    def _expect(
        self, problem: Problem, mode: Mode, seed: int, inputs: str, budget_s: float, deadline: float
    ) -> ExpectedFiles:
        mode = mode if mode is Mode.FWD else Mode.FWD_BWD
        key = problem, mode, inputs
        if key not in self._files:
            entry = expected_cache.entry(problem, mode, seed, inputs, budget_s)
            share = expected_cache.stored(entry) if entry else None
            if entry and share is not None:
                return ExpectedFiles(entry, share)
            self._make_room()
            draft = expected_cache.draft(inputs) if entry else None
            directory = draft or self._new_directory(inputs)
            request = ComputeExpected(
                problem=problem, mode=mode, seed=seed, inputs=inputs, directory=str(directory), budget_s=budget_s
            )
            share = self._compute(request, deadline)
            if entry and draft:
                return ExpectedFiles(expected_cache.keep(draft, entry), share)
            self._files[key] = ExpectedFiles(directory, share)
        return self._files[key]

    def expect_new(self, problem: Problem, mode: Mode, inputs: str, seed: int) -> ExpectedFiles:
        """Expected values for inputs of another seed, which are used once. Raises WorkerFailedError."""
        mode = mode if mode is Mode.FWD else Mode.FWD_BWD
        directory = self._new_directory("new")
        request = ComputeExpected(
            problem=problem, mode=mode, seed=seed, inputs=inputs, directory=str(directory), budget_s=BUDGET_S
        )
        return ExpectedFiles(directory, self._compute(request, math.inf))

    def _new_directory(self, inputs: str) -> Path:
        self._count += 1
        return self._directory / f"{self._count:06d}-{inputs}"

    def _compute(self, request: ComputeExpected, deadline: float) -> float:
        """Have the oracle compute; return the share of rows. A worker that fails is replaced at the next request."""
        worker = self.start()
        try:
            worker.open(self._timeout_s, deadline)
            return worker.ask(request, max(self._timeout_s, 60 * request.budget_s), deadline).share
        except WorkerFailedError:
            self._worker = None
            raise

    def _make_room(self) -> None:
        """Delete the oldest values of this run beyond MAX_STORED_BYTES; they are computed again where needed."""
        sizes = [sum(file.stat().st_size for file in files.directory.iterdir()) for files in self._files.values()]
        for index, key in enumerate(list(self._files)):
            if sum(sizes[index:]) <= MAX_STORED_BYTES:
                return
            shutil.rmtree(self._files.pop(key).directory)

    def terminate(self) -> None:
        if self._worker:
            self._worker.terminate()
            self._worker = None
