"""A runner that starts no worker: its results have the times and errors that a test gives them."""

from __future__ import annotations

import math

from attnbench.engine.group import Group
from attnbench.engine.runner import Ending, Runner
from attnbench.gate.evidence import HEAD
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Environment, Result, Status, sample
from tests.gate.test_verdicts import WOBBLE
from tests.samples import timed


class SimulatedRunner(Runner):
    """All arms take equal time, but for a few thousandths between restarts of head."""

    def run(self) -> Ending:
        first = self.settings.first_restart
        for restart in range(first, first + self.settings.restarts):
            for group in self.plan.groups:
                results = [self._result(group, arm, restart) for arm in group.arms]
                self._append(results)
                for result in results:
                    self._observer.result(result, 0.0)
        self.environments |= {arm.id: Environment(device="CPU") for arm in self.plan.arms}
        self.spent["rounds"] += 1.0
        return Ending()

    def _result(self, group: Group, arm: Arm, restart: int) -> Result:
        case = group.case(arm)
        seconds = self.time_s(case, arm) * math.exp((arm.copy == HEAD) * WOBBLE[restart % len(WOBBLE)])
        error = self.rms_error(case, arm)
        return Result(
            case=case, case_id=case.id, arm=arm, restart=restart, group=group.id, status=Status.OK,
            samples={"time": timed([seconds] * 5), "peak_memory": sample("B", [2.0**20])},
            facts={"errors": {"out": {"max_abs": error, "rms": error}}},
        )  # fmt: skip

    def time_s(self, case: Case, arm: Arm) -> float:
        """Seconds of a call, without what differs between restarts."""
        return 1e-3

    def rms_error(self, case: Case, arm: Arm) -> float:
        """The error of the output."""
        return 1e-7
