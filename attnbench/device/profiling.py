"""A deep look at one prepared call, outside any timed round: operators or kernels, gaps, memory over time, counters.

What is measured here is slowed by being looked at; the times of a case come from its rounds alone.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from attnbench.device import Call, Instrument
from attnbench.device.cpu import allocations

STEPS_MOST = 3
ROWS_MOST = 30
COUNTED_S = 1.0
EVENTS = (
    "cycles", "instructions", "cache-references", "cache-misses", "branches", "branch-misses", "task-clock",
    "context-switches", "cpu-migrations", "page-faults",
)  # fmt: skip
RANGE = "attnbench"  # the NVTX range round each call


def look(instrument: Instrument, call: Call, folder: Path) -> dict[str, Any]:
    """Everything below; files go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = instrument.torch_device.startswith("cuda")
    found = _gpu(instrument, call, folder) if on_gpu else _cpu(call, folder)
    found["busy"] = _busy(instrument, call)
    found["counters"] = {"absent": "counted on a CPU alone"} if on_gpu else counters(call)
    return found


def bare(instrument: Instrument, call: Call, steps: int = STEPS_MOST) -> None:
    """Calls in NVTX ranges and nothing else, for a profiler that looks from outside."""
    for _ in range(steps):
        with _marked(instrument.torch_device):
            call()
        instrument.synchronize()


@contextlib.contextmanager
def _marked(torch_device: str) -> Iterator[None]:
    if not torch_device.startswith("cuda"):
        yield
        return
    torch.cuda.nvtx.range_push(RANGE)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


def _traced(instrument_device: str, call: Call, activities: Sequence[ProfilerActivity], folder: Path) -> Any:
    """The profiler after a few calls; its trace lies beside, for ui.perfetto.dev."""
    with profile(activities=list(activities), profile_memory=True, record_shapes=True) as profiler:
        for _ in range(STEPS_MOST):
            with _marked(instrument_device):
                call()
            if instrument_device.startswith("cuda"):
                torch.cuda.synchronize()
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    return profiler


def _cpu(call: Call, folder: Path) -> dict[str, Any]:
    profiler = _traced("cpu", call, [ProfilerActivity.CPU], folder)
    table = [
        {"name": one.key, "calls": one.count, "self_s": one.self_cpu_time_total / 1e6}
        for one in profiler.key_averages()
        if one.key != "[memory]"
    ]
    return {
        "steps": STEPS_MOST,
        "operators": _top(table),
        "threads": torch.get_num_threads(),
        "memory": _timeline(call, folder),
        "files": ["trace.json.gz", "memory.csv"],
    }


def _gpu(instrument: Instrument, call: Call, folder: Path) -> dict[str, Any]:
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    profiler = _traced(instrument.torch_device, call, activities, folder)
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type.name == "CUDA" and event.name != RANGE
    )
    table: dict[str, dict[str, Any]] = {}
    for start, end, name in spans:
        row = table.setdefault(name, {"name": name, "calls": 0, "self_s": 0.0})
        row["calls"] += 1
        row["self_s"] += (end - start) / 1e6
    torch.cuda.memory._record_memory_history(max_entries=100_000)
    call()
    instrument.synchronize()
    torch.cuda.memory._dump_snapshot(str(folder / "memory_snapshot.pickle"))
    torch.cuda.memory._record_memory_history(enabled=None)
    return {
        "steps": STEPS_MOST,
        "kernels": _top(list(table.values())),
        "gaps_s": gaps([(start, end) for start, end, _ in spans]) / 1e6 / STEPS_MOST,
        "kernels_per_call": len(spans) / STEPS_MOST,
        "device_s": sum(row["self_s"] for row in table.values()) / STEPS_MOST,
        "files": ["trace.json.gz", "memory_snapshot.pickle"],
    }


def gaps(spans: Sequence[tuple[float, float]]) -> float:
    """Time between the first start and the last end in which nothing ran; spans may overlap."""
    idle, reached = 0.0, min(spans)[0] if spans else 0.0
    for start, end in sorted(spans):
        idle += max(0.0, start - reached)
        reached = max(reached, end)
    return idle


def _top(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    total = sum(row["self_s"] for row in table) or 1.0
    rows = sorted(table, key=lambda row: -row["self_s"])[:ROWS_MOST]
    return [{**row, "share": row["self_s"] / total} for row in rows]


def _timeline(call: Call, folder: Path) -> dict[str, Any]:
    """What the allocator holds during one call, after each change; the whole of it as a CSV file."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    changes = allocations(profiler)
    del kept
    held, points = 0, []
    for at_ns, size in changes:
        held += size
        points.append(((at_ns - changes[0][0]) / 1e9, held))
    with (folder / "memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("time_s", "allocated_bytes"))
        writer.writerows(points)
    at, most = max(points, key=lambda point: point[1], default=(0.0, 0))
    return {"peak_bytes": most, "at_s": at, "changes": len(points)}


def _busy(instrument: Instrument, call: Call, seconds: float = 0.5) -> dict[str, float]:
    """Cores that this process keeps busy while it calls on end, and how many threads it has."""
    before, started = time.process_time(), time.monotonic()
    while time.monotonic() - started < seconds:
        call()
        instrument.synchronize()
    cores = (time.process_time() - before) / (time.monotonic() - started)
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    return {"cores": cores, "threads": float(threads)}


def counters(call: Call) -> dict[str, Any]:
    """Hardware counters of one call by `perf stat`; what cannot be counted is named, and ends nothing."""
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
        _, said = process.communicate(timeout=10)
    except (subprocess.TimeoutExpired, OSError) as error:
        process.kill()
        return {"absent": f"perf: {error}"}
    found = parse(said)
    if not found:
        first = next((line.strip() for line in said.splitlines() if line.strip()), "it said nothing")
        return {"absent": f"perf: {first[:200]}"}
    return {"calls": calls, "per_call": {name: value / calls for name, value in found.items()}, **_not_counted(said)}


def parse(text: str) -> dict[str, float]:
    """Events and their counts, of `perf stat -x ;`: value; unit; event; ..."""
    found = {}
    for line in text.splitlines():
        value, _, rest = line.partition(";")
        unit, _, rest = rest.partition(";")
        name = rest.partition(";")[0].partition(":")[0]
        with contextlib.suppress(ValueError):
            # task-clock comes in milliseconds.
            found[name] = float(value) / (1e3 if unit == "msec" else 1)
    return {name: value for name, value in found.items() if name in EVENTS}


def _not_counted(text: str) -> dict[str, list[str]]:
    names = [line.split(";")[2].partition(":")[0] for line in text.splitlines() if line.startswith("<not")]
    return {"not_counted": names} if names else {}
