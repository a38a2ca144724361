"""The measured ceilings of a device, beside the peaks of its data sheet, and its noise floor."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from attnbench import units
from attnbench.analysis.noise_floor import ControlPair, class_name, classes
from attnbench.machine import datasheet
from attnbench.records.ceilings import Ceilings
from attnbench.report.terminal.text_layout import terminal_width, wrap


class Peak(NamedTuple):
    """A peak rate that is not measured here, and its source."""

    rate: float  # FLOP/s or B/s
    source: str


def text(ceilings: Ceilings) -> Iterator[str]:
    """Matrix products, memory traffic by working set, and the single numbers."""
    about = [f"{name} {ceilings.facts[name]}" for name in ("threads", "isa") if name in ceilings.facts]
    device = ", ".join([ceilings.device, *about])
    yield f"{ceilings.name}, {device}, torch {ceilings.torch}, {ceilings.seconds:.0f} s"
    if ceilings.disturbed:
        yield from wrap(f"{ceilings.disturbance}: repeat attnbench calibrate", terminal_width(), indent=6)
    if ceilings.matmul:
        yield from _products(ceilings)
    if ceilings.bandwidth:
        yield from _traffic(ceilings)
    if ceilings.exp_per_s:
        derived = " (derived: special function units x clock)" if ceilings.exp_derived else ""
        yield f"exp       {units.rate(ceilings.exp_per_s, 'exp/s')}{derived}"
    if ceilings.launch_s is not None:
        yield f"launch    {units.seconds(ceilings.launch_s)}, the smallest operation, on the host"
    if ceilings.timer_s is not None:
        yield f"timer     {units.seconds(ceilings.timer_s)} a reading"
    for what, reason in ceilings.refused.items():
        yield f"no {what}: {reason}"


def record(ceilings: Ceilings) -> dict[str, object]:
    """One line of `calibrate --json`, with the data sheet's peaks."""
    rates = {name: peak.rate for name, peak in peaks(ceilings).items()}
    return {"type": "ceilings", **msgspec.to_builtins(ceilings), "peaks": rates}


def peaks(ceilings: Ceilings) -> dict[str, Peak]:
    """Peaks by dtype and for `memory`: from the data sheet of a GPU, or derived from the clock of a CPU."""
    if sheet := datasheet.sheet(ceilings.name):
        source = f"data sheet of {sheet.name}: {sheet.source}"
        rates = {**sheet.flop_per_s, "memory": sheet.bytes_per_s}
        return {name: Peak(rate, source) for name, rate in rates.items()}
    clock, threads = ceilings.facts.get("clock_hz"), ceilings.facts.get("threads")
    if not clock or not threads:
        return {}
    source = f"derived: {datasheet.CPU_SOURCE}, {threads} x {clock / 1e9:.2f} GHz as the system reports it"
    per_clock = datasheet.CPU_FLOP_PER_CLOCK.get(str(ceilings.facts.get("isa", "")).lower(), {})
    return {dtype: Peak(flop * clock * threads, source) for dtype, flop in per_clock.items()}


def noise_floor(device: str, pairs: Sequence[ControlPair], user: Sequence[ControlPair] = ()) -> Iterator[str]:
    """The floor of each class of durations, then that of users' kernels, or the command that measures it."""
    if not pairs and not user:
        yield f"{device}: no A/A control was measured yet: attnbench calibrate --floor"
        return
    for name, group in ((device, pairs), (f"users' kernels on {device}", user)):
        if group:
            yield f"noise floor of {name}: the difference that two equal arms show"
            yield "a call of          floor   cases  what it is"
        for floor in classes(group):
            range_ = class_name(floor.shortest_s)
            yield f"{range_:<16} {units.percent(floor.effect):>7}  {floor.cases:>6}  {floor.label}"


def _products(ceilings: Ceilings) -> Iterator[str]:
    known = peaks(ceilings)
    headings = ("product", "burst", "sustained", "size", *(("peak", "burst / peak") if known else ()))
    yield f"{headings[0]:<8}" + "".join(heading.rjust(14) for heading in headings[1:])
    for dtype, rate in ceilings.matmul.items():
        cells = [units.rate(rate.burst, "FLOP/s"), units.rate(rate.sustained, "FLOP/s"), f"n {rate.size}"]
        if dtype in known:
            peak = known[dtype].rate
            cells += [units.rate(peak, "FLOP/s"), units.whole_percent(rate.burst / peak)]
        yield f"{dtype:<8}" + "".join(cell.rjust(14) for cell in cells)
    for source in dict.fromkeys(peak.source for peak in known.values()):
        yield from wrap(f"peak: {source}", terminal_width(), indent=6)
    if any(dtype in known and rate.burst > known[dtype].rate for dtype, rate in ceilings.matmul.items()):
        yield "      (over 100 %: the core clocks higher than the system reports)"


def _traffic(ceilings: Ceilings) -> Iterator[str]:
    kinds = list(ceilings.bandwidth)
    yield "an operand" + "".join(kind.rjust(14) for kind in kinds) + "  fits into"
    for points in zip(*ceilings.bandwidth.values(), strict=True):
        operand = min(point.bytes for point in points)
        rates = "".join(units.rate(point.rate, "B/s").rjust(14) for point in points)
        yield units.size(operand).rjust(10) + rates + f"  {_cache(ceilings, max(point.bytes for point in points))}"
    if (peak := peaks(ceilings).get("memory")) and ceilings.memory:
        share = units.whole_percent(ceilings.memory / peak.rate)
        line = f"peak: {units.rate(peak.rate, 'B/s')}, of which {share} was measured; {peak.source}"
        yield from wrap(line, terminal_width(), indent=6)


def _cache(ceilings: Ceilings, working_set: int) -> str:
    """The smallest cache that holds all operands, else `memory`."""
    caches = ceilings.facts.get("caches") or {"L2": ceilings.facts.get("l2_bytes", 0)}
    return next((name for name, size in caches.items() if working_set <= size), "memory")
