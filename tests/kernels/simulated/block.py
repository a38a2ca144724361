"""A block of Hopper as its programs see it: warps that run beside each other, barriers, copies and products under way.

What can happen in any order does, in the order of a seed. Two accesses to the same rows of shared memory, one of them a
write, must be ordered by barriers: that is checked by vector clocks (Lamport's happens-before, as in FastTrack,
https://doi.org/10.1145/1542476.1542490), so a race is found whatever order was drawn. Waits that nobody can end are
found too, and ordinary writes that the copy engine or the tensor cores read without a fence between.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet

Clock = dict[int, int]


class Fault(AssertionError):  # noqa: N818 (what it says is what was found)
    """The program did what it may not do."""


class Race(Fault):
    """Two accesses that nothing orders."""


class Deadlock(Fault):
    """All wait."""


class Misuse(Fault):
    """A barrier, a product or a copy used against its rules."""


def join(mine: Clock, other: Clock) -> None:
    """All that is in the past of `other` is in the past of `mine`."""
    get = mine.get
    for agent, tick in other.items():
        if get(agent, 0) < tick:
            mine[agent] = tick


@dataclass
class Agent:
    """Something that acts: a partition of warps, or a copy or product under way."""

    number: int
    name: str
    clock: Clock

    def tick(self) -> int:
        self.clock[self.number] = self.clock.get(self.number, 0) + 1
        return self.clock[self.number]


@dataclass
class Access:
    """Of rows [low, high) of a tile."""

    agent: Agent
    tick: int
    low: int
    high: int
    write: bool
    fenced: bool  # what is not is invisible to copies and products


@dataclass
class Operation:
    """A copy or product under way."""

    agent: Agent
    perform: Callable[[], None]
    queue: Queue | None = None


@dataclass
class Queue:
    """Operations that end in the order in which they began, and that one waits for by their number."""

    begun: list[Operation] = field(default_factory=list)  # and not waited for
    ended: int = 0  # how many of these

    @property
    def next(self) -> Operation:
        """That which ends next."""
        return self.begun[self.ended]


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes have come."""

    name: str
    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0
    fenced: bool = False
    gathered: Clock = field(default_factory=dict)  # the pasts of those that arrived in this phase
    released: Clock = field(default_factory=dict)  # and of those of the phase that ended last

    def settle(self) -> None:
        if self.pending < 0:
            raise Misuse(f"{self.name}: more arrived than the {self.count} that it waits for")
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending, self.released, self.gathered = self.count, self.gathered, {}


@dataclass
class Partition:
    """Warps that run one function."""

    agent: Agent
    thread: Any = None
    products: Queue = field(default_factory=Queue)
    sends: Queue = field(default_factory=Queue)
    awaits: Callable[[], bool] | None = None  # None: it can go on
    what: str = ""


class Block:
    """One program of a grid. `async_when`: copies and products happen `late`, `early` or at `random`."""

    def __init__(self, seed: int = 0, async_when: str = "random") -> None:
        self.random = random.Random(seed)
        self.async_when = async_when
        self.agents: list[Agent] = []
        self.under_way: list[Operation] = []
        self.tiles: dict[tuple[int, int], list[Access]] = {}
        self.barriers: list[Barrier] = []
        self.main = self.current = Partition(self.agent("start", {}))

    def agent(self, name: str, past: Clock) -> Agent:
        made = Agent(len(self.agents), name, dict(past))
        self.agents.append(made)
        made.tick()
        return made

    def begin(self, name: str, perform: Callable[[Agent], None], queue: Queue | None = None) -> Operation:
        """Something happens at a later time, with the past of who began it."""
        agent = self.agent(name, self.current.agent.clock)
        self.current.agent.tick()
        operation = Operation(agent, lambda: perform(agent), queue)
        self.under_way.append(operation)
        if queue is not None:
            queue.begun.append(operation)
        self.until(None, "")
        return operation

    def run(self, functions: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
        """Run partitions until all have ended."""
        partitions = []
        for place, (function, arguments) in enumerate(functions):
            agent = self.agent(f"{function.__name__} {place}", self.main.agent.clock)
            partitions.append(Partition(agent, greenlet(partial(function, *arguments))))
        while True:
            able = [one for one in partitions if (one.awaits is None or one.awaits()) and not one.thread.dead]
            ready = [one for one in self.under_way if one.queue is None or one.queue.next is one]
            if not able and not ready:
                break
            if ready and (not able or self.async_when == "early" or (self.async_when == "random" and self._coin())):
                self._finish(self.random.choice(ready))
                continue
            self.current = self.random.choice(able)
            self.current.thread.switch()
            self.current = self.main
        stuck = [f"{one.agent.name} waits for {one.what}" for one in partitions if not one.thread.dead]
        if stuck:
            raise Deadlock("; ".join(stuck))
        for one in partitions:
            if one.products.begun or one.sends.begun:
                raise Misuse(f"{one.agent.name} ended before its copies or products did")
            join(self.main.agent.clock, one.agent.clock)

    def _coin(self) -> bool:
        return self.random.random() < 0.4

    def _finish(self, operation: Operation) -> None:
        operation.perform()
        if operation.queue is not None:
            operation.queue.ended += 1
        self.under_way.remove(operation)

    def finish(self, queue: Queue, pending: int, what: str) -> None:
        """Wait for all of a queue but the last `pending`; what they did comes before what this partition does next."""
        count = max(0, len(queue.begun) - pending)
        self.until(lambda: queue.ended >= count, what)
        for one in queue.begun[:count]:
            join(self.current.agent.clock, one.agent.clock)
        del queue.begun[:count]
        queue.ended -= count

    def until(self, condition: Callable[[], bool] | None, what: str) -> None:
        """Let others run until the condition holds, if there is one; they may run in any case."""
        self.current.awaits, self.current.what = condition, what
        getcurrent().parent.switch()

    def access(self, agent: Agent, tile: tuple[int, int], low: int, high: int, write: bool, direct: bool) -> None:
        """Check and note an access; `direct`: by the copy engine or the tensor cores."""
        kept = []
        for old in self.tiles.setdefault(tile, []):
            before = agent.clock.get(old.agent.number, 0) >= old.tick
            apart = high <= old.low or old.high <= low
            if not apart and (write or old.write):
                kinds = ("read", "write")
                if not before:
                    raise Race(
                        f"{kinds[write]} by {agent.name} of what {old.agent.name} has under {kinds[old.write]}: "
                        f"rows {low} to {high} of tile {tile}"
                    )
                if direct and old.write and not old.fenced:
                    raise Misuse(f"{agent.name} has no fence after the write of {old.agent.name}: tile {tile}")
            if apart or not before or not write or low > old.low or high < old.high:
                kept.append(old)
        self.tiles[tile] = [*kept, Access(agent, agent.tick(), low, high, write, fenced=direct or not write)]

    def fence(self) -> None:
        """Make the ordinary writes of this partition visible to copies and products."""
        for accesses in self.tiles.values():
            for one in accesses:
                one.fenced |= one.agent is self.current.agent
        if self.current is self.main:
            for barrier in self.barriers:
                barrier.fenced = True
