"""The idle share of simulated clusters with made-up durations, by `python -m tools.scheduling`.

The scheduler is that of the engine. Groups take lognormal seconds, predicted wrong by up to a factor of two; a fifth of
them compile. Nodes are lost at random and join again. Lost work counts as busy: it is in a column of its own.
"""

from __future__ import annotations

import heapq
import random
import time
from typing import NamedTuple

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.group import Group
from attnbench.engine.scheduler import Slot, Task, TaskScheduler

GROUPS, NODES = 100_000, (10, 100, 1_000)
MEDIAN_S, SIGMA, COMPILE_S = 4.0, 1.0, 8.0
SHARE_LATE, MAX_ERROR = 0.2, 2.0  # of the predictions, as a factor
AWAY_S = 60.0  # from the loss of a node until it joins again
LOST = 0.5  # losses of each node during the plan, on average


class Outcome(NamedTuple):
    """How a simulated plan went."""

    makespan_s: float
    idle: float  # share of the time of all slots while their nodes were there
    wasted: float  # share of it, on groups whose node was then lost
    losses: int
    measured: int
    given_up: int


def tasks(count: int, seed: int) -> tuple[list[Task], dict[str, float]]:
    """Groups with their predictions, and how long each takes, by id."""
    draw = random.Random(seed)
    planned, seconds = [], {}
    problem = Problem(seq_q=64)
    for number in range(count):
        late = draw.random() < SHARE_LATE
        taken_s = MEDIAN_S * draw.lognormvariate(0, SIGMA) + COMPILE_S * late
        group = Group(id=f"g{number:06d}", problem=problem, mode=Mode.FWD, arms=(), late=late)
        planned.append(Task(group=group, seconds=taken_s * MAX_ERROR ** draw.uniform(-1, 1)))
        seconds[group.id] = taken_s
    return planned, seconds


class Simulation:
    """A plan on nodes of one slot each, event by event. `lost_every_s`: mean time from joining to the loss of one."""

    def __init__(self, count: int, nodes: int, seed: int = 0, lost_every_s: float = 0.0) -> None:
        self._draw, self._lost_every_s = random.Random(seed + 1), lost_every_s
        planned, self._seconds = tasks(count, seed)
        self._scheduler = TaskScheduler(planned)
        self._events: list[tuple[float, int, str, Slot]] = []
        self._joined: dict[Slot, float] = {}
        self._started: dict[Slot, tuple[float, int]] = {}  # when, and the number of the event of its end
        self._number = 0
        self._present_s = self._busy_s = self._wasted_s = 0.0
        self._losses = self._measured = 0
        for number in range(nodes):
            self._schedule(0.0, "join", Slot(f"n{number}", "cpu"))

    def run(self) -> Outcome:
        """Simulate until every group is measured or given up."""
        now = 0.0
        while not self._scheduler.finished:
            now, number, event, slot = heapq.heappop(self._events)
            if event == "end" and self._started.get(slot, (0.0, -1))[1] == number:
                self._busy_s += now - self._started.pop(slot)[0]
                self._scheduler.finish(slot)
                self._measured += 1
                self._assign(slot, now)
            elif event == "lose":
                self._lose(slot, now)
            elif event == "join":
                self._scheduler.add_node(slot.node, [slot])
                self._joined[slot] = now
                if self._lost_every_s:
                    self._schedule(now + self._draw.expovariate(1 / self._lost_every_s), "lose", slot)
                self._assign(slot, now)
        self._present_s += sum(now - joined for joined in self._joined.values())
        idle = 1 - self._busy_s / self._present_s
        given_up = len(self._scheduler.given_up)
        return Outcome(now, idle, self._wasted_s / self._present_s, self._losses, self._measured, given_up)

    def _lose(self, slot: Slot, now: float) -> None:
        self._losses += 1
        self._present_s += now - self._joined.pop(slot)
        if slot in self._started:
            spent_s = now - self._started.pop(slot)[0]
            self._busy_s += spent_s
            self._wasted_s += spent_s
        self._scheduler.lose_node(slot.node)
        self._schedule(now + AWAY_S, "join", slot)
        for idle in self._scheduler.idle if self._scheduler.waiting else ():
            self._assign(idle, now)

    def _assign(self, slot: Slot, now: float) -> None:
        if task := self._scheduler.assign(slot):
            self._started[slot] = now, self._number
            self._schedule(now + self._seconds[task.group.id], "end", slot)

    def _schedule(self, at: float, event: str, slot: Slot) -> None:
        heapq.heappush(self._events, (at, self._number, event, slot))
        self._number += 1


def main() -> None:
    """Print the table of docs/cluster.md."""
    print("| nodes | losses | makespan | idle | lost work | measured | given up | scheduling |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for nodes in NODES:
        alone = None
        for lossy in (False, True):
            every_s = alone.makespan_s / LOST if alone else 0.0
            started = time.perf_counter()
            outcome = Simulation(GROUPS, nodes, lost_every_s=every_s if lossy else 0.0).run()
            seconds = time.perf_counter() - started
            alone = alone or outcome
            print(
                f"| {nodes:,} | {outcome.losses:,} | {outcome.makespan_s / 60:,.0f} min | {100 * outcome.idle:.2f} % "
                f"| {100 * outcome.wasted:.2f} % | {outcome.measured:,} | {outcome.given_up} | {seconds:.1f} s |"
            )


if __name__ == "__main__":
    main()
