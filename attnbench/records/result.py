"""The records that a run stores, one Result a line.

Measured values are stored raw, in base units, in the order taken; everything that can be computed from them is a row of
`metrics.METRICS`. A value that is not finite is stored as null and counted.
"""

import math
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.facts import Facts as Facts

Key = tuple[str, str, int]  # case id, arm id, restart


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Base of stored records. Decoding refuses unknown keys; garbage collection is off, as no record holds a cycle."""


class Status(StrEnum):
    """How a case ended. Every status except `ok` has a reason."""

    OK = "ok"
    UNSUPPORTED = "unsupported"  # the backend cannot run this case
    UNAVAILABLE = "unavailable"  # the backend is not installed, or does not run on this device
    INCORRECT = "incorrect"  # the output is wrong; its times are not stored
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # the process died
    ERROR = "error"  # the backend raised an exception
    SKIPPED = "skipped"  # not tried: too large, or beyond the budget

    @property
    def failed(self) -> bool:
        """Whether a run with such a case ends with exit code 5."""
        return self in (Status.INCORRECT, Status.TIMEOUT, Status.CRASHED, Status.ERROR)


class Cause(StrEnum):
    """Why a case was not measured, for code to branch on; `reason` is for people."""

    BUDGET = "budget"  # the time budget was spent: a resume measures the case
    NO_LARGER = "no_larger"  # a case with no more work timed out or ran out of memory
    MEMORY = "memory"  # predicted to need more than the limit
    NO_REFERENCE = "no_reference"  # the expected values could not be computed
    NODE_LOST = "node_lost"  # a node of a cluster was lost in every try: crashed, not skipped


class Timing(StrEnum):
    """What a reading of time measures. Readings of two modes are never compared. See docs/method.md."""

    WALL = "wall"  # host clock, end to end
    EVENTS = "events"  # CUDA events around one call
    GRAPH = "graph"  # unrolled calls in one CUDA graph
    CUPTI = "cupti"  # sum of kernel times


class Cache(StrEnum):
    """The state of the caches when a call starts."""

    WARM = "warm"
    COLD = "cold"


# Results compare only where these fields of their procedures agree. The allocator belongs to the machine.
COMPARISON_KEY = ("timing", "cache", "power", "inputs", "wait_policy", "allocator")


NEW_INPUTS_RIGHT = "right"  # the fact `new_inputs` of a case above a ceiling that passed its check on new inputs


class Procedure(Record, frozen=True, kw_only=True):
    """How it was measured."""

    timing: Timing = Timing.WALL
    cache: Cache = Cache.WARM
    power: str = "burst"
    inputs: str = "normal"
    seed: int = 0
    restarts: int = msgspec.field(default=1, name="launches")  # stored under its first name
    min_rounds: int = msgspec.field(default=5, name="rounds_least")
    max_rounds: int = msgspec.field(default=30, name="rounds_most")
    block_s: float = 0.010  # a block lasts at least this long, or one call
    rel_ci: float = 0.02  # rounds stop when the 95 % half-width is this share of the time
    timeout_s: float = 60.0  # for each phase
    allocator: str = ""
    wait_policy: str = "passive"


def procedure_differences(
    before: Mapping[str, Procedure], now: Mapping[str, Procedure], across_machines: bool = False
) -> list[str]:
    """What forbids a comparison, such as `cpu timing: wall then, events now`, for each kind of device in both.

    The procedures are by kind of device. `across_machines`: allocators may differ.
    """
    names = [name for name in COMPARISON_KEY if not (across_machines and name == "allocator")]
    return [
        f"{kind} {name}: {then} then, {value} now"
        for kind, procedure in now.items()
        for name in names
        if kind in before and (then := getattr(before[kind], name)) != (value := getattr(procedure, name))
    ]


class TimedBlock(Record, frozen=True, kw_only=True):
    """Consecutive readings of one arm, which are the next values of a Sample."""

    round: int
    position: int  # in the order of this round's arms
    readings: int  # number of values in the Sample
    calls: int = 1  # calls in each reading; a value is the time of one call
    tags: tuple[str, ...] = ()  # throttled, stolen, faulted ...
    facts: dict[str, float] = {}  # clocks, page faults and context switches of the block, in base units


class Sample(Record, frozen=True, kw_only=True):
    """Raw readings of one quantity, in the order taken."""

    unit: str
    values: tuple[float | None, ...]
    blocks: tuple[TimedBlock, ...] = ()
    not_finite: int = 0


class Environment(Record, frozen=True, kw_only=True):
    """The device and the imported packages of an arm."""

    device: str = ""  # the name of the CPU or GPU
    facts: Facts = {}
    packages: dict[str, str] = {}


class Result(Record, frozen=True, kw_only=True):
    """One line of results.jsonl. Of several lines with one key the last counts."""

    case: Case
    arm: Arm
    status: Status
    restart: int = msgspec.field(default=0, name="launch")  # stored under its first name
    reason: str = ""
    cause: Cause | None = None  # of a case that was not measured
    group: str = ""  # results of one group were taken in the same rounds
    procedure: Procedure = Procedure()
    started_at: str = ""  # UTC, ISO 8601
    samples: dict[str, Sample] = {}
    facts: Facts = {}
    case_id: str = ""  # of `case`, for readers that do not compute it

    @property
    def key(self) -> Key:
        """Case, arm and restart: a later line with the same key replaces an earlier one."""
        return self.case.id, self.arm.id, self.restart


class Outcome(StrEnum):
    """What a gate decides about one case."""

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
    head_status: Status | None = None  # of a broken case: how head ended
    base: float | None = None  # in the metric's unit; of the metric `status` the time of base in seconds
    head: float | None = None
    change: float | None = None  # relative, 0.05 is 5 % more
    interval: tuple[float, float] | None = None  # 95 %, of the change
    margin: float | None = None  # relative: what a change must exceed
    restarts: int = msgspec.field(default=0, name="launches")  # that were compared
    p: float | None = None  # of the deciding test, corrected for the number of cases
    reason: str = ""


def sample(unit: str, values: list[float], blocks: tuple[TimedBlock, ...] = ()) -> Sample:
    """A Sample of these readings, with null in place of values that are not finite."""
    finite = tuple(value if math.isfinite(value) else None for value in values)
    return Sample(unit=unit, values=finite, blocks=blocks, not_finite=finite.count(None))
