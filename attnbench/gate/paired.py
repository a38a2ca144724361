"""Base and head side by side: screen, confirm on fresh launches, decide. The way to gate in CI."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from attnbench import floor, host, plan, store, sweep
from attnbench.arm import Arm
from attnbench.case import Case
from attnbench.errors import UsageError
from attnbench.gate import evidence, judgement, rule, settings
from attnbench.gate.evidence import BASE, HEAD, SENTINEL
from attnbench.gate.judgement import Judged
from attnbench.gate.settings import Settings
from attnbench.gate.trees import Side
from attnbench.plan import Group, Plan
from attnbench.result import Result
from attnbench.runner import Observer, Runner
from attnbench.store import Run
from attnbench.suite import Cell
from attnbench.sweep import Request, Sweep

DEFAULT_SUITE = "ci"
SENTINEL_EVERY = 4  # cases of the most frequent backend, of which one carries a twin of base: one more worker in all
ROUNDS = "10"
BUDGET_S = 15 * 60.0
BATCHES = (6, 6, 4, 4)  # of confirming launches: at least 12, at most 20
SEEDS = 5  # on which an error must have grown


class Ended(msgspec.Struct, kw_only=True):
    """A paired gate: its run directory, and what was judged."""

    run: Run
    judged: Judged
    interrupted: bool = False


def request(given: Request) -> Request:
    """With a gate's own defaults: one thread on a CPU, a fixed number of rounds."""
    given = on_device(given)
    return msgspec.structs.replace(given, rounds=given.rounds or ROUNDS, launches=rule.SCREEN_LAUNCHES)


def on_device(given: Request) -> Request:
    """On a GPU, or else with one thread, which a contended CPU disturbs least."""
    return msgspec.structs.replace(given, device=given.device or ("cuda:0" if host.gpus() else "cpu:threads=1"))


def only(ready: Sweep, label: str) -> Sweep:
    """The sweep with that case alone, by its label or the beginning of its id. UsageError with the nearest for none."""
    kept, labels = [], []
    for cell, arms in ready.asked:
        cases = {arm: Case(problem=cell.problem, backend=arm.backend, mode=cell.mode) for arm in arms}
        labels += [case.label for case in cases.values()]
        if own := [arm for arm, case in cases.items() if case.label == label or case.id.startswith(label)]:
            kept.append((cell, own))
    if not kept:
        raise UsageError(f"--case {label!r}: no such case; there are {'; '.join(labels[:3])} ...")
    return msgspec.structs.replace(ready, asked=kept)


def results_expected(ready: Sweep) -> int:
    """Of one launch: base and head of each case, and the sentinels."""
    return sum(len(sides) for _, sides in _arms(ready, Side(name=""), Side(name="")))


def measure(
    ready: Sweep, base: Side, head: Side, *, directory: Path, observer: Observer, budget_s: float = BUDGET_S,
    watch: Callable[[Runner], None] = lambda runner: None, command: Sequence[str] = (), today: date | None = None,
) -> Ended:  # fmt: skip
    """Both stages, stored as they go. A budget that ends early leaves cases inconclusive, never red."""
    started = time.monotonic()
    minded = _settings(ready)
    asked = _arms(ready, base, head)
    whole = plan.together(asked, sweep.plan_terms(ready.terms))
    manifest = sweep.manifest(ready, datetime.now(UTC), command)
    record = {
        "base": msgspec.to_builtins(_shown(base)), "head": msgspec.to_builtins(_shown(head)),
        "screen_launches": ready.terms.launches, "settings": msgspec.to_builtins(minded),
        "today": (today or datetime.now(UTC).date()).isoformat(), "floor": _floor(manifest.fingerprint, whole),
        "seeds": {},
    }  # fmt: skip
    arms = tuple(_symbolic(arm) for arm in whole.arms)
    manifest = msgspec.structs.replace(manifest, arms=arms, planned=whole.cases, gate=record)
    results: list[Result] = []
    stop = _Stop(watch)
    with store.RunWriter(directory, manifest) as writer:

        def keep(new: Sequence[Result]) -> None:
            shown = [msgspec.structs.replace(one, arm=_symbolic(one.arm)) for one in new]
            writer.append(shown)
            results.extend(shown)

        keep(whole.refusals)
        stage = _Stage(ready, keep, observer, directory / "logs", stop)
        stage.run(whole, 0, rule.SCREEN_LAUNCHES)
        launch = rule.SCREEN_LAUNCHES
        for batch in BATCHES:
            wanted = _unsettled(results, record)
            if not wanted or stop.asked or time.monotonic() - started > budget_s:
                break
            stage.run(_part(whole, wanted), launch, batch)
            launch += batch
        record["seeds"] = _more_seeds(whole, results, stage) if not stop.asked else {}
        writer.manifest = msgspec.structs.replace(writer.manifest, gate=record)
        environments = {_symbolic_id(whole.arms, arm_id): one for arm_id, one in stage.environments.items()}
        writer.update(environments=environments, seconds=dict(stage.spent) | {"total": time.monotonic() - started})
    run = store.read(directory)
    judged = judgement.judge(run)
    _learn(run)
    return Ended(run=run, judged=judged, interrupted=stop.asked)


# -- stages ------------------------------------------------------------------------------------------------------------


class _Stop:
    """Whether Ctrl-C asked any of the runners to stop."""

    def __init__(self, watch: Callable[[Runner], None]) -> None:
        self._watch = watch
        self._runners: list[Runner] = []

    def follow(self, runner: Runner) -> None:
        self._runners.append(runner)
        self._watch(runner)

    @property
    def asked(self) -> bool:
        return any(runner.stop_requested for runner in self._runners)


class _Stage:
    """Launches of some groups, with the terms of the whole."""

    def __init__(
        self, ready: Sweep, keep: Callable[[Sequence[Result]], None], observer: Observer, logs: Path, stop: _Stop
    ) -> None:
        self._ready, self._keep, self._observer, self._logs, self._stop = ready, keep, observer, logs, stop
        self.environments: dict[str, Any] = {}
        self.spent: Counter[str] = Counter()

    def run(self, part: Plan, first: int, launches: int) -> None:
        terms = msgspec.structs.replace(self._ready.terms, first_launch=first, launches=launches, budget_s=None)
        runner = Runner(part, terms, self._keep, self._observer, logs=self._logs)
        self._stop.follow(runner)
        runner.run()
        self.environments |= runner.environments
        self.spent.update(runner.spent)

    def verify(self, part: Plan, seed: int) -> list[Result]:
        """Errors alone, on inputs of another seed; nothing is stored."""
        procedures = {
            kind: msgspec.structs.replace(one, seed=seed) for kind, one in self._ready.terms.procedures.items()
        }
        terms = msgspec.structs.replace(
            self._ready.terms, procedures=procedures, launches=1, budget_s=None, verify_only=True
        )
        found: list[Result] = []
        runner = Runner(part, terms, found.extend, self._observer, logs=self._logs)
        self._stop.follow(runner)
        runner.run()
        return found


def _arms(ready: Sweep, base: Side, head: Side) -> list[tuple[Cell, list[Arm]]]:
    """A group for each cell and backend: base, head, and now and then a second base."""
    found: list[tuple[Cell, list[Arm]]] = []
    counts = Counter(arm.backend for _, arms in ready.asked for arm in arms)
    watched, seen = max(counts, key=lambda name: counts[name], default=""), 0
    for cell, arms in ready.asked:
        for arm in arms:
            if arm.twin > 1:
                raise UsageError(f"--backend: {arm.backend} twice: a gate has one base and one head of each backend")
            sides = [_arm(arm, base, BASE), _arm(arm, head, HEAD)]
            if arm.backend == watched:
                sides += [_arm(arm, base, SENTINEL)] if seen % SENTINEL_EVERY == 0 else []
                seen += 1
            found.append((cell, sides))
    return found


def _arm(arm: Arm, side: Side, twin: int) -> Arm:
    return msgspec.structs.replace(arm, path=side.path, python=side.python, twin=twin)


def _symbolic(arm: Arm) -> Arm:
    """As it is stored: whose files it ran, not where they lay."""
    return msgspec.structs.replace(arm, path=("head",) if arm.twin == HEAD else ("base",), python="")


def _symbolic_id(arms: Sequence[Arm], arm_id: str) -> str:
    return next((_symbolic(arm).id for arm in arms if arm.id == arm_id), arm_id)


def _shown(side: Side) -> Side:
    return msgspec.structs.replace(side, name=store.anonymous(side.name), path=(), python=store.anonymous(side.python))


def _settings(ready: Sweep) -> Settings:
    """The `[gate]` of the suites, in head as it stands."""
    found = settings.DEFAULT
    for one in sweep.suites_of(ready.request, DEFAULT_SUITE):
        if one.gate:
            found = settings.read(one.gate, one.name)
    return found


def _part(whole: Plan, wanted: set[tuple[str, str]]) -> Plan:
    """The groups of these cases."""

    def holds(group: Group) -> bool:
        return any((group.case(arm).id, arm.device) in wanted for arm in group.arms)

    return Plan(groups=[group for group in whole.groups if holds(group)], refusals=[], arms=whole.arms, impossible=[])


def _unsettled(results: Sequence[Result], record: dict[str, Any]) -> set[tuple[str, str]]:
    """Who wants more launches: flagged until they are precise, open until precise or settled beyond doubt."""
    pairs = evidence.pairings(results)
    margins = judgement.margins_of(record)
    flags = rule.screen(judgement.cases_of(pairs, record), margins)
    flagged = [one for one in (*flags.slower, *flags.faster) if not rule.precise(one, margins)]
    undecided = [one for one in flags.open if not rule.open_enough(one, margins)]
    return {(one.case_id, one.device) for one in (*flagged, *undecided)}


def _more_seeds(whole: Plan, results: Sequence[Result], stage: _Stage) -> dict[str, list[tuple[float, float]]]:
    """(base, head) errors of further seeds, for cases whose error grew on the first."""
    suspects = [pair for pair in evidence.pairings(results) if evidence.errors_grew(pair)]
    if not suspects:
        return {}
    part = _part(whole, {pair.key for pair in suspects})
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(1, SEEDS):
        for pair in evidence.pairings(stage.verify(part, seed)):
            base, head = evidence.errors(pair.base), evidence.errors(pair.head)
            if base is not None and head is not None:
                found.setdefault("@".join(pair.key), []).append((base, head))
    return found


def _floor(fingerprint: str, whole: Plan) -> dict[str, Any]:
    """What this machine's A/A runs have shown so far, and what its timer resolves."""
    devices = dict.fromkeys(arm.device for arm in whole.arms)
    known = [floor.factor(floor.load(fingerprint, device)) for device in devices]
    factor, runs = max(known, default=(0.0, 0))
    return {"factor": factor, "runs": runs, "resolution_s": time.get_clock_info("perf_counter").resolution}


def _learn(run: Run) -> None:
    """Equal arms of this run add to what is known of the machine, whatever was judged."""
    torch, when = host.packages().get("torch", ""), run.manifest.created_at
    noop = run.manifest.gate["base"] == run.manifest.gate["head"]
    twins = []
    for pair in evidence.pairings(run.results):
        for other in (pair.sentinel, pair.head if noop else None):
            if other and pair.base:
                one = floor.of_effects(other, evidence.effects(other, pair.base), when, torch)
                twins += [one] if one else []
    if twins:
        floor.add(run.manifest.fingerprint, twins)
