"""The longest sequence that a backend can do: bisection over probes, each in a process of its own with a memory limit.

A probe makes the inputs and calls once. What ends it is told: memory, time, or a refusal. The limit is the worker's
own, set before it allocates, so that the machine never runs out of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec.structs import replace

from attnbench import host
from attnbench.arm import Arm, parse_device
from attnbench.attention.problem import Mode, Problem
from attnbench.case import Case
from attnbench.plan import WORKER_BYTES, peak_bytes, refuse
from attnbench.plan import Terms as PlanTerms
from attnbench.pool import BuriedError, Worker
from attnbench.protocol import Measure, Prepare
from attnbench.result import Status
from attnbench.runner import Terms

FIRST, MOST = 1024, 2**26
STEP_SHARE, STEP_LEAST = 1 / 32, 64  # bisection ends there
# Blocks that a timed worker keeps for the next call count against a limit; here they go back to the system.
PLAIN_MALLOC = (
    ("MALLOC_MMAP_MAX_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
    ("MALLOC_TOP_PAD_", "131072"),
)
LEAST_BYTES = 2 * WORKER_BYTES  # below it not even a worker and its first inputs fit


class Longest(msgspec.Struct, kw_only=True):
    """What was found of one arm."""

    arm: Arm
    problem: Problem  # at the longest that fits; where none does, at the shortest tried
    seq: int = 0  # 0: not even the shortest
    peak_bytes: int | None = None  # measured there, over inputs and outputs
    predicted_bytes: int | None = None  # of all it needs there, by the plan
    stopped_at: int = 0
    status: Status = Status.OK
    reason: str = ""
    probes: int = 0

    @property
    def stopped_by(self) -> str:
        """`memory`, `time`, or how the probe beyond ended."""
        return {Status.OOM: "memory", Status.TIMEOUT: "time"}.get(self.status, self.status.value)


def objection(terms: Terms) -> str:
    """Why nothing can be probed with so little memory; empty if it can."""
    if terms.memory_bytes < LEAST_BYTES:
        return (
            f"needs {LEAST_BYTES >> 20} MiB for a worker alone, and --mem-limit leaves {terms.memory_bytes >> 20} MiB"
        )
    return ""


def search(
    base: Problem, mode: Mode, arms: Sequence[Arm], terms: Terms, plan: PlanTerms, say: Callable[[str], None]
) -> Iterator[Longest]:
    """The longest sequence of each arm, one after another; `base` gives all but the length."""
    for arm in arms:
        yield _search(base, mode, arm, terms, plan, say)


def _search(base: Problem, mode: Mode, arm: Arm, terms: Terms, plan: PlanTerms, say: Callable[[str], None]) -> Longest:
    found = Longest(arm=arm, problem=base)
    arm = replace(arm, env=(*arm.env, *PLAIN_MALLOC))

    def fits(seq: int) -> bool:
        problem = replace(base, seq_q=seq, seq_kv=seq)
        case = Case(problem=problem, backend=arm.backend, mode=mode)
        found.probes += 1
        say(f"{case.label}")
        # The plan's limit does not count here: a prediction is what a probe is there to check.
        refused = refuse(case, arm, replace(plan, memory_bytes=1 << 62, gpu_memory_bytes={}))
        status, reason, _ = (*refused, None) if refused else probe(case, arm, terms)
        if status is Status.OK:
            found.seq, found.problem, found.predicted_bytes = seq, problem, peak_bytes(case)
            return True
        found.stopped_at, found.status, found.reason = seq, status, reason
        return False

    seq = min(FIRST, terms.memory_bytes)
    while fits(seq) and seq < MOST:
        seq *= 2
    low, high = found.seq, found.stopped_at
    while high and low and high - low > max(STEP_LEAST, STEP_SHARE * low):
        middle = (low + high) // 2 // STEP_LEAST * STEP_LEAST
        if not low < middle < high:
            break
        if fits(middle):
            low = middle
        else:
            high = middle
    if found.seq:
        case = Case(problem=found.problem, backend=arm.backend, mode=mode)
        found.peak_bytes = probe(case, arm, terms, measured=True)[2]
    return found


def probe(case: Case, arm: Arm, terms: Terms, measured: bool = False) -> tuple[Status, str, int | None]:
    """Prepare and call once in a fresh worker: how it ended and why; if asked for, the peak of a second call."""
    device = parse_device(arm.device)
    procedure = msgspec.structs.replace(terms.procedures[device.kind], timeout_s=terms.timeout_s)
    worker = Worker(arm, host.cores_for(device), terms.memory_bytes)
    try:
        opened = worker.open(max(terms.timeout_s, 60.0))
        if opened.unavailable:
            return Status.UNAVAILABLE, opened.unavailable, None
        worker.ask(Prepare(case=case, procedure=procedure), terms.timeout_s)
        peak = int(worker.ask(Measure(), 2 * terms.timeout_s).peak) if measured else None
    except BuriedError as buried:
        return buried.status, buried.reason, None
    finally:
        worker.bury()
    return Status.OK, "", peak
