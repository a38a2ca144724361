"""Base and head side by side: restart until every case is decided, and judge. The way to gate in CI."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from attnbench import suite, units
from attnbench.attention import inputs
from attnbench.engine import plan, sweep
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.runner import Observer, PlanRunner, Runner
from attnbench.engine.sweep import Request, StartRunner, Sweep
from attnbench.errors import StoreError, UsageError
from attnbench.gate import changed, evidence, judgement, known_noise, machine_lock, record, rule, significance
from attnbench.gate.evidence import BASE, CONTROL, HEAD
from attnbench.gate.judgement import GateVerdicts
from attnbench.gate.record import ChangedCases, GateRecord, Settings
from attnbench.gate.trees import Revision
from attnbench.machine import hardware
from attnbench.records import run_directory, run_writer
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Environment, Facts, Result
from attnbench.records.run_directory import Run
from attnbench.records.run_writer import RunWriter
from attnbench.suite import Cell

DEFAULT_SUITE = "ci"
CPU = "cpu:threads=1"  # a busy machine disturbs it least
CONTROL_EVERY = 4  # cases of the most frequent backend, of which one has an A/A control: one more worker in all
ROUNDS = "10"  # the fixed number that a gate measures unless its user chooses another
BUDGET_S = 15 * 60.0
STORED_RESTARTS = 6  # of a run that is compared with a stored baseline, and is not measured further
SEEDS = 5  # an error counts as grown only if it grew on each of them

EVERY_CASE = ChangedCases()

Watch = Callable[[PlanRunner], None]  # called with each runner when it starts
Announce = Callable[[Plan], None]  # called with what each restart of the first look measures


class GateRun(msgspec.Struct, frozen=True, kw_only=True):
    """The stored run of a paired gate, and its verdicts."""

    run: Run
    judgement: GateVerdicts
    interrupted: bool = False
    note: str = ""  # what could not be stored besides the run


class Engine(Protocol):
    """Where a gate measures: on this machine, or on the nodes of a cluster."""

    @property
    def start(self) -> StartRunner:
        """What makes the runner of a plan."""

    def homes(self, ready: Sweep) -> Mapping[tuple[str, str], str]:
        """The node that measures each case, known by its id and its device; empty: this machine measures all."""

    def together(self, cells: Sequence[tuple[Cell, Sequence[Arm]]], settings: RunSettings) -> Plan:
        """A plan of one group for each cell."""


class LocalEngine:
    """This machine."""

    @property
    def start(self) -> StartRunner:
        """What makes the runner of a plan."""
        return Runner

    def homes(self, ready: Sweep) -> Mapping[tuple[str, str], str]:
        """This machine measures all cases."""
        return {}

    def together(self, cells: Sequence[tuple[Cell, Sequence[Arm]]], settings: RunSettings) -> Plan:
        """A plan of one group for each cell."""
        return plan.together(cells, sweep.plan_limits(settings))


HERE = LocalEngine()


def request(options: Request, *, stored: bool = False) -> Request:
    """The request of a gate: with the restarts of a first look, or of a stored run.

    Raises UsageError where a `[gate]` table of its suites is wrong: before anything is measured or stored.
    """
    _settings(options)
    return msgspec.structs.replace(options, restarts=STORED_RESTARTS if stored else min(significance.LOOKS))


def on_device(options: Request) -> Request:
    """On a GPU by default, else on a CPU with one thread."""
    device = options.device or ("cuda:0" if hardware.gpus() else CPU)
    return msgspec.structs.replace(options, device=device)


def only(ready: Sweep, case: str) -> Sweep:
    """The sweep with one case, chosen by its label or the beginning of its id.

    Raises UsageError, with the first labels, where no case matches.
    """
    matching = _with_cases(ready, lambda each, _: each.label == case or each.id.startswith(case))
    if not matching.cells:
        labels = [_case(cell, arm).label for cell, arms in ready.cells for arm in arms]
        more = " ..." if len(labels) > 3 else ""
        raise UsageError(f"--case {case!r}: no such case; there are {'; '.join(labels[:3])}{more}")
    return matching


def chosen(ready: Sweep, keep: Callable[[Case, Arm], bool]) -> Sweep:
    """The sweep with the cases that `keep` accepts."""
    return sweep.replan(ready, _with_cases(ready, keep).cells)


def _with_cases(ready: Sweep, keep: Callable[[Case, Arm], bool]) -> Sweep:
    """The sweep with these cases and its plan of all cases: a gate makes plans of its own."""
    cells = [(cell, [arm for arm in arms if keep(_case(cell, arm), arm)]) for cell, arms in ready.cells]
    planned = msgspec.structs.replace(ready.plan, impossible=())
    return msgspec.structs.replace(ready, cells=tuple((cell, arms) for cell, arms in cells if arms), plan=planned)


def touched(ready: Sweep, base: Revision, head: Revision) -> tuple[Sweep, ChangedCases]:
    """The sweep with the cases that a change from base to head can touch, and what was left out."""
    files = changed.TreeComparison(base, head)
    unfollowed = ready.request.inputs if ready.request.inputs.startswith(inputs.FILE) else ""
    reasons: dict[tuple[str, str], str] = {}
    unchanged: list[str] = []
    for cell, arms in ready.cells:
        for arm in arms:
            case = _case(cell, arm)
            reason = f"not followed: --inputs {unfollowed}" if unfollowed else files.reason(case, arm)
            reasons[case.id, arm.id] = reason
            unchanged += [] if reason else [f"{case.label}@{arm.device}"]
    left = _with_cases(ready, lambda case, arm: bool(reasons[case.id, arm.id]))
    measured = changed.described(reason for reason in reasons.values() if reason)
    return left, ChangedCases(unchanged=tuple(unchanged), measured=measured)


def _case(cell: Cell, arm: Arm) -> Case:
    return Case(problem=cell.problem, backend=arm.backend, mode=cell.mode)


def check(ready: Sweep) -> None:
    """Raise UsageError where a backend is named twice."""
    for _, arms in ready.cells:
        for arm in arms:
            if arm.copy > 1:
                raise UsageError(f"--backend: {arm.backend} twice: a gate has one base and one head of each backend")


def measure(
    ready: Sweep, base: Revision, head: Revision, *, directory: Path, observer: Observer, budget_s: float = BUDGET_S,
    watch: Watch = lambda runner: None, announce: Announce = lambda plan: None, command: Sequence[str] = (),
    today: date | None = None, chosen_cases: ChangedCases = EVERY_CASE, engine: Engine = HERE,
) -> GateRun:  # fmt: skip
    """Measure until every case is decided, and judge; every result is stored as soon as it is there.

    Nothing is measured after `budget_s` seconds: cases that are open then are inconclusive, never regressed.
    """
    started = time.monotonic()
    check(ready)
    whole = engine.together(_arms(ready, base, head, engine.homes(ready)), ready.settings)
    announce(whole)
    observer.more((whole.cases - len(whole.refusals)) * ready.settings.restarts)
    manifest = sweep.manifest(ready, datetime.now(UTC), command)
    gate = GateRecord(
        base=_anonymous(base), head=_anonymous(head), settings=_settings(ready.request),
        today=today or datetime.now(UTC).date(), noise=known_noise.machine_noise(manifest.fingerprint, whole.arms),
        seeds={}, changed=chosen_cases,
    )  # fmt: skip
    arms = tuple(map(_symbolic, whole.arms))
    manifest = msgspec.structs.replace(manifest, arms=arms, planned=whole.cases, gate=gate.stored())
    with machine_lock.alone(observer.note, budget_s), RunWriter(directory, manifest) as writer:
        deadline = time.monotonic() + budget_s
        stages = _Stages(ready, whole, writer, observer, directory / "logs", watch, engine.start, deadline)
        stages.measure_until_decided(gate)
        if not stages.interrupted:
            gate = msgspec.structs.replace(gate, seeds=stages.further_seeds())
        writer.manifest = msgspec.structs.replace(writer.manifest, gate=gate.stored())
        seconds = {**stages.seconds, "total": time.monotonic() - started}
        writer.update(stages.stored_environments(), seconds, stages.nodes, stages.ceilings)
    run = run_directory.read(directory)
    verdicts = judgement.judge(run)
    note = ""
    try:
        known_noise.add(run, gate)
    except StoreError as wrong:  # a read-only home directory, as containers have, changes no verdict
        note = f"the noise floor of this machine is not updated: {wrong}"
    return GateRun(run=run, judgement=verdicts, interrupted=stages.interrupted, note=note)


class _Stages:
    """Runs restarts of some or all groups of a gate, and keeps their results."""

    def __init__(
        self, ready: Sweep, whole: Plan, writer: RunWriter, observer: Observer, logs: Path, watch: Watch,
        start: StartRunner, deadline: float,
    ) -> None:  # fmt: skip
        self._ready, self._whole, self._writer, self._deadline = ready, whole, writer, deadline
        self._observer, self._logs, self._watch = observer, logs, watch
        self._start_runner = start
        self._runners: list[PlanRunner] = []
        self._speeds, self.ceilings = ready.settings.speeds, dict(writer.manifest.ceilings)
        self.nodes: dict[str, Facts] = {}  # of a cluster, by name
        self._call_s: Mapping[str, float] = {}
        self._right_on_new_inputs = frozenset[str]()
        self._results: list[Result] = []
        self._environments: dict[str, Environment] = {}
        self.seconds: Counter[str] = Counter()

    @property
    def interrupted(self) -> bool:
        return any(runner.stop_requested for runner in self._runners)

    def measure_until_decided(self, gate: GateRecord) -> None:
        """Run the restarts of the first look, then those of each further look for the cases that are not decided."""
        self._keep(self._whole.refusals)
        restart, spent = min(significance.LOOKS), False
        self._run(self._whole, 0, restart)
        while restart < max(significance.LOOKS) and not self.interrupted:
            cases = judgement.cases_of(evidence.pairings(self._results, self.ceilings), gate)
            step = rule.next_step(cases, gate.margins)
            if not step.cases:
                break
            part = _part(self._whole, step.cases)
            of_which = f"{units.counted(step.restarts, 'more restart')} of {self._name(part)}"
            if spent or time.monotonic() >= self._deadline:
                self._observer.note(f"the budget ended before {of_which}")
                break
            self._observer.more(part.cases * step.restarts, f"{of_which}, undecided after {restart}")
            before = len(self._results)
            self._run(part, restart, step.restarts)
            restart += step.restarts
            spent = all(result.cause is Cause.BUDGET for result in self._results[before:])

    def further_seeds(self) -> dict[str, list[tuple[float, float]]]:
        """(base, head) errors on further seeds, for the cases whose error grew on the first."""
        pairs = evidence.pairings(self._results)
        suspects = {pair.key for pair in pairs if pair.timed and evidence.error_grew(pair)}  # a wrong one is broken
        errors: dict[str, list[tuple[float, float]]] = {}
        part = _part(self._whole, suspects)
        if not suspects:
            return errors
        why = f"{SEEDS - 1} further seeds of {self._name(part)}, where the error of head is larger than that of base"
        self._observer.more(part.cases * (SEEDS - 1), why)
        for seed in range(1, SEEDS):
            for pair in evidence.pairings(self._verify(part, seed)):
                base, head = evidence.rms_error(pair.base), evidence.rms_error(pair.head)
                if base is not None and head is not None:
                    errors.setdefault("@".join(pair.key), []).append((base, head))
        return errors

    def _name(self, part: Plan) -> str:
        """The only case of a part, else `2 of 8 cases`."""
        labels = [group.case(group.arms[0]).label for group in part.groups]
        return labels[0] if len(labels) == 1 else f"{len(labels)} of {units.counted(len(self._whole.groups), 'case')}"

    def stored_environments(self) -> dict[str, Environment]:
        """The environments of all arms, under the ids that are stored."""
        symbolic = {arm.id: _symbolic(arm).id for arm in self._whole.arms}
        return {symbolic.get(arm_id, arm_id): environment for arm_id, environment in self._environments.items()}

    def _run(self, part: Plan, first: int, restarts: int) -> None:
        chosen = self._settings(first_restart=first, restarts=restarts)
        runner = self._start(part, chosen, self._keep)
        self._environments |= runner.environments
        self.seconds.update(runner.spent)

    def _verify(self, part: Plan, seed: int) -> list[Result]:
        """Verify outputs on the inputs of another seed; nothing is timed or stored."""
        settings, replace = self._ready.settings, msgspec.structs.replace
        procedures = {kind: replace(procedure, seed=seed) for kind, procedure in settings.procedures.items()}
        chosen = self._settings(procedures=procedures, restarts=1, verify_only=True)
        results: list[Result] = []
        self._start(part, chosen, results.extend)
        return results

    def _settings(self, **changes: object) -> RunSettings:
        """The settings of the sweep with these changes, within what is left of the budget."""
        left_s = max(self._deadline - time.monotonic(), 0.0)
        return msgspec.structs.replace(
            self._ready.settings,
            budget_s=None if math.isinf(left_s) else left_s,
            speeds=self._speeds,
            call_s=self._call_s,
            right_on_new_inputs=self._right_on_new_inputs,
            ceilings=self.ceilings,
            whole_restarts=True,
            deciding_copy=HEAD,
            **changes,
        )

    def _start(self, part: Plan, settings: RunSettings, keep: Callable[[Sequence[Result]], None]) -> PlanRunner:
        runner = self._start_runner(part, settings, keep, self._observer, frozenset(), self._logs)
        self._runners.append(runner)
        self._watch(runner)
        runner.run()
        self._speeds, self._call_s = runner.forecast.speeds, runner.call_s
        self._right_on_new_inputs = frozenset(runner.right_on_new_inputs)
        self.ceilings = {**self.ceilings, **runner.ceilings}
        for name, facts in runner.nodes.items():
            self.nodes[name] = {**self.nodes.get(name, {}), **facts}
        return runner

    def _keep(self, results: Sequence[Result]) -> None:
        symbolic = [msgspec.structs.replace(result, arm=_symbolic(result.arm)) for result in results]
        self._writer.append(symbolic)
        self._results += symbolic


def _part(whole: Plan, cases: Collection[tuple[str, str]]) -> Plan:
    """The groups of these cases, given by case id and device."""
    groups = [group for group in whole.groups if any((group.case(arm).id, arm.device) in cases for arm in group.arms)]
    return Plan(groups=tuple(groups), arms=whole.arms)


def _arms(
    ready: Sweep, base: Revision, head: Revision, homes: Mapping[tuple[str, str], str]
) -> list[tuple[Cell, list[Arm]]]:
    """A group per cell and backend: base, head, in some groups of each node an A/A control, which is base again."""
    groups: list[tuple[Cell, list[Arm]]] = []
    counts = Counter(arm.backend for _, arms in ready.cells for arm in arms)
    controlled, seen = max(counts, key=lambda name: counts[name], default=""), Counter[str]()  # by node
    for cell, arms in ready.cells:
        for arm in arms:
            group = [_arm(arm, base, BASE), _arm(arm, head, HEAD)]
            if arm.backend == controlled:
                home = homes.get((_case(cell, arm).id, arm.device), "")
                group += [_arm(arm, base, CONTROL)] if seen[home] % CONTROL_EVERY == 0 else []
                seen[home] += 1
            groups.append((cell, group))
    return groups


def _arm(arm: Arm, revision: Revision, copy: int) -> Arm:
    return msgspec.structs.replace(arm, path=revision.path, python=revision.python or arm.python, copy=copy)


def _symbolic(arm: Arm) -> Arm:
    """The arm as it is stored: with the name of its side in place of its folders."""
    return msgspec.structs.replace(arm, path=("head",) if arm.copy == HEAD else ("base",), python="")


def _anonymous(revision: Revision) -> Revision:
    """The revision as it is stored: without the folders of this machine."""
    name, python = run_writer.anonymous(revision.name), run_writer.anonymous(revision.python)
    return msgspec.structs.replace(revision, name=name, path=(), python=python)


def _settings(request: Request) -> Settings:
    """The last `[gate]` table among the suites of head."""
    suites = [loaded for loaded in map(suite.load, request.suites) if loaded.gate]
    return [record.DEFAULT_SETTINGS, *(record.read_settings(each.gate, each.gate_file) for each in suites)][-1]
