"""The profile of one case as text."""

from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.analysis.metrics import METRICS
from attnbench.records.result import Facts, Result
from attnbench.report.terminal.text_layout import terminal_width, wrap

MAX_NAME = 46
MAX_ROWS = 12
# Facts of a result that say which kernel ran and how it was configured.
FACTS = ("resolved", "dispatch", "compiled", "path", "layout", "block_q", "block_kv", "warps", "stages", "splits")
HINTS = {"trace.json.gz": " (ui.perfetto.dev)", "memory_snapshot.pickle": " (pytorch.org/memory_viz)"}

Profile = Facts  # the `profile` fact of a result: docs/formats.md


def text(result: Result, folder: str, commands: Sequence[str]) -> Iterator[str]:
    """Times, what ran, where time and memory go, counters, and the files and commands of other tools."""
    profile = result.facts["profile"]
    yield f"{result.case.label} on {result.arm.device}"
    for name, value in _times(result, profile):
        yield f"{name:<18}{value}"
    facts = ", ".join(f"{name} {result.facts[name]}" for name in FACTS if name in result.facts)
    if facts:
        yield from wrap(f"{'what ran':<18}{facts}", terminal_width(), indent=18)
    yield ""
    yield from _kernels(profile)
    yield ""
    if memory := profile.get("memory"):
        peak, at = units.size(memory["peak_bytes"]), units.seconds(memory["at_s"])
        yield f"memory: at most {peak}, outputs too, {at} after the first of {memory['changes']} changes"
    yield from _counters(profile["counters"])
    for name in profile["files"]:
        yield f"file: {folder}/{name}{HINTS.get(name, '')}"
    for command in commands:
        yield from wrap(f"from outside: {command}", terminal_width(), indent=4)


def _times(result: Result, profile: Profile) -> Iterator[tuple[str, str]]:
    time_s = METRICS["time_s"].compute(result)
    yield "time of a call", f"{units.seconds(time_s)}, not profiled"
    once = {
        "first call": "first_call_s",
        "compiling": "compile_s",
        "building the mask": "mask_build_s",
        "planning": "plan_s",
        "moving tables": "transfer_s",
    }
    for name, metric in once.items():
        if (value := METRICS[metric].compute(result)) is not None:
            yield name, units.seconds(value)
    if (device_s := profile.get("device_s")) is not None and time_s:
        yield "on the device", f"{units.seconds(device_s)} in {profile['kernels_per_call']:g} kernels a call"
        yield "gaps between them", units.seconds(profile["gaps_s"])
        if (wall_s := METRICS["time_wall_s"].compute(result)) is not None:
            yield "launch overhead", f"{units.seconds(wall_s - device_s)} of {units.seconds(wall_s)} by the wall clock"
    busy = profile["busy"]
    yield "cores busy", f"{busy['cores']:.2f}, of {busy['threads']:.0f} threads in the process"


def _kernels(profile: Profile) -> Iterator[str]:
    kind = "kernels" if "kernels" in profile else "operators"
    rows = profile[kind]
    heading = f"{kind}, {profile['steps']} calls"
    yield f"{heading:<{MAX_NAME}}   calls       self   share"
    for row in rows[:MAX_ROWS]:
        first, *rest = wrap(row["name"], MAX_NAME)
        share = units.percent(row["share"], 1)
        yield f"{first:<{MAX_NAME}}{row['calls']:>8}{units.seconds(row['self_s']):>11}{share:>8}"
        yield from (f"  {piece}" for piece in rest[:1])
    if len(rows) > MAX_ROWS:
        yield f"{len(rows) - MAX_ROWS} more in the trace"


def _counters(counters: Profile) -> Iterator[str]:
    if "absent" in counters:
        yield from wrap(f"counters: {counters['absent']}", terminal_width(), indent=4)
        return
    counts = counters["per_call"]
    if counts.get("cycles") and counts.get("instructions"):
        yield f"counters: {counts['instructions'] / counts['cycles']:.2f} instructions a cycle"
    rates = [f"{name} {units.rate(value, '')}".strip() for name, value in counts.items() if name != "task-clock"]
    yield from wrap(f"counters of a call: {', '.join(rates)}", terminal_width(), indent=4)
    if counters.get("not_counted"):
        yield from wrap(
            f"not counted on this machine: {', '.join(counters['not_counted'])}", terminal_width(), indent=4
        )
