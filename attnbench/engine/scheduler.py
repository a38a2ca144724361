"""Assigns the groups of a plan to slots of nodes: a state machine without clock, processes or network.

Its caller starts a task when `assign` returns one, and reports how it ended by `finish` or `fail`. A node's loss and
its draining may come at any time.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from attnbench.engine.group import Group

MAX_TRIES = 3  # of a task, before it is given up
MAX_FAILED = 3  # different tasks that fail on a node, without one that ends between them, before it is drained

MAX_REPEATED = 8  # tasks that a node passes over because it measured their groups in an earlier restart


class Slot(NamedTuple):
    """A device or a set of cores of a node. It measures one group at a time."""

    node: str
    name: str  # of a device, as in `--device`; unique within the node
    hardware: str = ""  # the class of the device: H100, cpu
    cores: tuple[int, ...] = ()  # that its workers are pinned to; the slots of a node share none


class TaskKey(NamedTuple):
    """What makes a task different from any other."""

    hardware: str
    restart: int
    group: str  # id


class Task(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One group in one restart on one class of hardware. It is measured once, on one slot."""

    group: Group
    restart: int = 0
    hardware: str = ""
    home: str = ""  # the node that measures it while it is there; empty: any
    seconds: float = 0.0  # predicted
    place: int = 0  # in a plan that is measured in its order: smaller ones come first

    @property
    def key(self) -> TaskKey:
        return TaskKey(self.hardware, self.restart, self.group.id)


class GivenUp(NamedTuple):
    """A task that is not tried again."""

    task: Task
    reasons: tuple[str, ...]  # one for each try; a task that was abandoned has one more

    @property
    def reason(self) -> str:
        """The reasons with their numbers: `its node was lost 3 times`."""
        counts = Counter(self.reasons)
        return ", ".join(reason + (f" {count} times" if count > 1 else "") for reason, count in counts.items())


_Entry = tuple[int, int, float, bool, str, Task]  # of a queue, in its order


class _Node:
    def __init__(self, slots: tuple[Slot, ...]) -> None:
        self.slots = slots
        self.failed: set[TaskKey] = set()  # since the last task that ended


class TaskScheduler:
    """The queue of a plan, and what runs where.

    Restarts follow one another, since each starts new workers; no task waits for others of its restart to end. In
    a restart the most expensive group is first, so that all slots end at about the same time. `cheapest_first` is for
    a budget that does not suffice for all.
    """

    def __init__(self, tasks: Iterable[Task], max_tries: int = MAX_TRIES, cheapest_first: bool = False) -> None:
        self._max_tries, self._sign = max_tries, 1 if cheapest_first else -1
        self._queues: dict[str, list[_Entry]] = {}  # a heap for each class of hardware
        self._measured_on: dict[tuple[str, str], set[str]] = {}  # nodes, by hardware and group
        self._keys: set[TaskKey] = set()
        self._failures: dict[TaskKey, list[tuple[str, str]]] = {}  # node and reason of each try that failed
        self._nodes: dict[str, _Node] = {}
        self._usable: dict[str, set[str]] = {}  # nodes that are not drained, by class of hardware
        self._running: dict[Slot, Task] = {}
        self._drained: dict[str, str] = {}
        self._given_up: list[GivenUp] = []
        self.expected: Collection[str] = ()  # nodes that are there or start: tasks wait for their home among them
        for task in tasks:
            if task.key in self._keys:
                raise ValueError(f"two tasks have the key {task.key}")
            self._keys.add(task.key)
            self._push(task)

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> Mapping[Slot, Task]:
        """The task of every busy slot."""
        return MappingProxyType(self._running)

    @property
    def drained(self) -> Mapping[str, str]:
        """Why a node gets no more tasks, by its name; a lost node stays listed."""
        return MappingProxyType(self._drained)

    @property
    def given_up(self) -> tuple[GivenUp, ...]:
        """The tasks that are not tried again."""
        return tuple(self._given_up)

    @property
    def waiting(self) -> dict[str, int]:
        """Number of tasks in the queue, by class of hardware; without classes that have none."""
        return {hardware: len(queue) for hardware, queue in self._queues.items() if queue}

    @property
    def stranded(self) -> tuple[str, ...]:
        """Classes of hardware with tasks in the queue and without a node that may take one."""
        return tuple(hardware for hardware in self.waiting if not self._usable.get(hardware))

    @property
    def idle(self) -> list[Slot]:
        """The slots that may take a task now."""
        slots = (slot for name, node in self._nodes.items() if name not in self._drained for slot in node.slots)
        return [slot for slot in slots if slot not in self._running]

    @property
    def finished(self) -> bool:
        """Whether every task ended or is given up."""
        return not self._running and not self.waiting

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def add_node(self, name: str, slots: Iterable[Slot]) -> None:
        """A node that may take tasks from now on. Raises ValueError where its slots share a name or cores."""
        slots = tuple(slots)
        cores = [core for slot in slots for core in slot.cores]
        if name in self._nodes or any(slot.node != name for slot in slots):
            raise ValueError(f"node {name}: added twice, or slots of another node")
        if len({slot.name for slot in slots}) < len(slots) or len(set(cores)) < len(cores):
            raise ValueError(f"node {name}: two slots share a name or cores")
        self._drained.pop(name, None)
        self._nodes[name] = _Node(slots)
        for slot in slots:
            self._usable.setdefault(slot.hardware, set()).add(name)

    def drain(self, name: str, reason: str) -> None:
        """Give a node no more tasks. Those that run there end as usual."""
        self._drained.setdefault(name, reason)
        for nodes in self._usable.values():
            nodes.discard(name)

    def lose_node(self, name: str, reason: str = "its node was lost") -> list[GivenUp]:
        """Forget a node. Its tasks return to the queue; those that were tried too often are returned."""
        node = self._nodes.pop(name)
        for nodes in self._usable.values():
            nodes.discard(name)
        lost = [(slot, self._running.pop(slot)) for slot in node.slots if slot in self._running]
        ended = [self._again(slot, task, reason) for slot, task in lost]
        return [task for task in ended if task]

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def assign(self, slot: Slot) -> Task | None:
        """The next task for an idle slot; None if there is none for it now. Raises ValueError for a busy slot.

        A task with a home goes there while that node is expected. Another one does not return to a node on which it
        failed while another node can take it, and restarts of a group go to different nodes where they can: the
        nodes then have cases in common.
        """
        self._check(slot, busy=False)
        queue = self._queues.get(slot.hardware)
        if slot.node in self._drained or not queue:
            return None
        task = self._take(queue, slot)
        if task:
            self._running[slot] = task
        return task

    def finish(self, slot: Slot) -> Task:
        """The slot's task has its results. Raises ValueError for an idle slot, as after the loss of its node."""
        self._check(slot, busy=True)
        self._nodes[slot.node].failed.clear()
        task = self._running.pop(slot)
        self._measured_on.setdefault((task.hardware, task.group.id), set()).add(slot.node)
        return task

    def fail(self, slot: Slot, reason: str) -> GivenUp | None:
        """The slot's task ended without results. It returns to the queue; if it was tried too often, it is returned.

        A node on which several tasks in a row fail is drained. Raises ValueError for an idle slot.
        """
        self._check(slot, busy=True)
        task, node = self._running.pop(slot), self._nodes[slot.node]
        node.failed.add(task.key)
        if len(node.failed) >= MAX_FAILED:
            self.drain(slot.node, f"{len(node.failed)} groups in a row failed, the last one: {reason}")
        return self._again(slot, task, reason)

    def abandon(self, reason: str, hardware: Collection[str] | None = None) -> list[GivenUp]:
        """Give up all tasks in the queue: of these classes of hardware, or of all."""
        given_up = []
        for name, queue in self._queues.items():
            if hardware is None or name in hardware:
                given_up += [self._give_up(entry[-1], reason) for entry in sorted(queue)]
                queue.clear()
        return given_up

    def drop(self, task: Task) -> list[Task]:
        """Remove the further restarts of the group of a task from the queue, and return them."""
        queue = self._queues.get(task.hardware, [])
        dropped = [entry for entry in queue if entry[-1].group.id == task.group.id]
        queue[:] = sorted(entry for entry in queue if entry[-1].group.id != task.group.id)
        return [entry[-1] for entry in dropped]

    def _check(self, slot: Slot, busy: bool) -> None:
        if slot.node not in self._nodes or slot not in self._nodes[slot.node].slots:
            raise ValueError(f"no slot {slot}: its node was not added, or is lost")
        if (slot in self._running) is not busy:
            raise ValueError(f"slot {slot} is {'idle' if busy else 'busy'}")

    def _take(self, queue: list[_Entry], slot: Slot) -> Task | None:
        """Take the first task that did not fail on the node, of several such the first whose group is new to it."""
        restart, chosen = queue[0][0], None
        passed: list[_Entry] = []
        repeated: list[_Entry] = []
        while queue and chosen is None and len(repeated) < MAX_REPEATED:
            entry = heapq.heappop(queue)
            if self._avoids(entry[-1], slot):
                passed.append(entry)
            elif not entry[-1].home and slot.node in self._measured_on.get((slot.hardware, entry[-1].group.id), ()):
                repeated.append(entry)
            elif entry[0] == restart or not repeated:
                chosen = entry
            else:  # the workers of the node stay in their restart
                passed.append(entry)
                break
        if chosen is None and repeated:
            chosen = repeated.pop(0)
        for entry in (*passed, *repeated):
            heapq.heappush(queue, entry)
        return chosen[-1] if chosen else None

    def _push(self, task: Task) -> None:
        # The key makes the order total, so that entries with equal predictions never compare tasks.
        entry = task.restart, task.place, self._sign * task.seconds, task.group.late, task.group.id, task
        heapq.heappush(self._queues.setdefault(task.hardware, []), entry)

    def _avoids(self, task: Task, slot: Slot) -> bool:
        if task.home in self.expected:
            return slot.node != task.home
        failed = {node for node, _ in self._failures.get(task.key, ())}
        usable = self._usable[slot.hardware]
        return slot.node in failed and len(usable & failed) < len(usable)

    def _again(self, slot: Slot, task: Task, reason: str) -> GivenUp | None:
        failures = self._failures.setdefault(task.key, [])
        failures.append((slot.node, reason))
        if len(failures) >= self._max_tries:
            return self._give_up(task)
        self._push(task)
        return None

    def _give_up(self, task: Task, *further: str) -> GivenUp:
        reasons = tuple(reason for _, reason in self._failures.pop(task.key, ()))
        given_up = GivenUp(task, (*reasons, *further))
        self._given_up.append(given_up)
        return given_up
