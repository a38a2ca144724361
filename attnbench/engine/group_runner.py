"""Measures one group at a time on this machine: its workers, its oracle, and what earlier groups taught.

Within a group every arm prepares, is verified and settles; then rounds time the arms side by side.
"""

from __future__ import annotations

import contextlib
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from weakref import WeakSet

import msgspec

from attnbench.analysis import readings, roofline
from attnbench.attention import cost, inputs
from attnbench.engine import expected_cache
from attnbench.engine.arm_session import ArmSession, GroupSessions, secret_seed
from attnbench.engine.candidates import Refusal
from attnbench.engine.forecast import FEW_ROUNDS_S, MARGIN, Forecast, compiles, rounds_s
from attnbench.engine.group import Group
from attnbench.engine.oracle import ExpectedFiles, Oracle
from attnbench.engine.plan import is_reference
from attnbench.engine.rounds import RoundsEnd, run_rounds
from attnbench.engine.verified_cache import VerifiedCases
from attnbench.engine.worker_process import Worker, WorkerFailedError, Workers
from attnbench.machine import resources
from attnbench.machine.temporary_folders import owned_folder
from attnbench.records.arm import Arm
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Cause, Environment, Procedure, Result, Status
from attnbench.records.speeds import Speeds

BEYOND_BUDGET = Refusal(Status.SKIPPED, "budget", Cause.BUDGET)


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and choices of a run."""

    procedures: dict[str, Procedure]  # by kind of device
    restarts: int = 1
    first_restart: int = 0  # number of the first restart, where earlier ones are stored
    seed: int = 0
    timeout_s: float = 60.0  # for each phase
    budget_s: float | None = None  # None: no limit
    in_order: bool = False  # groups are measured in the order of the plan up to the first that the budget leaves out
    memory_bytes: int = 0
    reference: str = ""
    ceilings: dict[str, Ceilings] = {}  # by device: a rate above one is checked on new inputs
    speeds: Speeds = Speeds()  # what this machine measured before
    # As a gate measures: all workers start before anything is timed, groups of several backends share them, and after
    # the first restart none begins when the budget is spent.
    whole_restarts: bool = False
    # Copy number of the arm whose failure decides a case: no later restart measures its group. 0: of none.
    deciding_copy: int = 0
    call_s: Mapping[str, float] = {}  # of earlier restarts, by case@arm: shortens settling
    right_on_new_inputs: frozenset[str] = frozenset()  # case@arm of earlier restarts: not checked again
    fail_fast: bool = False
    verify_only: bool = False  # nothing is timed
    probes: tuple[str, ...] = ()  # run for every case that is right
    extras: tuple[str, ...] = ()  # measured beyond time and memory: energy, timers
    profile: str = ""  # the directory for a profile of each case; empty: none
    profile_apart: bool = False  # each case has a folder of its own in it
    bare: bool = False  # a profile holds nothing but the calls

    @property
    def forks(self) -> bool:
        """Whether workers may be forks: not where restarts must differ as new processes do (docs/decisions/12)."""
        return self.restarts == 1 and not self.whole_restarts


class FailedSizes:
    """Cases that timed out or ran out of memory: no case of the same arm, dtype and mode with as much work is tried."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], tuple[int, str]] = {}  # FLOPs of the dense problem, and what happened

    def add(self, session: ArmSession, status: Status) -> None:
        problem, mode = session.group.problem, session.group.mode
        what = "ran out of memory" if status is Status.OOM else "timed out"
        failure = cost.flops_dense(problem, mode), f"{what} at {session.case.label}"
        self._first.setdefault((session.arm.id, problem.dtype.value, mode.value), failure)

    def refusal(self, group: Group, arm: Arm) -> Refusal | None:
        """Why the arm is skipped in this group; None if it is tried."""
        flops, what = self._first.get((arm.id, group.problem.dtype.value, group.mode.value), (0, ""))
        if what and cost.flops_dense(group.problem, group.mode) >= flops:
            return Refusal(Status.SKIPPED, f"a case no larger {what}", Cause.NO_LARGER)
        return None


class GroupRunner:
    """Measures groups within `with`: no worker outlives it.

    `phase` is called with each step, `stop_requested` between blocks. `end`: of the budget, on the clock of
    time.monotonic().
    """

    def __init__(
        self,
        settings: RunSettings,
        phase: Callable[[str], None],
        stop_requested: Callable[[], bool] = lambda: False,
        logs: Path | None = None,
        end: float = math.inf,
    ) -> None:
        self.settings, self.end, self._phase, self._stop_requested, self._logs = (
            settings,
            end,
            phase,
            stop_requested,
            logs,
        )
        self.forecast = Forecast(settings.speeds)
        self.spent: dict[str, float] = defaultdict(float)  # seconds by phase
        self.environments: dict[str, Environment] = {}  # by arm id
        self.call_s = dict(settings.call_s)
        self.right_on_new_inputs = set(settings.right_on_new_inputs)
        self._failed_sizes = FailedSizes()
        self._compilers: WeakSet[Worker] = WeakSet()  # workers that have compiled
        self._verified = VerifiedCases()
        self._random = random.Random(settings.seed)
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> GroupRunner:
        settings = self.settings
        folder = self._opened.enter_context(owned_folder("attnbench-group-"))
        expected_cache.make_room()
        self._oracle = Oracle(folder, settings.timeout_s, self.spent)
        self._opened.callback(self._oracle.terminate)
        self._workers = Workers(
            settings.memory_bytes, settings.timeout_s, self._logs, self.spent, self._phase, settings.whole_restarts
        )
        self._workers.forks = settings.forks
        self.environments = self._workers.environments
        self._opened.callback(self._workers.terminate_all)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def start(self, groups: Sequence[Group], restart: int) -> None:
        """Start the workers of all these groups while nothing is timed."""
        self._workers.gradients = any(group.mode.needs_grad for group in groups)
        arms = {arm.id: arm for group in groups for arm in group.in_turn(restart)}
        self._workers.open([arm for arm in arms.values() if arm.id not in self._workers.failures], self.end)

    def end_restart(self) -> None:
        """Terminate all workers; the next restart starts new ones."""
        self._workers.terminate_all()

    def measure(self, group: Group, restart: int, rest_s: float = 0.0) -> list[Result]:
        """The results of a group, within its share of the budget. `rest_s`: of the budget, for later groups."""
        sessions = GroupSessions(group, restart, self.settings.procedures, self._retire)
        fits = self._may_fit(group)
        if not fits and self.settings.in_order:
            self.end = 0.0  # whatever a later group takes
            return []
        if not fits:
            for arm in group.arms:
                sessions.refuse(arm, BEYOND_BUDGET)
            return sessions.results
        self._open(sessions)
        if sessions.live:
            started = time.monotonic()
            self._run_sessions(sessions, rest_s)
            compiling_s = sum(map(_compiling_s, sessions.live))
            self.forecast.learn_group(group, time.monotonic() - started - compiling_s)
        results: list[Result] = []
        for result in sessions.results:
            if result.status is Status.OOM and not group.alone:
                # The other arms held memory meanwhile: out of memory counts only for an arm that ran alone.
                solo = msgspec.structs.replace(group, arms=(result.arm,), borrowed=())
                results += self.measure(solo, restart, rest_s)
            else:
                results.append(result)
        return results

    @contextlib.contextmanager
    def ready(self, group: Group) -> Iterator[GroupSessions]:
        """The sessions of a group, verified and settled; meanwhile the caller times them."""
        sessions = GroupSessions(group, 0, self.settings.procedures, self._retire)
        self._open(sessions)
        are_ready = bool(sessions.live) and self._make_all_ready(sessions)
        yield sessions
        if are_ready:
            self._release(sessions)

    def needed_s(self, groups: Sequence[Group]) -> list[float]:
        """Predicted seconds of each group with the fewest rounds, and of the workers that it is the first to need."""
        cores, started = len(resources.available_cores()), set[str]()
        seconds = self.forecast.groups_s(groups)
        for place, group in enumerate(groups):
            lacking = self._workers.lacking((*group.arms, *group.borrowed))
            if new := [arm for arm in lacking if arm.id not in started]:
                seconds[place] += self.forecast.start_s(new, cores)
                started.update(arm.id for arm in new)
        return seconds

    def _may_fit(self, group: Group) -> bool:
        """Whether the budget may be long enough for the group: its prediction may be off by MARGIN."""
        return self.needed_s([group])[0] <= MARGIN * (self.end - time.monotonic())

    def _end_of_rounds(self, sessions: GroupSessions, needed_s: float, rest_s: float) -> float:
        """When rounds are ended, on the clock of time.monotonic(). `needed_s`: predicted for the group.

        Later groups get their time, and MARGIN times as much where there is enough, if need be from these rounds.
        """
        if math.isinf(self.end) or all(
            each.min_rounds == each.max_rounds for each in self.settings.procedures.values()
        ):
            return self.end  # a fixed number of rounds is cut only at the end of the budget
        now, least_s = time.monotonic(), sum(session.least_s for session in sessions.live)
        for_rounds_s, after_s = rounds_s(sessions.group), self.end - now - least_s
        if rest_s <= MARGIN * after_s:  # else not all can be measured
            few_s = min(rounds_s(sessions.group, FEW_ROUNDS_S), after_s - rest_s)
            part = needed_s / (needed_s + rest_s)
            for_rounds_s = max(few_s, part * (after_s - MARGIN * rest_s), 0.0)
        return min(now + least_s + for_rounds_s, self.end)

    def _open(self, sessions: GroupSessions) -> None:
        """A session for every arm whose worker runs."""
        group, failures = sessions.group, self._workers.failures
        arms = []
        for arm in group.in_turn(sessions.restart):
            if failure := failures.get(arm.id):
                sessions.refuse(arm, Refusal(failure.status, failure.reason, failure.cause))
            elif refusal := self._failed_sizes.refusal(group, arm):
                sessions.refuse(arm, refusal)
            else:
                arms.append(arm)
        procedure = self.settings.procedures[group.arms[0].parsed_device.kind]
        self._workers.open(arms, self.end, lambda: self._oracle.start_for(group.problem, group.mode, procedure))
        for arm in arms:
            if failure := failures.get(arm.id):
                sessions.refuse(arm, Refusal(failure.status, failure.reason, failure.cause, failure.facts))
            else:
                sessions.add(arm, self._workers[arm])

    def _run_sessions(self, sessions: GroupSessions, rest_s: float) -> None:
        """Verify the live sessions, time them, and record their results."""
        if not self._make_all_ready(sessions):
            return
        if self.settings.verify_only:
            sessions.complete()
        else:
            self._time(sessions, rest_s)
        self._release(sessions)

    def _make_all_ready(self, sessions: GroupSessions) -> bool:
        """Verify the live sessions, and settle them; False where they are refused without a reference."""
        first = sessions.live[0]
        self._phase(f"{first.case.label}  reference")
        try:
            expected, stressing = self._oracle.expect(first.group.problem, first.group.mode, first.procedure, self.end)
        except WorkerFailedError as failure:
            reason = f"no reference to verify against: {failure.reason}"
            missing = Refusal(Status.SKIPPED, reason, Cause.NO_REFERENCE, failure.facts)
            sessions.refuse_live(BEYOND_BUDGET if failure.cause else missing)
            return False
        sessions.step(lambda session: self._make_ready(session, expected, stressing))
        return True

    def _release(self, sessions: GroupSessions) -> None:
        for session in sessions.live:
            try:
                session.release()
            except WorkerFailedError as failure:  # after the results, which it does not change
                self._retire(session, failure)

    def _make_ready(self, session: ArmSession, expected: ExpectedFiles, stressing: dict[str, ExpectedFiles]) -> None:
        """Prepare, verify and settle. Later restarts, and what the cache holds, are verified in brief."""
        session.deadline = self.end
        self._phase(f"{session.case.label}  preparing")
        session.prepare()
        self._phase(f"{session.case.label}  verifying")
        known = not self.settings.verify_only and self._verified.holds(session.case, session.arm, session.procedure)
        session.in_full = not (session.restart or known)
        session.verify(expected, stressing if session.in_full else {})
        if known:
            session.facts["verified_earlier"] = True
        if self.settings.verify_only:
            session.probe(self.settings.probes)
            return
        self.call_s[session.key] = session.settle(self.call_s.get(session.key, 0.0))
        self.forecast.learn(session.arm, session.case, session.call_s)
        if seconds := _compiling_s(session):
            self.forecast.learn_compile(session.arm, seconds, starts=session.worker not in self._compilers)
            self._compilers.add(session.worker)

    def _time(self, sessions: GroupSessions, rest_s: float) -> None:
        """Rounds, then what is measured outside them. Records nothing if an interruption left too few rounds."""
        if time.monotonic() + sum(session.least_s for session in sessions.live) > self.end:
            sessions.refuse_live(BEYOND_BUDGET)
            return
        for session in sessions.live:
            session.deadline = math.inf  # what is timed is not lost
        deadline = self._end_of_rounds(sessions, self.forecast.group_s(sessions.group), rest_s)
        end = run_rounds(sessions, deadline, self._random, self._stop_requested, self._phase)
        if end is RoundsEnd.INTERRUPTED and any(
            session.rounds < session.procedure.min_rounds for session in sessions.live
        ):
            return  # a resume measures this group again
        sessions.step(lambda session: session.finish(self.settings.extras))
        sessions.step(lambda session: session.probe(() if session.restart else self.settings.probes))
        sessions.step(self._check_new_inputs)
        if self.settings.profile:
            sessions.step(self._profile)
        for session in sessions.live:
            session.facts["rounds_reason"] = end.value
            reference = next((other for other in sessions.live if self._is_reference(other.arm, session.arm)), None)
            if reference:
                session.facts["reference"] = reference.arm.id
                if reference.arm in sessions.group.borrowed:
                    session.samples |= reference.times("reference_")
            if session.in_full:  # and right in every call that was checked since
                self._verified.add(session.case, session.arm, session.procedure)
        sessions.complete()

    def _check_new_inputs(self, session: ArmSession) -> None:
        """Check a case whose rate is above a ceiling on inputs that it cannot have seen; else it is not ranked."""
        ceilings, seconds = self.settings.ceilings.get(session.arm.device), readings.location(session.timed().values)
        problem, mode = session.group.problem, session.group.mode
        if not (ceilings and seconds and roofline.above_ceiling(ceilings, problem, mode, seconds)):
            return
        if session.key in self.right_on_new_inputs:
            return
        distribution, seed = session.procedure.inputs, secret_seed()
        if distribution.startswith(inputs.FILE):
            distribution = "normal"
        session.facts["new_inputs"] = "not checked on new inputs"
        opened = session.worker.opened
        if opened and opened.checks_new_inputs:
            try:
                expected = self._oracle.expect_new(problem, mode, distribution, seed)
            except WorkerFailedError as failure:
                session.facts["new_inputs"] = f"not checked on new inputs: {failure.reason}"
            else:
                session.check_new_inputs(expected, distribution, seed)
                self.right_on_new_inputs.add(session.key)

    def _profile(self, session: ArmSession) -> None:
        """Profile into the directory, or with several cases into a subdirectory for each."""
        folder = Path(self.settings.profile)
        if self.settings.profile_apart:
            folder /= re.sub(r"[^\w.-]", "_", f"{session.case.id}-{session.arm.id}")
        session.profile(str(folder), self.settings.bare)

    def _retire(self, session: ArmSession, failure: WorkerFailedError) -> None:
        """Terminate the worker of a failed session, unless it only refused the case: later readings would be wrong."""
        session.facts |= failure.facts
        if failure.status is Status.UNSUPPORTED:
            return
        self._workers.terminate(session.arm)
        if failure.status is Status.TIMEOUT or (failure.status is Status.OOM and session.group.alone):
            self._failed_sizes.add(session, failure.status)

    def _is_reference(self, other: Arm, arm: Arm) -> bool:
        return is_reference(other, arm, self.settings.reference)


def _compiling_s(session: ArmSession) -> float:
    """Seconds of the first call of a backend that compiles in it; 0 for others."""
    first_call = session.samples.get("first_call") if compiles(session.arm) else None
    return (first_call.values[0] or 0.0) if first_call else 0.0
