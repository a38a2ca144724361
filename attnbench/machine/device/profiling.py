"""Profile of one prepared call, outside the timed rounds: operators or kernels, gaps, memory over time, counters.

Profiling slows the call; the times of a case come only from its rounds.
"""

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict

import torch
from torch.profiler import ProfilerActivity, profile

from attnbench.machine.device.cpu import allocations
from attnbench.machine.device.instrument import Call, Instrument

MAX_STEPS = 3
MAX_ROWS = 30
COUNTED_S = 1.0
EVENTS = (
    "cycles", "instructions", "cache-references", "cache-misses", "branches", "branch-misses", "task-clock",
    "context-switches", "cpu-migrations", "page-faults",
)  # fmt: skip
RANGE = "attnbench"  # the NVTX range around each call

Figures = dict[str, object]


class OperatorTime(TypedDict):
    """Calls and total time of one operator or kernel."""

    name: str
    calls: int
    self_s: float


def profile_call(instrument: Instrument, call: Call, folder: Path) -> Figures:
    """All figures of this module; files go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = instrument.torch_device.startswith("cuda")
    figures = _gpu(instrument, call, folder) if on_gpu else _cpu(instrument, call, folder)
    figures["busy"] = _busy(instrument, call)
    figures["counters"] = {"absent": "only counted on a CPU"} if on_gpu else counters(call)
    return figures


def call_in_ranges(instrument: Instrument, call: Call) -> None:
    """Only call, in NVTX ranges, for an external profiler."""
    for _ in range(MAX_STEPS):
        with _marked(instrument.torch_device):
            call()
        instrument.synchronize()


def _marked(torch_device: str) -> AbstractContextManager[None]:
    return torch.cuda.nvtx.range(RANGE) if torch_device.startswith("cuda") else contextlib.nullcontext()


def _traced(instrument: Instrument, call: Call, activities: Sequence[ProfilerActivity], folder: Path) -> profile:
    """The profiler after a few calls. Its trace is a file in `folder`, for ui.perfetto.dev."""
    profiler = profile(activities=list(activities), profile_memory=True, record_shapes=True)
    with profiler:
        call_in_ranges(instrument, call)
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    return profiler


def _cpu(instrument: Instrument, call: Call, folder: Path) -> Figures:
    profiler = _traced(instrument, call, [ProfilerActivity.CPU], folder)
    table = [
        OperatorTime(name=operator.key, calls=operator.count, self_s=operator.self_cpu_time_total / 1e6)
        for operator in profiler.key_averages()
        if operator.key != "[memory]"
    ]
    return {
        "steps": MAX_STEPS,
        "operators": _top(table),
        "threads": torch.get_num_threads(),
        "memory": _timeline(call, folder),
        "files": ["trace.json.gz", "memory.csv"],
    }


def _gpu(instrument: Instrument, call: Call, folder: Path) -> Figures:
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    profiler = _traced(instrument, call, activities, folder)
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type.name == "CUDA" and event.name != RANGE
    )
    table: dict[str, OperatorTime] = {}
    for start, end, name in spans:
        row = table.setdefault(name, OperatorTime(name=name, calls=0, self_s=0.0))
        row["calls"] += 1
        row["self_s"] += (end - start) / 1e6
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    call()
    instrument.synchronize()
    torch.cuda.memory._dump_snapshot(str(folder / "memory_snapshot.pickle"))
    torch.cuda.memory._record_memory_history(enabled=None)
    return {
        "steps": MAX_STEPS,
        "kernels": _top(list(table.values())),
        "gaps_s": gaps([(start, end) for start, end, _ in spans]) / 1e6 / MAX_STEPS,
        "kernels_per_call": len(spans) / MAX_STEPS,
        "device_s": sum(row["self_s"] for row in table.values()) / MAX_STEPS,
        "files": ["trace.json.gz", "memory_snapshot.pickle"],
    }


def gaps(spans: Sequence[tuple[float, float]]) -> float:
    """Idle time between the first start and the last end; spans may overlap."""
    idle, reached = 0.0, min(spans)[0] if spans else 0.0
    for start, end in sorted(spans):
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle


def _top(table: list[OperatorTime]) -> list[Figures]:
    """The rows with the longest times, each with its share of the total."""
    total = sum(row["self_s"] for row in table) or 1.0
    rows = sorted(table, key=lambda row: -row["self_s"])[:MAX_ROWS]
    return [{**row, "share": row["self_s"] / total} for row in rows]


def _timeline(call: Call, folder: Path) -> Figures:
    """The peak of the allocated memory during one call; the memory after each change is a CSV file."""
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profiler:
        output = call()
    changes = allocations(profiler)
    del output
    allocated, points = 0, []
    for at_ns, size in changes:
        allocated += size
        points.append(((at_ns - changes[0][0]) / 1e9, allocated))
    with (folder / "memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("time_s", "allocated_bytes"))
        writer.writerows(points)
    at_s, peak = max(points, key=lambda point: point[1], default=(0.0, 0))
    return {"peak_bytes": peak, "at_s": at_s, "changes": len(points)}


def _busy(instrument: Instrument, call: Call, seconds: float = 0.5) -> dict[str, float]:
    """Cores that this process keeps busy during uninterrupted calls, and its number of threads."""
    before, started = time.process_time(), time.monotonic()
    while time.monotonic() - started < seconds:
        call()
        instrument.synchronize()
    cores = (time.process_time() - before) / (time.monotonic() - started)
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    return {"cores": cores, "threads": float(threads)}


def counters(call: Call) -> Figures:
    """Hardware counters of one call by `perf stat`, and the events that cannot be counted; or why there are none."""
    if not shutil.which("perf"):
        return {"absent": "perf is not installed (Debian: linux-perf)"}
    command = ["perf", "stat", "-x", ";", "-e", ",".join(EVENTS), "-p", str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.2)  # until it has attached
        calls, until = 0, time.monotonic() + COUNTED_S
        while time.monotonic() < until or not calls:
            call()
            calls += 1
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=10)
    except (subprocess.TimeoutExpired, OSError) as error:
        process.kill()
        return {"absent": f"perf: {error}"}
    counts = parse(output)
    if not counts:
        first = next((line.strip() for line in output.splitlines() if line.strip()), "no output")
        return {"absent": f"perf: {first[:200]}"}
    return {"calls": calls, "per_call": {name: value / calls for name, value in counts.items()}, **_not_counted(output)}


def parse(text: str) -> dict[str, float]:
    """Counts by event, from the output of `perf stat -x ;`: value; unit; event; ..."""
    counts = {}
    for line in text.splitlines():
        value, _, rest = line.partition(";")
        unit, _, rest = rest.partition(";")
        name = rest.partition(";")[0].partition(":")[0]
        with contextlib.suppress(ValueError):
            # task-clock is in milliseconds.
            counts[name] = float(value) / (1e3 if unit == "msec" else 1)
    return {name: value for name, value in counts.items() if name in EVENTS}


def _not_counted(text: str) -> dict[str, list[str]]:
    names = [line.split(";")[2].partition(":")[0] for line in text.splitlines() if line.startswith("<not")]
    return {"not_counted": names} if names else {}
