"""A plan on several GPUs or core sets of this machine: each measures its own groups, beside the others.

A GPU gets cores of its own. Core sets of one CPU share caches and memory: they take turns, as `Runner` has it, unless a
check shows that they do not disturb each other.
"""

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from msgspec.structs import replace

from attnbench.engine.candidates import peak_bytes
from attnbench.engine.disturbance import check
from attnbench.engine.forecast import Forecast
from attnbench.engine.group import Group
from attnbench.engine.group_runner import GroupRunner, RunSettings
from attnbench.engine.plan import Plan, group_bytes, missing_arms
from attnbench.engine.runner import Ending, Observer, PlanRunner, Runner
from attnbench.engine.scheduler import Slot, Task, TaskScheduler
from attnbench.machine import identity, resources
from attnbench.records.arm import parse_device
from attnbench.records.result import Key, Result
from attnbench.units import size

HERE = "this machine"
MIN_SAVED_S = 30.0  # by running side by side, for which the check of about 15 s pays off
MIN_CORES = 2  # for each GPU: its worker starts kernels from one, its oracle computes on the others


class SideBySideRunner(PlanRunner):
    """Runs a plan with a thread for each slot, whose workers and oracle inherit the cores of the thread.

    A group with arms on several devices becomes one for each. Results come in groups, as in `Runner`.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        plan: Plan,
        settings: RunSettings,
        append: Callable[[Sequence[Result]], None],
        observer: Observer,
        done: frozenset[Key] = frozenset(),
        logs: Path | None = None,
    ) -> None:
        super().__init__(settings, append, observer)
        self._started = time.monotonic()
        self._end = math.inf if settings.budget_s is None else self._started + settings.budget_s
        tasks = list(_tasks(plan, settings, done))
        self._tasks = TaskScheduler(tasks, cheapest_first=settings.budget_s is not None)
        self._rest_s: dict[str, float] = defaultdict(float)  # predicted for the tasks in the queue, by device
        for task in tasks:
            self._rest_s[task.hardware] += task.seconds
        of_slot = replace(settings, profile_apart=plan.cases > 1)
        self._replies: SimpleQueue[str | tuple[Slot, list[Result] | BaseException]] = SimpleQueue()
        self._slots = {slot: _SlotThread(slot, of_slot, self._replies, self, logs, self._end) for slot in slots}

    def run(self) -> Ending:
        """Measure everything that is not done. No worker outlives this call."""
        stopped = False
        self._tasks.add_node(HERE, self._slots)
        for thread in self._slots.values():
            thread.start()
        try:
            while not (self._tasks.finished or stopped):
                if not self.stop_requested:
                    self._assign()
                elif not self._tasks.running:
                    return Ending(interrupted=True)
                stopped = self._take()
        finally:
            for thread in self._slots.values():
                thread.end(at_once=bool(self._tasks.running))
            self.spent["total"] += time.monotonic() - self._started
        return Ending(stopped=stopped)

    def _assign(self) -> None:
        for slot in self._tasks.idle:
            if task := self._tasks.assign(slot):
                self._rest_s[task.hardware] -= task.seconds
                self._slots[slot].tasks.put((task, max(self._rest_s[task.hardware], 0.0)))

    def _take(self) -> bool:
        """Wait for what a thread reports; whether the run ends because of a failure."""
        reply = self._replies.get()
        if isinstance(reply, str):
            self._observer.phase(reply)
            return False
        slot, results = reply
        if isinstance(results, BaseException):
            raise results
        self._tasks.finish(slot)
        self.environments = self._slots[slot].groups.environments | self.environments
        started = time.monotonic()
        self._append(results)
        self.spent["store"] += time.monotonic() - started
        left_s = min(max(self._rest_s.values()), max(self._end - time.monotonic(), 0.0))
        for result in results:
            self._observer.result(result, left_s)
        return self.settings.fail_fast and any(result.status.failed for result in results)


class _SlotThread(Thread):
    """Measures the tasks of one slot, one after the other."""

    def __init__(
        self,
        slot: Slot,
        settings: RunSettings,
        replies: "SimpleQueue[str | tuple[Slot, list[Result] | BaseException]]",
        runner: SideBySideRunner,
        logs: Path | None,
        end: float,
    ) -> None:
        super().__init__(name=slot.name, daemon=True)
        self.tasks: SimpleQueue[tuple[Task, float] | None] = SimpleQueue()
        self._slot, self._replies = slot, replies
        self.groups = GroupRunner(settings, replies.put, lambda: runner.stop_requested, logs, end)
        self.groups.forecast, self.groups.spent = runner.forecast, runner.spent
        self._opened = False

    def run(self) -> None:
        """Measure until there is no further task."""
        os.sched_setaffinity(0, self._slot.cores)  # of this thread, which its processes inherit
        try:
            with self.groups as groups:
                self._opened, restart = True, 0
                while task_and_rest := self.tasks.get():
                    task, rest_s = task_and_rest
                    if task.restart != restart:
                        groups.end_restart()
                        restart = task.restart
                    self._replies.put((self._slot, groups.measure(task.group, task.restart, rest_s)))
        except BaseException as error:  # raised in the main thread, which waits for the reply
            self._replies.put((self._slot, error))

    def end(self, at_once: bool) -> None:
        """End the thread and its workers; `at_once` does not wait for the group that is measured."""
        self.tasks.put(None)
        while at_once and self.is_alive():
            with contextlib.suppress(RuntimeError):  # a worker that starts meanwhile
                if self._opened:
                    self.groups.end_restart()
            self.join(0.1)
        self.join()


def local_runner(
    plan: Plan,
    settings: RunSettings,
    append: Callable[[Sequence[Result]], None],
    observer: Observer,
    done: frozenset[Key] = frozenset(),
    logs: Path | None = None,
) -> PlanRunner:
    """What runs a plan on this machine: devices that do not disturb each other side by side, else group after group."""
    slots = slots_of(plan, resources.available_cores())
    if slots and not settings.verify_only and "cpu" in settings.procedures:
        started = time.monotonic()
        if why := _take_turns(plan, settings, len(slots), observer, done):
            observer.note(f"core sets take turns: {why}")
            slots = []
        if settings.budget_s is not None:
            settings = replace(settings, budget_s=max(settings.budget_s - (time.monotonic() - started), 0.0))
    if slots:
        return SideBySideRunner(slots, plan, settings, append, observer, done, logs)
    return Runner(plan, settings, append, observer, done, logs)


def _take_turns(plan: Plan, settings: RunSettings, count: int, observer: Observer, done: frozenset[Key]) -> str:
    """Why so many core sets take turns; empty where they run side by side."""
    left = plan.left(done, range(settings.first_restart, settings.first_restart + settings.restarts))
    needed = _bytes_beside(left)
    if settings.memory_bytes and needed > settings.memory_bytes:
        return f"side by side they need {size(needed)}, and --mem-limit leaves {size(settings.memory_bytes)}"
    if left.seconds * settings.restarts * (1 - 1 / count) < MIN_SAVED_S:
        return "side by side the run would hardly be shorter"
    observer.phase("checking whether core sets disturb each other")
    disturbance = check(plan, settings, identity.fingerprint()[0], observer.phase)
    if not disturbance.excluded:
        return f"they may disturb each other; times beside the others over those alone: {disturbance.text}"
    observer.note(f"core sets run side by side; times beside the others over those alone: {disturbance.text}")
    return ""


def _bytes_beside(plan: Plan) -> int:
    """Memory for the largest group of each device."""
    largest: dict[str, int] = defaultdict(int)
    for part in (part for group in plan.groups for part in by_device(group)):
        device, cases = part.arms[0].device, map(part.case, (*part.arms, *part.borrowed))
        largest[device] = max(largest[device], group_bytes(part.problem, map(peak_bytes, cases)))
    return sum(largest.values())


def slots_of(plan: Plan, cores: Sequence[int]) -> list[Slot]:
    """A slot for each GPU of a plan with several, with its part of the cores, or for each of several named core sets.

    None where they would share cores.
    """
    devices = sorted({arm.device for group in plan.groups for arm in group.arms})
    parsed = [parse_device(device) for device in devices]
    share = len(cores) // max(len(devices), 1)
    kinds = {device.kind for device in parsed}
    if len(devices) < 2 or not hasattr(os, "sched_setaffinity"):
        return []
    if kinds == {"cpu"} and all(device.cores for device in parsed):
        named = [core for device in parsed for core in device.cores]
        disjoint = len(set(named)) == len(named)
        return [Slot(HERE, each.text, each.text, each.cores) for each in parsed] if disjoint else []
    if kinds != {"cuda"} or share < MIN_CORES:
        return []
    return [
        Slot(HERE, device, device, tuple(cores[number * share : (number + 1) * share]))
        for number, device in enumerate(devices)
    ]


def _tasks(plan: Plan, settings: RunSettings, done: frozenset[Key]) -> Iterator[Task]:
    """What the plan lacks, a task for each group, device and restart."""
    forecast = Forecast(settings.speeds)
    groups = [part for group in plan.groups for part in by_device(group)]
    for restart in range(settings.first_restart, settings.first_restart + settings.restarts):
        for place, group in enumerate(missing_arms(groups, restart, done, settings.reference)):
            yield Task(
                group=group, restart=restart, hardware=group.arms[0].device, seconds=forecast.group_s(group),
                place=place if settings.in_order else 0,
            )  # fmt: skip


def by_device(group: Group) -> Iterator[Group]:
    """The group of each device."""
    for device in dict.fromkeys(arm.device for arm in group.arms):
        arms = tuple(arm for arm in group.arms if arm.device == device)
        borrowed = tuple(arm for arm in group.borrowed if arm.device == device)
        yield replace(group.only(arms), id=f"{group.id}-{device}", borrowed=borrowed)
