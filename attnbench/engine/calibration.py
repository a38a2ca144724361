"""Measures the peak rates of a device, in a worker with the environment of its arms: threads, pinning, allocator."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.machine import hardware, resources
from attnbench.records import ceilings
from attnbench.records.arm import Arm, Device
from attnbench.records.ceilings import Ceilings
from attnbench.worker.protocol import CalibrateDevice, DeviceCalibrated

# What is measured, and the fields of the ceilings that come of it.
PARTS = {
    "matmul": ("matmul", "refused"),
    "bandwidth": ("bandwidth",),
    "exp": ("exp_per_s", "exp_derived"),
    "launch": ("launch_s",),
}
PHASE_S = 300.0
RETRIES = 3  # of a part that other processes disturb
PAUSE_S = 10.0  # before each of them

Say = Callable[[str], None]


def measure(device: Device, parts: Sequence[str], deadline: float, say: Say = lambda text: None) -> Ceilings | str:
    """The peak rates of one device, or why they cannot be measured.

    What other processes disturb is measured again until `deadline`, a time of the monotonic clock.
    """
    started = time.monotonic()
    worker = Worker(Arm(backend="", device=device.text), resources.cores_for(device), 0)
    try:
        opened = worker.open(PHASE_S)
        replies = measure_parts(lambda part: worker.ask(CalibrateDevice(parts=(part,)), PHASE_S), parts, deadline, say)
    except WorkerFailedError as failure:
        return failure.reason
    finally:
        worker.terminate()
    facts = opened.environment.facts
    if device.kind == "cpu":
        facts = facts | {"caches": hardware.cache_bytes(), "clock_hz": hardware.cpu_clock_hz()}
    return Ceilings(
        version=ceilings.VERSION,
        device=device.text,
        name=opened.environment.device,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        torch=opened.environment.packages.get("torch", ""),
        facts=facts,
        timer_s=facts.get("timer_resolution_s"),
        foreign_load={part: reply.foreign_load for part, reply in replies.items() if reply.foreign_load},
        **{field: getattr(reply, field) for part, reply in replies.items() for field in PARTS[part]},
    )


def measure_parts(
    ask: Callable[[str], DeviceCalibrated], parts: Sequence[str], deadline: float, say: Say, pause_s: float = PAUSE_S
) -> dict[str, DeviceCalibrated]:
    """Measure each part; a disturbed one again after a pause, at most RETRIES times. The least disturbed counts."""
    replies = {part: ask(part) for part in parts}
    for _ in range(RETRIES):
        disturbed = [part for part, reply in replies.items() if _excess(reply) > 1]
        if not disturbed or time.monotonic() + pause_s > deadline:
            break
        loads = ", ".join(f"{part}: {load.text}" for part in disturbed if (load := replies[part].foreign_load))
        say(f"other processes are running ({loads}): measuring again in {pause_s:.0f} s")
        time.sleep(pause_s)
        replies |= {part: min(replies[part], ask(part), key=_excess) for part in disturbed}
    return replies


def _excess(reply: DeviceCalibrated) -> float:
    return reply.foreign_load.excess if reply.foreign_load else 0.0


def save(fingerprint: str, result: Ceilings, force: bool) -> str:
    """Store the ceilings, unless they are disturbed and the stored ones are not; return what was done."""
    if path := ceilings.save(fingerprint, result, force):
        return f"saved: {path}"
    return f"not saved: {result.device}: {result.disturbance}; those stored were not disturbed (--force replaces them)"
