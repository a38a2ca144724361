"""A run on a cluster: hands out groups to the devices of its nodes, and stores the results as they come."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from attnbench.engine.candidates import Refusal
from attnbench.engine.cluster import nodes
from attnbench.engine.cluster.nodes import CPU, ClusterDevice
from attnbench.engine.cluster.processes import Cluster, Process, ProcessLostError, Reference
from attnbench.engine.cluster.slot_process import Checked, Description, GroupMeasured, shifted
from attnbench.engine.group_runner import BEYOND_BUDGET, RunSettings
from attnbench.engine.plan import Plan, missing_arms
from attnbench.engine.runner import Ending, Observer, PlanRunner
from attnbench.engine.scheduler import MAX_FAILED, GivenUp, Slot, Task, TaskScheduler
from attnbench.errors import UsageError
from attnbench.records.result import Cause, Facts, Key, Result, Status

POLL_S = 0.5  # between two looks at Ctrl-C
LOOK_S = 2.0  # between two looks at the nodes
PATIENCE_S = 60.0  # for a node with the hardware that groups wait for
PAUSE_S = 5.0  # after each death of a device's process: Ray takes a while to see that a node is gone
CLOSE_S = 5.0  # for processes that end, to remove their files
LOST = "its node was lost"
Homes = Mapping[tuple[str, str], str]  # devices of a cluster, by the id of a case and the text of its device


def class_of(mark: str, classes: Iterable[str]) -> str:
    """The class of hardware of a device with this mark: an empty one is that of CPUs, or the only one."""
    names = list(classes)
    return mark or (CPU if CPU in names else names[0])


class _Station:
    """One device of a node: its process, and the steps that make it ready."""

    def __init__(self, device: ClusterDevice, process: Process) -> None:
        self.device, self.process = device, process
        self.slot = Slot(node=device.name, name=device.node.kind, hardware=device.node.hardware)
        self.ahead_s = 0.0  # of its clock
        self.ready = False


class _Call(NamedTuple):
    station: _Station
    method: str
    sent_s: float  # on the clock of the driver


class ClusterRunner(PlanRunner):
    """Runs a plan on a cluster. A group goes to one device whole; a process owns its device until it ends.

    `classes` are the settings of each class of hardware, as its node made them. A lost group returns to the queue.
    `homes`: devices on which all restarts of a case run while they are there. `checked`: devices that need no check.
    """

    stopping = "stopping: groups in progress end now, and a resume measures them again"

    def __init__(
        self,
        cluster: Cluster,
        classes: Mapping[str, RunSettings],
        plan: Plan,
        settings: RunSettings,
        append: Callable[[Sequence[Result]], None],
        observer: Observer,
        done: frozenset[Key] = frozenset(),
        logs: Path | None = None,
        homes: Homes = MappingProxyType({}),
        checked: set[str] | None = None,
    ) -> None:
        super().__init__(settings, append, observer)
        self._cluster = cluster
        self._classes = {name: _for_run(each, settings) for name, each in classes.items()}
        tasks = list(_tasks(plan, settings, done, self._classes, homes))
        self._tasks = TaskScheduler(tasks, cheapest_first=bool(settings.budget_s))
        self._rest_s: dict[str, float] = defaultdict(float)  # predicted for the tasks in the queue, by class
        self._of_class: dict[str, str] = {}  # by class: the device that is checked
        for task in tasks:
            self._rest_s[task.hardware] += task.seconds
            self._of_class.setdefault(task.hardware, task.group.arms[0].device)
        self._stations: dict[str, _Station] = {}
        self._calls: dict[Reference, _Call] = {}
        # By the id of a device.
        self._deaths: dict[str, int] = defaultdict(int)  # of its processes, since a group ended there
        self._begins: dict[str, float] = {}  # when its next process may start; never, for one that is drained
        self._checked = set() if checked is None else checked
        self._end = math.inf  # the budget begins with the first group
        self._looked, self._seen = -math.inf, time.monotonic()  # at the nodes; with something to wait for
        self._failed_fast = False

    def run(self) -> Ending:
        """Measure everything that is not done. No process outlives this call."""
        started = time.monotonic()
        try:
            while not (self._tasks.finished or self.stop_requested or self._failed_fast):
                self._look_for_nodes()
                self._assign()
                self._check_progress()
                self._wait()
        finally:
            self._end_processes()
            self.spent["total"] += time.monotonic() - started
        return Ending(interrupted=self.stop_requested, stopped=self._failed_fast)

    def _end_processes(self) -> None:
        """End all processes; those that are idle first store what they learned and remove their files."""
        idle = [each for each in self._stations.values() if each.ready and each.slot not in self._tasks.running]
        closing = [self._cluster.call(station.process, "close") for station in idle]
        until = time.monotonic() + CLOSE_S
        while closing and time.monotonic() < until:
            ended = self._cluster.ready(closing, POLL_S)
            closing = [call for call in closing if call not in ended]
        for station in self._stations.values():
            self._cluster.end(station.process)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _look_for_nodes(self) -> None:
        """Start a process on every device that joined since, and on those whose process died."""
        if time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        there = [node for node in self._cluster.nodes() if node.hardware in self._of_class]
        present = nodes.devices(there)
        self._tasks.expected = {each.name for each in present if not math.isinf(self._begins.get(each.id, 0.0))}
        for device in present:
            if device.name not in self._stations and self._begins.get(device.id, 0.0) <= self._looked:
                station = _Station(device, self._cluster.start(device))
                self._stations[device.name] = station
                self._call(station, "describe")

    def _call(self, station: _Station, method: str, *arguments: object) -> None:
        self._calls[self._cluster.call(station.process, method, *arguments)] = _Call(station, method, time.time())

    def _prepare(self, station: _Station, method: str, reply: object) -> None:
        """The next step of a device: describe, check, open; a device that was checked before is not checked again."""
        name, settings = station.device.name, self._classes[station.device.node.hardware]
        if isinstance(reply, Description):
            self.nodes.get(name, {}).pop("drained", None)  # of an earlier node with this name
            self._learn(name, _facts(station, reply))
            if station.device.id in self._checked or settings.verify_only:
                self._call(station, "open", replace(settings, ceilings=self.ceilings))
            else:
                self._observer.phase(f"{name}  calibration and noise check")
                self._call(station, "check", settings, self._of_class[station.device.node.hardware])
        elif isinstance(reply, Checked):
            self._learn(name, {"noise": reply.noise, "ceilings": msgspec.to_builtins(reply.ceilings)})
            self.ceilings = reply.ceilings | self.ceilings
            if reply.objection:
                self._drain(station, reply.objection)
            else:
                self._checked.add(station.device.id)
                self._call(station, "open", replace(settings, ceilings=self.ceilings))
        elif method == "open":
            station.ready = True
            self._tasks.add_node(name, [station.slot])
            if math.isinf(self._end) and self.settings.budget_s:
                self._end = time.monotonic() + self.settings.budget_s

    def _learn(self, name: str, facts: Facts) -> None:
        """Add facts of a device."""
        self.nodes.setdefault(name, {}).update(facts)
        self.node_changes += 1

    def _drain(self, station: _Station, reason: str) -> None:
        """Give a device no more groups, for this reason, which is stored."""
        self._learn(station.device.name, {"drained": reason})
        self._begins[station.device.id] = math.inf
        self._remove(station)

    def _remove(self, station: _Station) -> None:
        self._stations.pop(station.device.name, None)
        self._calls = {call: each for call, each in self._calls.items() if each.station is not station}
        self._cluster.end(station.process)

    def _lose(self, station: _Station, error: ProcessLostError) -> None:
        """A process died, or its node: its group returns to the queue, and the device is tried again if it is there."""
        device = station.device
        self._remove(station)
        self._deaths[device.id] += 1
        self._begins[device.id] = time.monotonic() + PAUSE_S
        self._learn(device.name, {"lost": True})
        busy = station.slot in self._tasks.running
        given_up = self._tasks.lose_node(device.name, LOST) if station.ready else []
        of_group = "; its group is given up" if given_up else "; its group goes back to the queue" if busy else ""
        if of_group or self._deaths[device.id] == 1:  # Ray lists a node for a while after it is gone
            self._observer.note(f"node {device.name} was lost{of_group}")
        self._store_given_up(given_up)
        if self._deaths[device.id] >= MAX_FAILED:
            self._drain(station, f"its process died {MAX_FAILED} times: {error}")

    # -- groups --------------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        for slot in self._tasks.idle:
            if task := self._tasks.assign(slot):
                self._rest_s[task.hardware] -= task.seconds
                slots = sum(each.slot.hardware == slot.hardware and each.ready for each in self._stations.values())
                rest_s = max(self._rest_s[task.hardware], 0.0) / slots
                left_s = self._end - time.monotonic()
                self._call(self._stations[slot.node], "measure", task.group, task.restart, left_s, rest_s)
        busy, ready = len(self._tasks.running), sum(station.ready for station in self._stations.values())
        if ready:
            self._observer.phase(f"{busy} of {ready} devices busy")

    def _wait(self) -> None:
        """Take the replies that are there, or wait for one."""
        if not self._calls:
            time.sleep(POLL_S)
            return
        for reference in self._cluster.ready(list(self._calls), POLL_S):
            station, method, sent_s = self._calls.pop(reference)
            try:
                reply = self._cluster.reply(reference)
            except ProcessLostError as error:
                self._lose(station, error)
                continue
            if isinstance(reply, GroupMeasured):
                self.spent["engine"] += time.time() - sent_s - reply.seconds
                self._finish(station, reply)
            elif isinstance(reply, Description):
                station.ahead_s = _ahead(reply.time_s, sent_s, time.time())
                self._prepare(station, method, reply)
            else:
                self._prepare(station, method, reply)

    def _finish(self, station: _Station, measured: GroupMeasured) -> None:
        task = self._tasks.finish(station.slot)
        self._deaths[station.device.id] = 0
        for phase, seconds in measured.spent.items():
            self.spent[phase] += seconds
        self.environments = measured.environments | self.environments
        known = self.nodes.get(station.device.name, {}).get("device_facts", {})
        facts = dict(known)
        for environment in measured.environments.values():
            facts |= environment.facts
        if facts != known:
            self._learn(station.device.name, {"device_facts": facts})
        where: Facts = {"node": station.device.name}
        self._store(
            replace(shifted(result, station.ahead_s), facts=result.facts | where) for result in measured.results
        )
        if decisive := self._decisive(measured.results):
            dropped = self._tasks.drop(task)
            self._rest_s[task.hardware] -= sum(each.seconds for each in dropped)
            self._left_out(decisive, len(dropped) * len(task.group.arms))

    def _store(self, results: Iterator[Result]) -> None:
        stored = list(results)
        started = time.monotonic()
        self._append(stored)
        self.spent["store"] += time.monotonic() - started
        left_s = sum(self._rest_s.values()) / max(len(self._stations), 1)
        for result in stored:
            self._observer.result(result, min(left_s, max(self._end - time.monotonic(), 0.0)))
        self._failed_fast |= self.settings.fail_fast and any(result.status.failed for result in stored)

    def _store_given_up(self, given_up: Sequence[GivenUp]) -> None:
        for each in given_up:
            self._store(self._refused(each.task, Refusal(Status.CRASHED, each.reason, Cause.NODE_LOST)))

    def _refused(self, task: Task, refusal: Refusal) -> Iterator[Result]:
        procedures = self._classes[task.hardware].procedures
        for arm in task.group.arms:
            procedure = procedures[arm.parsed_device.kind]
            case = task.group.case(arm)
            yield refusal.result(case, arm, procedure, restart=task.restart, group=task.group.id)

    def _check_progress(self) -> None:
        """After the budget nothing begins. Groups whose hardware is gone wait a while; then the run ends."""
        now = time.monotonic()
        if now > self._end:
            for each in self._tasks.abandon(BEYOND_BUDGET.reason):
                self._store(self._refused(each.task, BEYOND_BUDGET))
        starting = {each.slot.hardware for each in self._stations.values() if not each.ready}
        stranded = [hardware for hardware in self._tasks.stranded if hardware not in starting]
        if self._tasks.running or not stranded or set(self._tasks.waiting) - set(stranded):
            self._seen = now
        elif now > self._seen + PATIENCE_S or all(map(self._all_drained, stranded)):
            raise UsageError(self._nodes_gone(stranded))

    def _all_drained(self, hardware: str) -> bool:
        there = [device.id for device in nodes.devices(self._cluster.nodes()) if device.node.hardware == hardware]
        return bool(there) and all(math.isinf(self._begins.get(device, 0.0)) for device in there)

    def _nodes_gone(self, stranded: Sequence[str]) -> str:
        drained = [f"{name}: {facts['drained']}" for name, facts in self.nodes.items() if facts.get("drained")]
        why = f" ({'; '.join(drained)})" if drained else ""
        return f"no usable node with {', '.join(stranded)} is left{why}; all results are stored: continue with --resume"


def _tasks(
    plan: Plan, settings: RunSettings, done: frozenset[Key], classes: Iterable[str], homes: Homes
) -> Iterator[Task]:
    """What the plan lacks, a task for each group and restart."""
    for restart in range(settings.first_restart, settings.first_restart + settings.restarts):
        for group in missing_arms(plan.groups, restart, done, settings.reference):
            arm = group.arms[0]
            hardware = class_of(arm.parsed_device.hardware, classes)
            home = homes.get((group.case(arm).id, arm.device), "")
            yield Task(group=group, restart=restart, hardware=hardware, home=home, seconds=group.seconds)


def _for_run(of_class: RunSettings, settings: RunSettings) -> RunSettings:
    """The settings that a class of hardware was planned with, as this run changed them since."""
    procedures = {
        kind: replace(each, inputs=settings.procedures[kind].inputs, seed=settings.procedures[kind].seed)
        for kind, each in of_class.procedures.items()
    }
    return replace(of_class, procedures=procedures, verify_only=settings.verify_only, probes=settings.probes)


def _ahead(there_s: float, sent_s: float, received_s: float) -> float:
    """How far a clock that was read between these two times is ahead at least; negative if it is behind."""
    return there_s - min(max(there_s, sent_s), received_s)


def _facts(station: _Station, described: Description) -> Facts:
    return {
        "hardware": station.device.node.hardware,
        "fingerprint": described.fingerprint,
        "machine": described.machine,
        "packages": described.packages,
        "clock_ahead_s": round(station.ahead_s, 3),
    }
