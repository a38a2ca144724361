"""The longest sequence that a backend can run: bisection over probes, each in a separate process with a memory limit.

A probe makes the inputs and calls once. Its end is recorded: memory, time, or a refusal. The worker sets its limit
before it allocates, so that the machine never runs out of memory.
"""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.candidates import WORKER_BYTES, Candidate, PlanLimits
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.machine import resources
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Status
from attnbench.worker.protocol import MeasureMemory, PrepareCase

FIRST, MAX = 1024, 2**26  # lengths
STEP_SHARE, MIN_STEP = 1 / 32, 64  # bisection ends there
# A timed worker keeps freed blocks for the next call, and they would count against the limit.
PLAIN_MALLOC = (("MALLOC_MMAP_MAX_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_TOP_PAD_", "131072"))
MIN_BYTES = 2 * WORKER_BYTES  # of a worker and its first inputs


class Longest(msgspec.Struct, kw_only=True):
    """The result of the search for one arm."""

    arm: Arm
    problem: Problem  # at the longest length that fits; if none fits, at the shortest that was tried
    seq: int = 0  # 0: the shortest does not fit
    peak_bytes: int | None = None  # measured there, over inputs and outputs
    predicted_bytes: int | None = None  # predicted peak there, all included
    stopped_at: int = 0
    status: Status = Status.OK
    reason: str = ""
    probes: int = 0

    @property
    def stopped_by(self) -> str:
        """`memory`, `time`, or the status of the first probe that failed."""
        return {Status.OOM: "memory", Status.TIMEOUT: "time"}.get(self.status, self.status.value)


def objection(settings: RunSettings) -> str:
    """Why this memory limit is too low for a probe; empty if it suffices."""
    if settings.memory_bytes >= MIN_BYTES:
        return ""
    return f"needs {MIN_BYTES >> 20} MiB for a worker alone, and --mem-limit leaves {settings.memory_bytes >> 20} MiB"


def search(
    base: Problem, mode: Mode, arm: Arm, settings: RunSettings, limits: PlanLimits, say: Callable[[str], None]
) -> Longest:
    """The longest sequence of an arm; `base` is the problem, its length aside. `say` receives each label."""
    longest = Longest(arm=arm, problem=base)
    arm = replace(arm, env=(*arm.env, *PLAIN_MALLOC))
    # Without the memory limit of the plan: the probe checks the prediction.
    candidate = Candidate(arm, replace(limits, memory_bytes=1 << 62, gpu_memory_bytes={}))

    def fits(seq: int) -> bool:
        problem = replace(base, seq_q=seq, seq_kv=seq)
        case = Case(problem=problem, backend=arm.backend, mode=mode)
        longest.probes += 1
        say(case.label)
        refused, predicted_bytes = candidate.check(case)
        status, reason, *_ = refused or probe(case, arm, settings)
        if status is Status.OK:
            longest.seq, longest.problem, longest.predicted_bytes = seq, problem, predicted_bytes
            return True
        longest.stopped_at, longest.status, longest.reason = seq, status, reason
        return False

    seq = FIRST
    while fits(seq) and seq < MAX:
        seq *= 2
    low, high = longest.seq, longest.stopped_at
    while high and low and high - low > max(MIN_STEP, STEP_SHARE * low):
        middle = (low + high) // 2 // MIN_STEP * MIN_STEP
        if not low < middle < high:
            break
        if fits(middle):
            low = middle
        else:
            high = middle
    if longest.seq:
        case = Case(problem=longest.problem, backend=arm.backend, mode=mode)
        longest.peak_bytes = probe(case, arm, settings, measured=True)[2]
    return longest


def probe(case: Case, arm: Arm, settings: RunSettings, measured: bool = False) -> tuple[Status, str, int | None]:
    """Prepare and call once in a fresh worker: status, reason; with `measured` the peak of a second call in bytes."""
    device = arm.parsed_device
    procedure = replace(settings.procedures[device.kind], timeout_s=settings.timeout_s)
    worker = Worker(arm, resources.cores_for(device), settings.memory_bytes)
    try:
        worker.open(max(settings.timeout_s, 60.0))
        worker.ask(PrepareCase(case=case, procedure=procedure), settings.timeout_s)
        peak = int(worker.ask(MeasureMemory(), 2 * settings.timeout_s).peak) if measured else None
    except WorkerFailedError as failure:
        return failure.status, failure.reason, None
    finally:
        worker.terminate()
    return Status.OK, "", peak
