"""Simulate the servers that answer a trace: what each step computes, and how long that takes by prediction."""

import itertools
from array import array
from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.suite.serving.scheduler import Batch, Scheduler, SchedulerOptions, Totals
from attnbench.suite.serving.step_cost import AttentionTime, StepCost
from attnbench.suite.serving.step_requests import StepRequest, requests_of
from attnbench.suite.serving.trace import TracedRequest


class StepKind(StrEnum):
    """What the requests of a step do."""

    DECODE = "decode"  # one query token each
    PREFILL = "prefill"  # more than one query token each
    MIXED = "mixed"


KINDS = tuple(StepKind)


class StepTable(msgspec.Struct, frozen=True, kw_only=True):
    """Every step in order, as arrays; the steps of one replica follow those of the one before."""

    kinds: NDArray[np.uint8]  # places in KINDS
    requests: NDArray[np.int32]
    q_tokens: NDArray[np.int32]
    kv_tokens: NDArray[np.int64]  # keys of all requests
    max_q: NDArray[np.int32]
    attention_s: NDArray[np.float64]  # predicted, of all layers, on the simulated server
    measured_s: NDArray[np.float64]  # the same on the device that measures


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of all replicas, and what they add up to."""

    steps: StepTable
    totals: Totals
    busy_s: float  # predicted, over all replicas
    ended_s: float  # when the last replica had its last token, from the first arrival on


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """Equal servers that take the requests of a trace in turn."""

    trace: Iterable[TracedRequest]  # can be iterated repeatedly
    options: SchedulerOptions
    cost: StepCost
    replicas: int = 1
    place: str = ""  # of the trace, for messages


class _Clock:
    """The predicted time of one replica."""

    def __init__(self) -> None:
        self.now_s = self.busy_s = 0.0

    def batches(self, scheduler: Scheduler, cost: StepCost) -> Iterator[tuple[Batch, AttentionTime]]:
        """Each step with its attention; when nothing runs, the clock moves to the next arrival."""
        while True:
            batch = scheduler.step(self.now_s)
            if batch is not None:
                attention = cost.attention(batch)
                step_s = attention.simulated + cost.rest_s(int(batch.q.sum()))
                self.busy_s += step_s
                self.now_s += step_s
                yield batch, attention
            elif scheduler.next_arrival_s is None:
                return
            else:
                self.now_s = scheduler.next_arrival_s


def simulate(serving: Serving) -> Simulation:
    """Every step of every replica. Raises UsageError for a line of the trace that is no request."""
    columns: dict[str, array[float]] = {
        name: array(code) for name, code in zip(StepTable.__struct_fields__, "Biiqidd", strict=True)
    }
    totals, busy_s, ended_s = Totals(), 0.0, 0.0
    for scheduler in _schedulers(serving):
        clock = _Clock()
        for batch, attention in clock.batches(scheduler, serving.cost):
            for column, value in zip(columns.values(), _summary(batch, attention), strict=True):
                column.append(value)
        for name in Totals.__struct_fields__:
            setattr(totals, name, getattr(totals, name) + getattr(scheduler.totals, name))
        busy_s, ended_s = busy_s + clock.busy_s, max(ended_s, clock.now_s)
    arrays = {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}
    return Simulation(steps=StepTable(**arrays), totals=totals, busy_s=busy_s, ended_s=ended_s)


def _summary(batch: Batch, attention: AttentionTime) -> tuple[float, ...]:
    """One row of a StepTable."""
    longest = int(batch.q.max())
    kind = StepKind.DECODE if longest == 1 else StepKind.MIXED if batch.q.min() == 1 else StepKind.PREFILL
    return KINDS.index(kind), batch.q.size, int(batch.q.sum()), int(batch.kv.sum()), longest, *attention


def requests_in(serving: Serving, steps: Collection[int]) -> dict[int, tuple[StepRequest, ...]]:
    """The requests of these steps, numbered as `simulate` does; it simulates up to the last of them."""
    requests: dict[int, tuple[StepRequest, ...]] = {}
    wanted, last = set(steps), max(steps, default=-1)
    every = (
        (scheduler, batch)
        for scheduler in _schedulers(serving)
        for batch, _ in _Clock().batches(scheduler, serving.cost)
    )
    for number, (scheduler, batch) in enumerate(itertools.islice(every, last + 1)):
        if number in wanted:
            requests[number] = requests_of(batch, scheduler.blocks, serving.options.block_size)
    return requests


def _schedulers(serving: Serving) -> Iterator[Scheduler]:
    """One for each replica that gets a request."""
    for replica in range(serving.replicas):
        share = itertools.islice(serving.trace, replica, None, serving.replicas)
        scheduler = Scheduler(serving.options, share, serving.place)
        if scheduler.next_arrival_s is None:
            return
        yield scheduler
