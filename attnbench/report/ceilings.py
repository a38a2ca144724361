"""Ceilings of a device and its noise floor, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from attnbench import datasheet, floor, units
from attnbench.ceilings import Ceilings, Point
from attnbench.floor import Twins
from attnbench.report.table import wrap

WIDTH = 80


def text(found: Ceilings) -> Iterator[str]:
    """Lines: matrix products, traffic by working set, and the single numbers."""
    about = [f"{name} {found.facts[name]}" for name in ("threads", "isa") if name in found.facts]
    yield f"{found.name}, {', '.join([found.device, *about])}, torch {found.torch}, {found.seconds:.0f} s"
    if found.matmul:
        yield from _products(found)
    if found.bandwidth:
        yield from _traffic(found)
    if found.exp_per_s:
        derived = " (derived: special function units x clock)" if found.exp_derived else ""
        yield f"exp       {units.rate(found.exp_per_s, 'exp/s')}{derived}"
    if found.launch_s is not None:
        yield f"launch    {units.seconds(found.launch_s)}, the smallest operation, on the host"
    if found.timer_s is not None:
        yield f"timer     {units.seconds(found.timer_s)} a reading"
    for what, reason in found.refused.items():
        yield f"no {what}: {reason}"


def record(found: Ceilings) -> dict[str, Any]:
    """One line of `calibrate --json`, with the data sheet's peaks."""
    return {"type": "ceilings", **msgspec.to_builtins(found), "peaks": {k: v for k, (v, _) in peaks(found).items()}}


def peaks(found: Ceilings) -> dict[str, tuple[float, str]]:
    """By dtype and `memory`: what the maker prints or what follows from the clock, and where that is from."""
    if sheet := datasheet.sheet(found.name):
        rates = {
            dtype: (rate, f"data sheet of {sheet.name}: {sheet.source}") for dtype, rate in sheet.flop_per_s.items()
        }
        return rates | {"memory": (sheet.bytes_per_s, f"data sheet of {sheet.name}: {sheet.source}")}
    clock, threads = found.facts.get("clock_hz"), found.facts.get("threads")
    isa = str(found.facts.get("isa", "")).lower()
    if not clock or not threads:
        return {}
    said = f"derived: {datasheet.CPU_SOURCE}, {threads} x {clock / 1e9:.2f} GHz as the system tells it"
    per_clock = datasheet.CPU_FLOP_PER_CLOCK.get(isa, {})
    return {dtype: (flop * clock * threads, said) for dtype, flop in per_clock.items()}


def floor_text(device: str, twins: Sequence[Twins]) -> Iterator[str]:
    """Lines: the floor by duration, or what would measure it."""
    if not twins:
        yield f"{device}: no equal arms were measured yet: attnbench calibrate --floor"
        return
    yield f"noise floor of {device}: how far two equal arms seem to differ"
    yield "a call of          floor   cases  what it is"
    shortest = 0.0
    for one in floor.classes(twins):
        ends = (
            f"over {units.seconds(shortest)}" if math.isinf(one.longest_s) else f"under {units.seconds(one.longest_s)}"
        )
        yield f"{ends:<16} {units.percent(one.effect):>7}  {one.cases:>6}  {one.label}"
        shortest = one.longest_s


def _products(found: Ceilings) -> Iterator[str]:
    known = peaks(found)
    heads = ("product", "burst", "sustained", "size", *(("peak", "burst / peak") if known else ()))
    yield f"{heads[0]:<8}" + "".join(head.rjust(14) for head in heads[1:])
    for dtype, rate in found.matmul.items():
        cells = [units.rate(rate.burst, "FLOP/s"), units.rate(rate.sustained, "FLOP/s"), f"n {rate.size}"]
        if dtype in known:
            peak, _ = known[dtype]
            cells += [units.rate(peak, "FLOP/s"), f"{rate.burst / peak:.0%}"]
        yield f"{dtype:<8}" + "".join(cell.rjust(14) for cell in cells)
    for source in dict.fromkeys(source for _, source in known.values()):
        yield from wrap(f"peak: {source}", WIDTH, indent=6)
    if any(dtype in known and rate.burst > known[dtype][0] for dtype, rate in found.matmul.items()):
        yield "      (over 100 %: the core clocks higher than the system tells)"


def _traffic(found: Ceilings) -> Iterator[str]:
    kinds = list(found.bandwidth)
    yield "an operand" + "".join(kind.rjust(14) for kind in kinds) + "  fits into"
    rows: list[tuple[Point, ...]] = list(zip(*found.bandwidth.values(), strict=True))
    for points in rows:
        operand = min(point.bytes for point in points)
        rates = "".join(units.rate(point.rate, "B/s").rjust(14) for point in points)
        yield units.size(operand).rjust(10) + rates + f"  {_cache(found, max(point.bytes for point in points))}"
    if (peak := peaks(found).get("memory")) and found.memory:
        share = f"{found.memory / peak[0]:.0%}"
        yield from wrap(
            f"peak: {units.rate(peak[0], 'B/s')}, of which {share} was measured; {peak[1]}", WIDTH, indent=6
        )


def _cache(found: Ceilings, working_set: int) -> str:
    """The smallest cache that holds all operands."""
    caches = found.facts.get("caches") or {"L2": found.facts.get("l2_bytes", 0)}
    return next((name for name, size in caches.items() if working_set <= size), "memory")
