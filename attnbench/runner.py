"""Groups -> rounds over workers -> Results. Deadlines, burial, budget; one line a (case, arm, launch).

The outer loop is the launch: all workers start anew. Within a group every arm prepares, is verified and settles; then
each round asks every arm, in random balanced order, for one timed block while the others wait in `read`.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from attnbench import host, stats
from attnbench.arm import Arm, parse_device
from attnbench.attention import cost
from attnbench.bench import Bench, Expectation, Oracle
from attnbench.plan import Forecast, Group, Plan
from attnbench.pool import BuriedError, Worker
from attnbench.result import Environment, Procedure, Result, Status
from attnbench.store import BUDGET, OUTGROWN

LEAST_ROUNDS_IN_HASTE = 3
ROUNDS_S = 1.0  # for the rounds of a group, however tight the budget
MORE_ROUNDS_WHEN_NOISY = 30

Key = tuple[str, str, int]


class Observer(Protocol):
    """Who watches a run."""

    def phase(self, text: str) -> None:
        """What goes on now."""

    def result(self, result: Result, remaining_s: float) -> None:
        """A case ended."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and choices of a run."""

    procedures: dict[str, Procedure]  # by kind of device
    launches: int = 1
    first_launch: int = 0  # their first number: fresh ones go on where others ended
    seed: int = 0
    timeout_s: float = 60.0  # for each phase
    budget_s: float | None = None  # None: none
    memory_bytes: int = 0
    reference: str = ""
    fail_fast: bool = False
    verify_only: bool = False  # nothing is timed
    probes: tuple[str, ...] = ()  # asked of every case that is right
    extras: tuple[str, ...] = ()  # beyond time and memory: energy, timers
    profile: str = ""  # a folder: look at each case after its rounds, and leave files there
    bare: bool = False  # of a profile, nothing but the calls


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    interrupted: bool = False
    stopped: bool = False  # by fail_fast


class Runner:
    """Runs a plan. `append` stores the Results of a group, all at once; `done` are the keys already stored."""

    def __init__(
        self,
        plan: Plan,
        terms: Terms,
        append: Callable[[Sequence[Result]], None],
        observer: Observer,
        done: frozenset[Key] = frozenset(),
        logs: Path | None = None,
    ) -> None:
        self.plan, self.terms, self.append, self.observer = plan, terms, append, observer
        self.done, self._logs = done, logs
        self.stop_requested = False  # set by the first Ctrl-C: the block in progress ends, results are kept
        self.forecast = Forecast()
        self._started = time.monotonic()
        self._workers: dict[str, Worker] = {}
        self._lost: dict[str, tuple[Status, str]] = {}  # arms whose worker cannot even start
        self._outgrown: dict[tuple[str, str, str], tuple[int, str]] = {}  # (arm, dtype, mode): work that was too much
        self.spent: dict[str, float] = defaultdict(float)  # seconds by phase; the rest of a run is our own
        self.environments: dict[str, Environment] = {}
        self._random = random.Random(terms.seed)

    def run(self) -> Ending:
        """Measure everything that is not done; whatever happens, no worker outlives this call."""
        ending = Ending()
        with tempfile.TemporaryDirectory(prefix="attnbench-") as folder:
            self._oracle = Oracle(Path(folder), self.terms.timeout_s, self.spent)
            try:
                for launch in range(self.terms.first_launch, self.terms.first_launch + self.terms.launches):
                    if not self._launch(launch):
                        ending = Ending(interrupted=self.stop_requested, stopped=not self.stop_requested)
                        break
                    self._bury_all()
            finally:
                self._bury_all()
                self._oracle.bury()
                self.spent["total"] += time.monotonic() - self._started
        return ending

    def _launch(self, launch: int) -> bool:
        """All groups, once; False if the run was told to stop."""
        groups = self._order(launch)
        rest_s = 0.0
        for index, group in enumerate(groups):
            if self.stop_requested:
                return False
            if index % max(1, len(groups) // 100) == 0:  # a full sum for each group would be quadratic
                rest_s = sum(self.forecast.group_s(other) for other in groups[index:])
            rest_s = max(rest_s - self.forecast.group_s(group), 0.0)
            missing = self._missing(group, launch)
            if not missing.arms:
                continue
            results = self._measure(missing, launch, rest_s)
            self._store(results)
            for result in results:
                self.observer.result(result, rest_s)
            if self.terms.fail_fast and any(result.status.failed for result in results):
                return False
        return not self.stop_requested

    def _store(self, results: list[Result]) -> None:
        started = time.monotonic()
        self.append(results)
        self.spent["store"] += time.monotonic() - started

    def _missing(self, group: Group, launch: int) -> Group:
        """The group without what is stored already; a reference arm that is done comes along to be paired with."""
        done = [arm for arm in group.arms if (group.case(arm).id, arm.id, launch) in self.done]
        arms = tuple(arm for arm in group.arms if arm not in done)
        partners = tuple(other for other in done if any(self._is_reference(other, arm) for arm in arms))
        return msgspec.structs.replace(group, arms=arms, borrowed=(*group.borrowed, *partners))

    def _order(self, launch: int) -> list[Group]:
        """One launch goes from cheap to dear; several visit the groups of a pass in random order."""
        groups = list(self.plan.groups)
        if self.terms.launches > 1:
            random.Random(f"{self.terms.seed}/{launch}").shuffle(groups)
            groups.sort(key=lambda group: group.late)
        return groups

    # -- one group --------------------------------------------------------------------------------------------------

    def _measure(self, group: Group, launch: int, rest_s: float) -> list[Result]:
        share_s = self._share(group, rest_s)
        if share_s is None:
            return [self._refusal(group, arm, launch, Status.SKIPPED, BUDGET) for arm in group.arms]
        deadline = time.monotonic() + share_s
        results: dict[str, Result] = {}
        benches = self._open(group, launch, results)
        if benches:
            self._run_benches(group, launch, benches, results, deadline)
        for arm in group.arms:
            # Out of memory counts only for an arm that was alone: the others held theirs meanwhile.
            if _alone(group) or arm.id not in results or results[arm.id].status is not Status.OOM:
                continue
            solo = msgspec.structs.replace(group, arms=(arm,), borrowed=())
            results[arm.id] = self._measure(solo, launch, rest_s)[0]
        return [results[arm.id] for arm in group.arms if arm.id in results]

    def _run_benches(
        self, group: Group, launch: int, benches: list[Bench], results: dict[str, Result], deadline: float
    ) -> None:
        self.observer.phase(f"{benches[0].case.label}  reference")
        try:
            expected, peaked = self._oracle.both(group.problem, group.mode, benches[0].procedure)
        except BuriedError as buried:
            reason = f"no reference to verify against: {buried.reason}"
            results |= {b.arm.id: self._refusal(group, b.arm, launch, Status.SKIPPED, reason) for b in benches}
            return
        self._guarded(benches, results, lambda bench: self._make_ready(bench, expected, None if launch else peaked))
        if self.terms.verify_only:
            results |= {bench.arm.id: bench.result() for bench in benches}
        else:
            self._time(group, benches, results, deadline)
        for bench in list(benches):
            self._guarded([bench], {}, Bench.release)

    def _time(self, group: Group, benches: list[Bench], results: dict[str, Result], deadline: float) -> None:
        reason = self._rounds(benches, results, deadline)
        if reason == "interrupted" and any(len(b.blocks) < b.procedure.rounds_least for b in benches):
            return  # too few rounds to keep: a resume measures this group again
        self._guarded(benches, results, lambda bench: bench.finish(self.terms.extras))
        if self.terms.profile:
            self._guarded(benches, results, self._profile)
        self._collect(group, benches, results, reason)

    def _profile(self, bench: Bench) -> None:
        """Into the folder itself, or with several cases into one of its own for each."""
        folder = Path(self.terms.profile)
        if self.plan.cases > 1:
            folder /= re.sub(r"[^\w.-]", "_", f"{bench.case.id}-{bench.arm.name}")
        bench.profile(str(folder), self.terms.bare)

    def _share(self, group: Group, rest_s: float) -> float | None:
        """Seconds for this group out of what the budget leaves; None if not even the shortest measurement fits."""
        if self.terms.budget_s is None:
            return float("inf")
        left = self.terms.budget_s - (time.monotonic() - self._started)
        own = self.forecast.group_s(group)
        if own > left:
            return None
        # What compiles comes last and may be cut: it must not leave the others with too few rounds.
        return min(left, max(left * own / (own + rest_s), own + ROUNDS_S))

    def _open(self, group: Group, launch: int, results: dict[str, Result]) -> list[Bench]:
        """A worker for every arm, at most as many starting at once as there are cores."""
        wanted = []
        for arm in (*group.arms, *group.borrowed):
            if refused := self._lost.get(arm.id) or self._too_much(group, arm):
                results[arm.id] = self._refusal(group, arm, launch, *refused)
            else:
                wanted.append(arm)
        cores = len(host.available_cores())
        for first in range(0, len(wanted), cores):
            batch = wanted[first : first + cores]
            if len(batch) < cores:
                self._oracle.start()
            for arm in batch:
                if arm.id not in self._workers:
                    self.observer.phase(f"starting {arm.name}")
                    self._workers[arm.id] = self._start(arm)
            for arm in batch:
                self._await(group, arm, launch, results)
        ready = [arm for arm in wanted if arm.id in self._workers]
        return [Bench(group, arm, self._workers[arm.id], launch, self._procedure(arm)) for arm in ready]

    def _procedure(self, arm: Arm) -> Procedure:
        return self.terms.procedures[parse_device(arm.device).kind]

    def _start(self, arm: Arm) -> Worker:
        log = self._logs / f"{arm.id.replace('/', '_')}.log" if self._logs else None
        return Worker(arm, host.cores_for(parse_device(arm.device)), self.terms.memory_bytes, log, self.spent)

    def _await(self, group: Group, arm: Arm, launch: int, results: dict[str, Result]) -> None:
        worker = self._workers[arm.id]
        try:
            opened = worker.open(self.terms.timeout_s)
            self.environments[arm.id] = opened.environment
            if opened.unavailable:
                worker.bury()
                raise BuriedError(Status.UNAVAILABLE, opened.unavailable)
        except BuriedError as buried:
            del self._workers[arm.id]
            self._lost[arm.id] = (buried.status, buried.reason)
            results[arm.id] = self._refusal(group, arm, launch, buried.status, buried.reason, buried.trace)

    def _make_ready(self, bench: Bench, expected: Expectation, peaked: Expectation | None) -> None:
        self.observer.phase(f"{bench.case.label}  preparing")
        bench.prepare()
        self.observer.phase(f"{bench.case.label}  verifying")
        bench.verify(expected, peaked)
        if self.terms.probes:
            bench.probe(self.terms.probes)
        if self.terms.verify_only:
            return
        self.forecast.learn(bench.arm, bench.case, bench.settle())
        if bench.group.late and (first := bench.samples["first_call"].values[0]) is not None:
            self.forecast.learn_compile(bench.arm, first)

    def _rounds(self, benches: list[Bench], results: dict[str, Result], deadline: float) -> str:
        """Rounds until every arm is precise enough; gives the reason of stopping."""
        rotation = Rotation(self._random)
        number = 0
        while benches:
            if reason := self._stop_reason(benches, number, deadline):
                return reason
            self.observer.phase(f"{benches[0].case.label}  round {number + 1}")
            for position, bench in enumerate(rotation.next(benches)):
                self._guarded([bench], results, partial(Bench.time, number=number, position=position), benches)
            number += 1
        return "nothing left"

    def _stop_reason(self, benches: list[Bench], rounds: int, deadline: float) -> str:
        procedure = benches[0].procedure
        if self.stop_requested:
            return "interrupted"
        if rounds >= LEAST_ROUNDS_IN_HASTE and time.monotonic() > deadline:
            return "budget"
        if rounds < procedure.rounds_least:
            return ""
        if procedure.rounds_least == procedure.rounds_most:
            return "rounds"  # the number that was asked for, however noisy
        samples = [bench.timed() for bench in benches]
        noisy = any(stats.is_noisy(one) for one in samples)
        if rounds >= procedure.rounds_most + (MORE_ROUNDS_WHEN_NOISY if noisy else 0):
            return "rounds"
        precise = all(stats.enough(one, procedure.rel_ci) for one in samples)
        return "precision" if precise and not noisy else ""

    def _collect(self, group: Group, benches: list[Bench], results: dict[str, Result], reason: str) -> None:
        for bench in benches:
            bench.facts["rounds_reason"] = reason
            reference = next((b for b in benches if self._is_reference(b.arm, bench.arm)), None)
            if reference:
                bench.facts["reference"] = reference.arm.id
                if reference.arm in group.borrowed:
                    bench.samples["reference_time"] = reference.timed()
            results[bench.arm.id] = bench.result()

    def _is_reference(self, other: Arm, arm: Arm) -> bool:
        return other.backend == self.terms.reference and other.device == arm.device and other.twin == 1

    def _guarded(
        self,
        benches: list[Bench],
        results: dict[str, Result],
        work: Callable[[Bench], None],
        roster: list[Bench] | None = None,
    ) -> None:
        """Do the work for each bench; one whose worker fails leaves the roster with its status."""
        for bench in list(benches):
            try:
                work(bench)
            except BuriedError as buried:
                (benches if roster is None else roster).remove(bench)
                self._retire(bench, buried)
                results[bench.arm.id] = bench.result(buried.status, buried.reason)

    def _retire(self, bench: Bench, buried: BuriedError) -> None:
        """Any status but a refusal buries the process: its further readings would mean nothing."""
        if buried.trace:
            bench.facts["trace"] = buried.trace
        if buried.status is Status.UNSUPPORTED:
            return
        if worker := self._workers.pop(bench.arm.id, None):
            worker.bury()
        if buried.status is Status.TIMEOUT or (buried.status is Status.OOM and _alone(bench.group)):
            problem, mode = bench.group.problem, bench.group.mode
            key = (bench.arm.id, problem.dtype.value, mode.value)
            what = "ran out of memory" if buried.status is Status.OOM else "timed out"
            self._outgrown.setdefault(key, (cost.flops_dense(problem, mode), f"{what} at {bench.case.label}"))

    def _too_much(self, group: Group, arm: Arm) -> tuple[Status, str] | None:
        key = (arm.id, group.problem.dtype.value, group.mode.value)
        work, reason = self._outgrown.get(key, (0, ""))
        if reason and cost.flops_dense(group.problem, group.mode) >= work:
            return Status.SKIPPED, f"{OUTGROWN} {reason}"
        return None

    def _refusal(self, group: Group, arm: Arm, launch: int, status: Status, reason: str, trace: str = "") -> Result:
        case = group.case(arm)
        facts = {"trace": trace} if trace else {}
        return Result(
            case=case,
            case_id=case.id,
            arm=arm,
            status=status,
            reason=reason,
            launch=launch,
            group=group.id,
            procedure=self._procedure(arm),
            facts=facts,
        )

    def _bury_all(self) -> None:
        for worker in self._workers.values():
            worker.bury()
        self._workers.clear()


def _alone(group: Group) -> bool:
    return len(group.arms) + len(group.borrowed) == 1


class Rotation:
    """Random orders in which, over as many rounds as there are arms, each arm stands once in each position."""

    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._orders: list[list[Bench]] = []

    def next(self, benches: Sequence[Bench]) -> list[Bench]:
        """The order of the next round."""
        if not self._orders or set(self._orders[-1]) != set(benches):
            base = self._random.sample(benches, len(benches))
            self._orders = [base[shift:] + base[:shift] for shift in range(len(base))]
            self._random.shuffle(self._orders)
        return self._orders.pop()
