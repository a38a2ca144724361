"""A run: every group of a plan in every restart, within the budget; one Result for each (case, arm, restart).

The outer loop is the restart, which starts new workers.
"""

import math
import random
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from attnbench.engine.forecast import Forecast
from attnbench.engine.group import Group
from attnbench.engine.group_runner import GroupRunner, RunSettings
from attnbench.engine.later_groups import LaterGroups
from attnbench.engine.plan import Plan, missing_arms
from attnbench.records.result import Environment, Facts, Key, Result, Status


class Observer(Protocol):
    """Receives the progress of a run."""

    def phase(self, text: str) -> None:
        """The step that begins now."""

    def result(self, result: Result, remaining_s: float) -> None:
        """A case ended."""

    def more(self, count: int, why: str = "") -> None:
        """So many results follow beyond those that were planned, or fewer; `why`: for people."""

    def note(self, text: str) -> None:
        """Something happened that a user must know at once."""


class SilentObserver:
    """An observer of a run that reports nothing."""

    def phase(self, text: str) -> None:
        """Ignore the phase."""

    def result(self, result: Result, remaining_s: float) -> None:
        """Ignore the result."""

    def more(self, count: int, why: str = "") -> None:
        """Ignore the number and its reason."""

    def note(self, text: str) -> None:
        """Ignore the note."""


AFTER_BLOCK = "stopping after this block"


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    interrupted: bool = False
    stopped: bool = False  # by fail_fast


class PlanRunner(ABC):
    """Measures what a plan lacks, on this machine or on others. `append` stores the results of a group, all at once."""

    stopping = AFTER_BLOCK  # what is printed when a stop is requested

    def __init__(self, settings: RunSettings, append: Callable[[Sequence[Result]], None], observer: Observer) -> None:
        self.settings, self._append, self._observer = settings, append, observer
        self.stop_requested = False  # set by the first Ctrl-C: what is measured now may end, results are kept
        self.forecast = Forecast(settings.speeds)
        self.spent: dict[str, float] = defaultdict(float)  # seconds by phase, and in total
        self.environments: dict[str, Environment] = {}  # by arm id
        self.nodes: dict[str, Facts] = {}  # of a cluster, by name
        self.node_changes = 0  # of `nodes`
        self.ceilings = settings.ceilings  # by device
        self.call_s = dict(settings.call_s)  # seconds of a call, by case and arm
        self.right_on_new_inputs = set(settings.right_on_new_inputs)  # by case and arm

    @property
    def known(self) -> tuple[int, int]:
        """Changes when more is known of arms or nodes."""
        return len(self.environments), self.node_changes

    @abstractmethod
    def run(self) -> Ending:
        """Measure everything that is not done. No worker outlives this call."""

    def _decisive(self, results: Sequence[Result]) -> Result | None:
        """The result that decides its case, whatever further restarts would show; None if there is none."""
        copy, undecided = self.settings.deciding_copy, (Status.OK, Status.SKIPPED)
        return next(
            (result for result in results if copy and result.arm.copy == copy and result.status not in undecided), None
        )

    def _left_out(self, decisive: Result, count: int) -> None:
        """Report that so many results of later restarts are left out."""
        if count:
            self._observer.more(
                -count, f"{decisive.case.label} is {decisive.status.value}, which no later restart changes"
            )


class Runner(PlanRunner):
    """Runs a plan, group after group. `done` are the keys that are stored already."""

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        append: Callable[[Sequence[Result]], None],
        observer: Observer,
        done: frozenset[Key] = frozenset(),
        logs: Path | None = None,
    ) -> None:
        super().__init__(settings, append, observer)
        self.plan, self._done = plan, done
        self._started = time.monotonic()
        self._end = math.inf if settings.budget_s is None else self._started + settings.budget_s
        of_group = msgspec.structs.replace(settings, profile_apart=plan.cases > 1)
        self._groups = GroupRunner(of_group, observer.phase, lambda: self.stop_requested, logs, self._end)
        self.forecast, self.spent, self.call_s = self._groups.forecast, self._groups.spent, self._groups.call_s
        self.right_on_new_inputs = self._groups.right_on_new_inputs
        self._first_ratio = self.forecast.ratio

    def run(self) -> Ending:
        """Measure everything that is not done. No worker outlives this call."""
        settings = self.settings
        try:
            with self._groups as groups:
                self.environments = groups.environments
                for restart in range(settings.first_restart, settings.first_restart + settings.restarts):
                    if restart and settings.whole_restarts and time.monotonic() > self._end:
                        return Ending()
                    if not self._restart(restart):
                        return Ending(interrupted=self.stop_requested, stopped=not self.stop_requested)
                    groups.end_restart()
        finally:
            self.spent["total"] += time.monotonic() - self._started
        return Ending()

    def _restart(self, restart: int) -> bool:
        """Measure all groups once; False if the run ends here."""
        groups = list(missing_arms(self._order(restart), restart, self._done, self.settings.reference))
        if self.settings.whole_restarts:
            self._groups.start([group for group in groups if not group.late], restart)
        later = range(restart + 1, self.settings.first_restart + self.settings.restarts)
        restart_s = self.plan.rest(self._done, later, self.settings.speeds).seconds / max(len(later), 1)
        rest = LaterGroups(groups, self._groups.needed_s)
        for group in rest:
            if self.stop_requested:
                return False
            restarts_s = [restart_s * self.forecast.ratio / self._first_ratio] * len(later)
            reserved_s = rest.reserved_s(self._end - time.monotonic(), restarts_s)
            results = self._groups.measure(group, restart, reserved_s)
            started = time.monotonic()
            self._append(results)
            self.spent["store"] += time.monotonic() - started
            left_s = rest.seconds + sum(restarts_s)
            for result in results:
                self._observer.result(result, min(left_s, max(self._end - time.monotonic(), 0.0)))
            if decisive := self._decisive(results):
                groups_left = tuple(each for each in self.plan.groups if each.id != group.id)
                self.plan = msgspec.structs.replace(self.plan, groups=groups_left)
                self._left_out(decisive, len(later) * len(group.arms))
            if self.settings.fail_fast and any(result.status.failed for result in results):
                return False
        return not self.stop_requested

    def _order(self, restart: int) -> list[Group]:
        """The order of the plan for a single restart; with several, random within each pass."""
        groups = list(self.plan.groups)
        if self.settings.restarts > 1:
            random.Random(f"{self.settings.seed}/{restart}").shuffle(groups)
            groups.sort(key=lambda group: group.late)
        return groups
