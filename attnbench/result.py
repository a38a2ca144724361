"""What happened: the records that a run stores, one Result a line.

Measured values are kept raw, in base units, in the order taken; everything that can be computed from them is a row of
`metrics.METRICS`. A value that is not finite is stored as null and counted.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import msgspec

from attnbench.arm import Arm
from attnbench.case import Case


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A stored record: values only, so that no cycle needs collecting; unknown keys refused."""


class Status(StrEnum):
    """How a case ended. Everything but `ok` has a reason."""

    OK = "ok"
    UNSUPPORTED = "unsupported"  # the backend cannot run this case
    UNAVAILABLE = "unavailable"  # the backend is not there, or not on this device
    INCORRECT = "incorrect"  # the output is wrong: never timed
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # the process died
    ERROR = "error"  # the backend raised
    SKIPPED = "skipped"  # not tried: impossible, too large, or beyond the budget

    @property
    def failed(self) -> bool:
        """Whether a run that holds it ends with exit code 5."""
        return self in (Status.INCORRECT, Status.TIMEOUT, Status.CRASHED, Status.ERROR)


class Timing(StrEnum):
    """What a reading of time measures; never one in place of another. See docs/method.md."""

    WALL = "wall"  # host clock, end to end
    EVENTS = "events"  # CUDA events round one call
    GRAPH = "graph"  # unrolled calls in one CUDA graph
    CUPTI = "cupti"  # sum of kernel times


class Cache(StrEnum):
    """What the caches hold when a call starts."""

    WARM = "warm"
    COLD = "cold"


class Procedure(Record, frozen=True, kw_only=True):
    """How it was measured. `timing`, `cache`, `power` and `inputs` are part of the comparison key."""

    timing: Timing = Timing.WALL
    cache: Cache = Cache.WARM
    power: str = "burst"
    inputs: str = "normal"
    seed: int = 0
    launches: int = 1
    rounds_least: int = 5
    rounds_most: int = 30
    block_s: float = 0.010  # a block lasts at least this long, or one call
    rel_ci: float = 0.02  # stop when the 95 % half-width is this share of the time
    timeout_s: float = 60.0  # for each phase
    allocator: str = ""
    wait_policy: str = "passive"


class Block(Record, frozen=True, kw_only=True):
    """One uninterrupted stretch of readings by one arm; the values of a Sample in their order."""

    round: int
    position: int  # in the order of this round's arms
    readings: int  # how many values of the Sample it holds
    calls: int = 1  # calls in each reading; a value is the time of one call
    tags: tuple[str, ...] = ()  # throttled, stolen, faulted ...
    facts: dict[str, float] = {}  # clocks, faults, switches round the block, in base units


class Sample(Record, frozen=True, kw_only=True):
    """Readings of one quantity, raw, in the order taken."""

    unit: str
    values: tuple[float | None, ...]
    blocks: tuple[Block, ...] = ()
    not_finite: int = 0


class Environment(Record, frozen=True, kw_only=True):
    """Where an arm ran: what it imported and on what. Facts are plain values."""

    device: str = ""  # the name of the CPU or GPU
    facts: dict[str, Any] = {}
    packages: dict[str, str] = {}


class Result(Record, frozen=True, kw_only=True):
    """One line of results.jsonl. Of several lines with one key the last counts."""

    case: Case
    arm: Arm
    status: Status
    launch: int = 0
    reason: str = ""
    group: str = ""  # results of one group were taken in the same rounds
    procedure: Procedure = Procedure()
    started_at: str = ""  # UTC, ISO 8601
    samples: dict[str, Sample] = {}
    facts: dict[str, Any] = {}
    case_id: str = ""  # of `case`, for readers that do not compute it

    @property
    def key(self) -> tuple[str, str, int]:
        """What a later line replaces."""
        return self.case.id, self.arm.id, self.launch


class Outcome(StrEnum):
    """What a gate says of one case."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"
    NEW = "new"
    MISSING = "missing"
    BROKEN = "broken"


class Verdict(Record, frozen=True, kw_only=True):
    """The outcome of one metric of one case on one device."""

    case_id: str
    label: str
    device: str
    backend: str
    metric: str
    outcome: Outcome
    base: float | None = None  # in the metric's unit
    head: float | None = None
    change: float | None = None  # relative, 0.05 is 5 % more
    interval: tuple[float, float] | None = None  # 95 %, of the change
    margin: float | None = None  # relative: what a change must exceed
    launches: int = 0  # of relaunched workers behind it
    p: float | None = None  # of the test that decided, corrected for the number of cases
    reason: str = ""


def sample(unit: str, values: list[float], blocks: tuple[Block, ...] = ()) -> Sample:
    """A Sample of these readings; what is not finite is stored as null and counted."""
    kept = tuple(value if math.isfinite(value) else None for value in values)
    return Sample(unit=unit, values=kept, blocks=blocks, not_finite=kept.count(None))
