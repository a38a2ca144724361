"""A deep look at one case, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from attnbench import units
from attnbench.metrics import METRICS
from attnbench.report.table import wrap
from attnbench.result import Result

WIDTH = 80
NAME_MOST = 46
ROWS = 12
# What a case tells of what ran, beside its figures.
FACTS = ("resolved", "dispatch", "compiled", "path", "layout", "block_q", "block_kv", "warps", "stages", "splits")


def text(result: Result, folder: str, commands: Sequence[str]) -> Iterator[str]:
    """Lines: times, what ran, where the time and the memory go, counters, and the files for other tools."""
    found = result.facts["profile"]
    yield f"{result.case.label} on {result.arm.device}"
    for name, said in _times(result, found):
        yield f"{name:<18}{said}"
    facts = {name: result.facts[name] for name in FACTS if name in result.facts}
    if facts:
        yield from wrap(
            f"{'what ran':<18}" + ", ".join(f"{name} {value}" for name, value in facts.items()), WIDTH, indent=18
        )
    yield ""
    yield from _table(found)
    yield ""
    if memory := found.get("memory"):
        peak, at = units.size(memory["peak_bytes"]), units.seconds(memory["at_s"])
        yield f"memory: at most {peak}, outputs too, {at} after the first of {memory['changes']} changes"
    yield from _counters(found["counters"])
    for name in found["files"]:
        hint = {"trace.json.gz": " (ui.perfetto.dev)", "memory_snapshot.pickle": " (pytorch.org/memory_viz)"}
        yield f"file: {folder}/{name}{hint.get(name, '')}"
    for command in commands:
        yield from wrap(f"from outside: {command}", WIDTH, indent=4)


def _times(result: Result, found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    time_s = METRICS["time_s"].compute(result)
    yield "time of a call", f"{units.seconds(time_s)}, not profiled"
    for name, key in (
        ("first call", "first_call_s"),
        ("compiling", "compile_s"),
        ("building the mask", "mask_build_s"),
    ):
        if (value := METRICS[key].compute(result)) is not None:
            yield name, units.seconds(value)
    if (device_s := found.get("device_s")) is not None and time_s:
        yield "on the device", f"{units.seconds(device_s)} in {found['kernels_per_call']:g} kernels a call"
        yield "gaps between them", units.seconds(found["gaps_s"])
        if (wall := METRICS["time_wall_s"].compute(result)) is not None:
            yield "launch overhead", f"{units.seconds(wall - device_s)} of {units.seconds(wall)} by the wall clock"
    busy = found["busy"]
    yield "cores busy", f"{busy['cores']:.2f}, of {busy['threads']:.0f} threads in the process"


def _table(found: dict[str, Any]) -> Iterator[str]:
    what = "kernels" if "kernels" in found else "operators"
    rows = found[what]
    heading = f"{what}, {found['steps']} calls"
    yield f"{heading:<{NAME_MOST}}   calls       self   share"
    for row in rows[:ROWS]:
        first, *rest = wrap(row["name"], NAME_MOST)
        yield f"{first:<{NAME_MOST}}{row['calls']:>8}{units.seconds(row['self_s']):>11}{row['share']:>8.1%}"
        yield from (f"  {piece}" for piece in rest[:1])
    if len(rows) > ROWS:
        yield f"{len(rows) - ROWS} more in the trace"


def _counters(found: dict[str, Any]) -> Iterator[str]:
    if "absent" in found:
        yield from wrap(f"counters: {found['absent']}", WIDTH, indent=4)
        return
    counts = found["per_call"]
    said = [f"{name} {units.rate(value, '')}".strip() for name, value in counts.items() if name != "task-clock"]
    if counts.get("cycles") and counts.get("instructions"):
        yield f"counters: {counts['instructions'] / counts['cycles']:.2f} instructions a cycle"
    yield from wrap(f"counters of a call: {', '.join(said)}", WIDTH, indent=4)
    if found.get("not_counted"):
        yield from wrap(f"not counted on this machine: {', '.join(found['not_counted'])}", WIDTH, indent=4)
