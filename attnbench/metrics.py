"""METRICS: every derived number, one row each: name, unit, which way is better, how it follows from what was measured.

A column, a plot axis and a gate criterion follow from a row. Units are base units; `units.py` scales them when printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal

import msgspec

from attnbench import datasheet, stats, units
from attnbench.attention import cost
from attnbench.errors import UnknownNameError
from attnbench.joined import Joined
from attnbench.ranges import words
from attnbench.result import Result, Sample, Timing

Compute = Callable[[Joined], float | None]


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One derived number. None where it was not measured, never zero."""

    name: str
    unit: str  # a base unit; empty for a ratio or a count
    better: Literal["lower", "higher"] | None
    summary: str
    follow: Compute  # from the joined launches; may ask for the reference arm
    needs: str = ""  # what must be asked for to be measured: energy, timers

    def compute(self, measured: Joined | Result) -> float | None:
        """The number, of all launches or of one Result alone."""
        return self.follow(measured if isinstance(measured, Joined) else Joined([measured]))

    def show(self, value: float | None) -> str:
        """Scaled, with its unit, for people."""
        if value is None:
            return "-"
        if self.unit == "s":
            return units.seconds(value)
        if self.unit == "B":
            return units.size(value)
        if self.unit:
            return units.rate(value, self.unit)
        return f"{value:.3g}" if isinstance(value, float) else str(value)


def _count(of: Callable[..., int]) -> Compute:
    return lambda joined: of(joined.case.problem, joined.case.mode)


def _rate(of: Callable[..., int]) -> Compute:
    def rate(joined: Joined) -> float | None:
        if joined.time is None or joined.time.value <= 0:
            return None
        return of(joined.case.problem, joined.case.mode) / joined.time.value

    return rate


def _end(of: str, end: str) -> Compute:
    return lambda joined: getattr(getattr(joined, of), end, None)


def _percentile(share: float) -> Compute:
    def percentile(joined: Joined) -> float | None:
        values = tuple(value for sample in joined.times for value in sample.values)
        return stats.percentile(Sample(unit="s", values=values), share)

    return percentile


def _first(name: str) -> Compute:
    """Of the first launch that has it: what a user waits for once."""

    def first(joined: Joined) -> float | None:
        found = (stats.location(result.samples[name].values) for result in joined.results if name in result.samples)
        return next((value for value in found if value is not None), None)

    return first


def _most(name: str) -> Compute:
    def most(joined: Joined) -> float | None:
        samples = [result.samples[name] for result in joined.results if name in result.samples]
        values = [value for sample in samples for value in sample.values if value is not None]
        return max(values, default=None)

    return most


def _fact(name: str) -> Compute:
    """The most of any launch, of a whole number among the facts."""

    def fact(joined: Joined) -> float | None:
        return max((result.facts[name] for result in joined.results if name in result.facts), default=None)

    return fact


def _roofline_s(joined: Joined) -> float | None:
    return joined.roof.seconds if joined.roof else None


def _roofline_share(joined: Joined) -> float | None:
    if joined.roof is None or joined.time is None or joined.time.value <= 0:
        return None
    return joined.roof.seconds / joined.time.value


def _sheet_share(joined: Joined) -> float | None:
    """None on a device without a data sheet, as a CPU is."""
    sheet = datasheet.sheet(joined.ceilings.name) if joined.ceilings else None
    peak = sheet.flop_per_s.get(joined.case.problem.dtype.value) if sheet else None
    rate = METRICS["flop_per_s"].compute(joined)
    return rate / peak if rate and peak else None


def _flop_per_j(joined: Joined) -> float | None:
    energy = METRICS["energy_j"].compute(joined)
    return cost.flops(joined.case.problem, joined.case.mode) / energy if energy else None


def _middle(name: str) -> Compute:
    """The median over launches of what each of them says."""

    def middle(joined: Joined) -> float | None:
        samples = [result.samples[name] for result in joined.results if name in result.samples]
        return stats.location(stats.location(sample.values) for sample in samples)

    return middle


def _host_s(joined: Joined) -> float | None:
    """The wall clock less the time on the device; where one timing mode alone was used, None."""
    wall, device = (METRICS[f"time_{mode}_s"].compute(joined) for mode in ("wall", "events"))
    return None if wall is None or device is None else wall - device


def _by_timing(mode: Timing) -> Compute:
    """The case's own time, if that is its mode, or what was measured beside it."""

    def timed(joined: Joined) -> float | None:
        if joined.results[0].procedure.timing is mode:
            return joined.time.value if joined.time else None
        return _middle(f"time_{mode}")(joined)

    return timed


def _max_abs_err(joined: Joined) -> float | None:
    """None where nothing was checked, and where an output held what is not finite."""
    found = _errors(joined, "max_abs")
    return None if None in found else max((value for value in found if value is not None), default=None)


def _rms_err(joined: Joined) -> float | None:
    return max((value for value in _errors(joined, "rms") if value is not None), default=None)


def _err_vs_plain(joined: Joined) -> float | None:
    """Outputs that the plain formula gives without any error have none."""
    pairs = zip(_errors(joined, "max_abs"), _errors(joined, "plain_max"), strict=True)
    return max((error / plain for error, plain in pairs if error is not None and plain), default=None)


def _not_finite(joined: Joined) -> float | None:
    counts = [(errors.get("nan") or 0) + (errors.get("inf") or 0) for errors in _outputs(joined)]
    return max(counts, default=None)


def _rel_err(joined: Joined) -> float | None:
    """Outputs whose reference is zero have none."""
    return max((value for value in _errors(joined, "rel") if value is not None), default=None)


def _errors(joined: Joined, figure: str) -> list[float | None]:
    return [errors.get(figure) for errors in _outputs(joined)]


def _outputs(joined: Joined) -> list[dict[str, float | None]]:
    return [errors for result in joined.results for errors in result.facts.get("errors", {}).values()]


def _rounds(joined: Joined) -> int | None:
    return sum(len(stats.by_round(sample)) for sample in joined.times) or None


def _tokens(problem: Any, _: Any) -> int:
    return sum(problem.lengths) or problem.batch * problem.seq_q


def _intensity(joined: Joined) -> float:
    problem, mode = joined.case.problem, joined.case.mode
    return cost.flops(problem, mode) / cost.traffic_bytes(problem, mode)


def _row(
    name: str, unit: str, better: Literal["lower", "higher", ""], summary: str, follow: Compute, needs: str = ""
) -> Metric:
    return Metric(name=name, unit=unit, better=better or None, summary=summary, follow=follow, needs=needs)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _row("time_s", "s", "lower", "time of a call: median of block medians, by launch", _end("time", "value")),
        _row("time_low_s", "s", "lower", "lower end of its 95 % interval", _end("time", "low")),
        _row("time_high_s", "s", "lower", "upper end of its 95 % interval", _end("time", "high")),
        _row("p95_s", "s", "lower", "95th percentile of all readings; from 20 readings on", _percentile(0.95)),
        _row("p99_s", "s", "lower", "99th percentile of all readings; from 100 readings on", _percentile(0.99)),
        _row("rounds", "", "", "rounds measured, over all launches", _rounds),
        _row("speedup", "", "higher", "time of the reference arm over this one's, by round", _end("speedup", "value")),
        _row("speedup_low", "", "higher", "lower end of its 95 % interval", _end("speedup", "low")),
        _row("speedup_high", "", "higher", "upper end of its 95 % interval", _end("speedup", "high")),
        _row("flops", "FLOP", "", "work of a call, from the exact visible pairs", _count(cost.flops)),
        _row("flops_half_causal", "FLOP", "", "dense work, halved for causal masks", _count(cost.flops_half_causal)),
        _row("flops_dense", "FLOP", "", "work if every pair were visible", _count(cost.flops_dense)),
        _row("bytes", "B", "", "compulsory traffic: inputs read and outputs written once", _count(cost.traffic_bytes)),
        _row("intensity", "FLOP/B", "", "exact work over compulsory traffic", _intensity),
        _row("flop_per_s", "FLOP/s", "higher", "exact work over time", _rate(cost.flops)),
        _row(
            "flop_per_s_half_causal",
            "FLOP/s",
            "higher",
            "the figure of most publications: dense work, halved for causal masks, over time",
            _rate(cost.flops_half_causal),
        ),
        _row("bytes_per_s", "B/s", "higher", "compulsory traffic over time", _rate(cost.traffic_bytes)),
        _row("tokens_per_s", "token/s", "higher", "query tokens over time", _rate(_tokens)),
        _row("peak_bytes", "B", "lower", "peak memory of a call over inputs and outputs", _most("peak_memory")),
        _row("total_bytes", "B", "lower", "peak memory of a call, with its outputs", _most("total_memory")),
        _row("input_bytes", "B", "", "q, k and v", _count(lambda problem, _: cost.input_bytes(problem))),
        _row("output_bytes", "B", "", "storages that a call gives back", _fact("memory_outputs")),
        _row("saved_bytes", "B", "lower", "kept for the backward pass", _fact("memory_saved")),
        _row("workspace_bytes", "B", "lower", "scratch of a call that is gone again", _fact("memory_workspace")),
        _row(
            "predicted_bytes", "B", "", "peak over inputs and outputs that the plan expected", _fact("memory_predicted")
        ),
        _row(
            "first_kept_bytes", "B", "lower", "what the first call leaves behind in torch", _fact("memory_first_kept")
        ),
        _row("reserved_bytes", "B", "lower", "held by the caching allocator of CUDA", _fact("memory_reserved")),
        _row(
            "outside_bytes", "B", "lower", "of the process on the GPU and not torch's, by NVML", _fact("memory_outside")
        ),
        _row("roofline_s", "s", "", "least time by the measured ceilings of the device", _roofline_s),
        _row("roofline_share", "", "higher", "that least time over the time: 1 is the roof", _roofline_share),
        _row("sheet_share", "", "higher", "work over time over the dense peak of the data sheet", _sheet_share),
        _row("energy_j", "J", "lower", "energy of a call, of the whole device", _middle("energy"), "energy"),
        _row(
            "energy_above_idle_j",
            "J",
            "lower",
            "the same less what the idle device takes",
            _middle("energy_above_idle"),
            "energy",
        ),
        _row("flop_per_j", "FLOP/J", "higher", "exact work over energy", _flop_per_j, "energy"),
        _row("time_wall_s", "s", "lower", "by the host's clock, end to end", _by_timing(Timing.WALL), "timers"),
        _row("time_events_s", "s", "lower", "by CUDA events, one call", _by_timing(Timing.EVENTS), "timers"),
        _row("time_graph_s", "s", "lower", "in a CUDA graph", _by_timing(Timing.GRAPH), "timers"),
        _row("time_cupti_s", "s", "lower", "kernels alone, by CUPTI", _by_timing(Timing.CUPTI), "timers"),
        _row("host_s", "s", "lower", "wall clock less time on the device", _host_s, "timers"),
        _row("max_abs_err", "", "lower", "largest error against float64, over all outputs", _max_abs_err),
        _row("rms_err", "", "lower", "root mean square error against float64, of the worst output", _rms_err),
        _row(
            "err_vs_plain", "", "lower", "largest error over that of the plain formula in the same dtype", _err_vs_plain
        ),
        _row("not_finite", "", "lower", "NaN and Inf in an output, where there should be none", _not_finite),
        _row("rel_err", "", "lower", "error over the norm of the reference, of the worst output", _rel_err),
        _row("import_s", "s", "lower", "start of the process and its imports", _first("import")),
        _row("first_call_s", "s", "lower", "the first call, compiling included", _first("first_call")),
        _row("compile_s", "s", "lower", "compiling alone", _first("compile")),
        _row("mask_build_s", "s", "lower", "building the block mask or dense mask", _first("mask_build")),
    )
}


# Names that stand for several.
GROUPS: dict[str, tuple[str, ...]] = {
    "memory": (
        "input_bytes", "output_bytes", "saved_bytes", "workspace_bytes", "peak_bytes", "predicted_bytes",
        "first_kept_bytes", "reserved_bytes", "outside_bytes",
    ),
    "roofline": ("flop_per_s", "bytes_per_s", "intensity", "roofline_s", "roofline_share", "sheet_share"),
    "energy": ("energy_j", "energy_above_idle_j", "flop_per_j"),
    "timers": ("time_wall_s", "time_events_s", "time_graph_s", "time_cupti_s", "host_s"),
    "errors": ("max_abs_err", "rms_err", "rel_err", "err_vs_plain", "not_finite"),
    "once": ("import_s", "first_call_s", "compile_s", "mask_build_s"),
}  # fmt: skip


def named(text: str, where: str = "--metrics") -> tuple[str, ...]:
    """A comma list of metrics and groups of them. Raises UnknownNameError."""
    found: dict[str, None] = {}
    for word in words(text, where) if text else ():
        if word not in METRICS and word not in GROUPS:
            raise UnknownNameError("metric", word, (*METRICS, *GROUPS), where=where)
        found |= dict.fromkeys(GROUPS.get(word, (word,)))
    return tuple(found)


def needs(names: Iterable[str]) -> tuple[str, ...]:
    """What must be measured beyond time and memory for these."""
    return tuple(sorted({METRICS[name].needs for name in names} - {""}))


def impossible(joined: Joined) -> str:
    """Why the figures of a case cannot be true, or nothing: such a case is marked, and neither ranked nor gated."""
    if joined.time is None:
        return ""
    if joined.time.value <= 0:
        return f"a call in {joined.time.value:g} s: the time is wrong"
    if joined.ceilings is None:
        return ""
    silicon = datasheet.silicon(joined.ceilings.name, joined.case.problem.dtype.value, joined.ceilings.facts)
    rate = METRICS["flop_per_s"].compute(joined)
    if silicon and rate and rate > silicon:
        most = units.rate(silicon, "FLOP/s")
        return f"{units.rate(rate, 'FLOP/s')} is above the {most} of the silicon: time or count is wrong"
    return ""


def timers_disagree(joined: Joined) -> str:
    """Which timing modes of one case are more than 5 % and 2 us apart, and the likely cause; empty if none are."""
    seen = {mode: METRICS[f"time_{mode}_s"].compute(joined) for mode in Timing}
    found = {mode: seconds for mode, seconds in seen.items() if seconds}
    if len(found) < 2:
        return ""
    low, high = min(found, key=lambda mode: found[mode]), max(found, key=lambda mode: found[mode])
    gap = found[high] - found[low]
    if gap <= TIMERS_WITHIN_S or gap <= TIMERS_WITHIN * found[low]:
        return ""
    tags = {
        tag for result in joined.results for sample in result.samples.values() for b in sample.blocks for tag in b.tags
    }
    cause = _cause(low, high, found, tags)
    said = f"{high} {units.seconds(found[high])}, {low} {units.seconds(found[low])}"
    return f"timers disagree: {said}: {cause}"


TIMERS_WITHIN, TIMERS_WITHIN_S = 0.05, 2e-6


def _cause(low: Timing, high: Timing, found: Mapping[Timing, float], tags: AbstractSet[str]) -> str:
    """The likely one, by which mode is the odd one out."""
    if low is Timing.GRAPH and found[low] < found[high] / 10:
        return "the graph captured nothing, or not all of it"
    if "host_bound" in tags:
        return "host-bound: the host queues slower than the device works"
    if high is Timing.WALL:
        return "launch-bound: the host's share of a call is no small part of it"
    if low is Timing.GRAPH:
        return "cache-resident: calls in a graph find the last one's data in the cache"
    if low is Timing.CUPTI:
        return "gaps between kernels, which CUPTI does not count"
    return "unknown"
