"""METRICS: every derived number, one row each: name, unit, which way is better, how it is computed from results.

A column, a plot axis and a gate criterion follow from a row. Units are base units; `units.py` scales them when printed.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal

import msgspec

from attnbench import units
from attnbench.analysis import readings
from attnbench.analysis.restarts import Restarts
from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import UnknownNameError
from attnbench.machine import datasheet
from attnbench.records.result import NEW_INPUTS_RIGHT, Result, Timing
from attnbench.units import words

Compute = Callable[[Restarts], float | None]
Better = Literal["lower", "higher"] | None


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One derived number; None where it was not measured, never zero."""

    name: str
    unit: str  # a base unit; empty for a ratio or a count
    better: Better
    summary: str
    formula: Compute

    def compute(self, measured: Restarts | Result) -> float | None:
        return self.formula(measured if isinstance(measured, Restarts) else Restarts([measured]))

    def show(self, value: float | None) -> str:
        if value is None:
            return "-"
        if self.unit == "s":
            return units.seconds(value)
        if self.unit == "B":
            return units.size(value)
        if self.unit:
            return units.rate(value, self.unit)
        return units.figure(value) if isinstance(value, float) else str(value)


def _count(count: Callable[[Problem, Mode], int]) -> Compute:
    return lambda restarts: count(restarts.case.problem, restarts.case.mode)


def _rate(count: Callable[[Problem, Mode], int]) -> Compute:
    def rate(restarts: Restarts) -> float | None:
        time_s = _positive_time_s(restarts)
        return count(restarts.case.problem, restarts.case.mode) / time_s if time_s else None

    return rate


def _positive_time_s(restarts: Restarts) -> float | None:
    return restarts.time.value if restarts.time and restarts.time.value > 0 else None


def _end(of: str, end: str) -> Compute:
    return lambda restarts: getattr(getattr(restarts, of), end, None)


def _percentile(share: float) -> Compute:
    def percentile(restarts: Restarts) -> float | None:
        return readings.percentile([value for sample in restarts.times for value in sample.values], share)

    return percentile


def _samples(restarts: Restarts, name: str) -> list[tuple[float | None, ...]]:
    """The values of one sample of each restart that has it."""
    return [result.samples[name].values for result in restarts.results if name in result.samples]


def _first(name: str) -> Compute:
    """From the first restart that has it: what a user waits for once per process."""

    def first(restarts: Restarts) -> float | None:
        medians = map(readings.location, _samples(restarts, name))
        return next((median for median in medians if median is not None), None)

    return first


def _plan_layer_s(restarts: Restarts) -> float | None:
    plan_s = _first("plan")(restarts)
    layers = max(int(result.facts.get("layers", 0)) for result in restarts.results)
    return plan_s / layers if plan_s is not None and layers else None


def _median(name: str) -> Compute:
    """The median over restarts of the median of each."""
    return lambda restarts: readings.location(map(readings.location, _samples(restarts, name)))


def _max(name: str) -> Compute:
    return lambda restarts: _largest(value for values in _samples(restarts, name) for value in values)


def _memory(part: str) -> Compute:
    """The largest size over the restarts."""
    return lambda restarts: _largest(result.facts.get(f"memory_{part}") for result in restarts.results)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _roofline_share(restarts: Restarts) -> float | None:
    time_s = _positive_time_s(restarts)
    return restarts.roofline.seconds / time_s if restarts.roofline and time_s else None


def _sheet_share(restarts: Restarts) -> float | None:
    """None on a device without a data sheet, such as a CPU."""
    sheet = datasheet.sheet(restarts.ceilings.name) if restarts.ceilings else None
    peak = sheet.flop_per_s.get(restarts.case.problem.dtype.value) if sheet else None
    rate = METRICS["flop_per_s"].compute(restarts)
    return rate / peak if rate and peak else None


def _flop_per_j(restarts: Restarts) -> float | None:
    energy = METRICS["energy_j"].compute(restarts)
    return cost.flops(restarts.case.problem, restarts.case.mode) / energy if energy else None


def _host_s(restarts: Restarts) -> float | None:
    """The wall clock less the time on the device; None where only one timing mode was used."""
    wall, device = (METRICS[f"time_{mode}_s"].compute(restarts) for mode in ("wall", "events"))
    return None if wall is None or device is None else wall - device


def _by_timing(mode: Timing) -> Compute:
    """The time of the case if that is its timing mode, else the time that was measured additionally."""

    def timed(restarts: Restarts) -> float | None:
        if restarts.results[0].procedure.timing is mode:
            return restarts.time.value if restarts.time else None
        return _median(f"time_{mode}")(restarts)

    return timed


def _max_abs_err(restarts: Restarts) -> float | None:
    """None where nothing was verified, and where an output was not finite."""
    errors = _errors(restarts, "max_abs")
    return None if None in errors else _largest(errors)


def _worst_output(figure: str) -> Compute:
    """The largest over outputs; those without the figure, such as `rel` of a reference of zero, are left out."""
    return lambda restarts: _largest(_errors(restarts, figure))


def _err_vs_plain(restarts: Restarts) -> float | None:
    """Outputs for which the plain formula has no error are left out."""
    pairs = zip(_errors(restarts, "max_abs"), _errors(restarts, "plain_max"), strict=True)
    return _largest(error / plain for error, plain in pairs if error is not None and plain)


def _err_allowed(restarts: Restarts) -> float | None:
    pairs = zip(_errors(restarts, "max_abs"), _errors(restarts, "budget"), strict=True)
    judged = [(error, allowed) for error, allowed in pairs if error is not None and allowed is not None]
    return max(judged)[1] if judged else None


def _not_finite(restarts: Restarts) -> float | None:
    return _largest((errors.get("nan") or 0) + (errors.get("inf") or 0) for errors in _outputs(restarts))


def _errors(restarts: Restarts, figure: str) -> list[float | None]:
    return [errors.get(figure) for errors in _outputs(restarts)]


def _outputs(restarts: Restarts) -> list[dict[str, float | None]]:
    return [errors for result in restarts.results for errors in result.facts.get("errors", {}).values()]


def _rounds(restarts: Restarts) -> int | None:
    return sum(len(readings.by_round(sample)) for sample in restarts.times) or None


def _tokens(problem: Problem, _: Mode) -> int:
    return problem.tokens_q


def _intensity(restarts: Restarts) -> float:
    problem, mode = restarts.case.problem, restarts.case.mode
    return cost.flops(problem, mode) / cost.traffic_bytes(problem, mode)


_TABLE: tuple[tuple[str, str, Better, str, Compute], ...] = (
    ("time_s", "s", "lower", "time of a call: median of block medians, by restart", _end("time", "value")),
    ("time_low_s", "s", "lower", "lower end of its 95 % interval", _end("time", "low")),
    ("time_high_s", "s", "lower", "upper end of its 95 % interval", _end("time", "high")),
    ("p95_s", "s", "lower", "95th percentile of all readings; from 20 readings on", _percentile(0.95)),
    ("p99_s", "s", "lower", "99th percentile of all readings; from 100 readings on", _percentile(0.99)),
    ("rounds", "", None, "rounds measured, over all restarts", _rounds),
    ("speedup", "", "higher", "time of the reference arm over this arm's, paired by round", _end("speedup", "value")),
    ("speedup_low", "", "higher", "lower end of its 95 % interval", _end("speedup", "low")),
    ("speedup_high", "", "higher", "upper end of its 95 % interval", _end("speedup", "high")),
    ("flops", "FLOP", None, "work of a call, from the exact number of visible pairs", _count(cost.flops)),
    ("flops_half_causal", "FLOP", None, "dense work, halved for causal masks", _count(cost.flops_half_causal)),
    ("flops_dense", "FLOP", None, "work if every pair were visible", _count(cost.flops_dense)),
    ("bytes", "B", None, "traffic that is needed: inputs read once, outputs written once", _count(cost.traffic_bytes)),
    ("intensity", "FLOP/B", None, "exact work over compulsory traffic", _intensity),
    ("flop_per_s", "FLOP/s", "higher", "exact work over time", _rate(cost.flops)),
    (
        "flop_per_s_half_causal",
        "FLOP/s",
        "higher",
        "the figure of most publications: dense work, halved for causal masks, over time",
        _rate(cost.flops_half_causal),
    ),
    ("bytes_per_s", "B/s", "higher", "compulsory traffic over time", _rate(cost.traffic_bytes)),
    ("tokens_per_s", "token/s", "higher", "query tokens over time", _rate(_tokens)),
    ("peak_bytes", "B", "lower", "peak memory of a call over inputs and outputs", _max("peak_memory")),
    ("total_bytes", "B", "lower", "peak memory of a call, with its outputs", _max("total_memory")),
    ("input_bytes", "B", None, "q, k and v", _count(lambda problem, _: cost.input_bytes(problem))),
    ("output_bytes", "B", None, "storage of what a call returns", _memory("outputs")),
    ("saved_bytes", "B", "lower", "saved for the backward pass", _memory("saved")),
    ("workspace_bytes", "B", "lower", "workspace that a call frees again", _memory("workspace")),
    ("predicted_bytes", "B", None, "predicted peak over inputs and outputs", _memory("predicted")),
    ("first_kept_bytes", "B", "lower", "memory that the first call leaves allocated in torch", _memory("first_kept")),
    ("reserved_bytes", "B", "lower", "reserved by torch's caching allocator", _memory("reserved")),
    ("outside_bytes", "B", "lower", "memory of the process on the GPU outside torch, by NVML", _memory("outside")),
    (
        "roofline_s",
        "s",
        None,
        "roofline bound: the least time by the measured ceilings of the device",
        _end("roofline", "seconds"),
    ),
    ("roofline_share", "", "higher", "roofline bound over the time; 1 reaches the roofline", _roofline_share),
    ("sheet_share", "", "higher", "FLOP/s over the dense peak of the data sheet", _sheet_share),
    ("energy_j", "J", "lower", "energy of a call, of the whole device", _median("energy")),
    (
        "energy_above_idle_j",
        "J",
        "lower",
        "energy of a call less that of the idle device",
        _median("energy_above_idle"),
    ),
    ("flop_per_j", "FLOP/J", "higher", "exact work over energy", _flop_per_j),
    ("time_wall_s", "s", "lower", "by the host's clock, end to end", _by_timing(Timing.WALL)),
    ("time_events_s", "s", "lower", "by CUDA events, one call", _by_timing(Timing.EVENTS)),
    ("time_graph_s", "s", "lower", "in a CUDA graph", _by_timing(Timing.GRAPH)),
    ("time_cupti_s", "s", "lower", "kernels alone, by CUPTI", _by_timing(Timing.CUPTI)),
    ("host_s", "s", "lower", "wall clock less time on the device", _host_s),
    ("max_abs_err", "", "lower", "largest error against float64, over all outputs", _max_abs_err),
    ("err_allowed", "", None, "largest error that is allowed, of the output with the largest error", _err_allowed),
    ("rms_err", "", "lower", "root mean square error against float64, of the worst output", _worst_output("rms")),
    ("err_vs_plain", "", "lower", "largest error over that of the plain formula in the same dtype", _err_vs_plain),
    ("not_finite", "", "lower", "NaN and Inf in an output that should have none", _not_finite),
    ("rel_err", "", "lower", "error over the norm of the reference, of the worst output", _worst_output("rel")),
    ("import_s", "s", "lower", "start of the process and its imports", _first("import")),
    ("first_call_s", "s", "lower", "the first call, compiling included", _first("first_call")),
    ("compile_s", "s", "lower", "compiling alone", _first("compile")),
    ("mask_build_s", "s", "lower", "building the block mask or dense mask", _first("mask_build")),
    (
        "plan_s",
        "s",
        "lower",
        "planning a batch of requests, once for all layers: places of tokens, its mask",
        _first("plan"),
    ),
    ("plan_layer_s", "s", "lower", "the same for each layer, where a suite states their number", _plan_layer_s),
    ("transfer_s", "s", "lower", "moving the tables of a batch of requests to the device", _first("transfer")),
    ("pack_s", "s", "lower", "writing a whole cache in the form of the library, before the call", _first("pack")),
)

METRICS = {
    name: Metric(name=name, unit=unit, better=better, summary=summary, formula=formula)
    for name, unit, better, summary, formula in _TABLE
}

# Names for several metrics.
GROUPS: dict[str, tuple[str, ...]] = {
    "memory": (
        "input_bytes", "output_bytes", "saved_bytes", "workspace_bytes", "peak_bytes", "predicted_bytes",
        "first_kept_bytes", "reserved_bytes", "outside_bytes",
    ),
    "roofline": ("flop_per_s", "bytes_per_s", "intensity", "roofline_s", "roofline_share", "sheet_share"),
    "energy": ("energy_j", "energy_above_idle_j", "flop_per_j"),
    "timers": ("time_wall_s", "time_events_s", "time_graph_s", "time_cupti_s", "host_s"),
    "errors": ("max_abs_err", "err_allowed", "rms_err", "rel_err", "err_vs_plain", "not_finite"),
    "once": ("import_s", "first_call_s", "compile_s", "mask_build_s", "plan_s", "transfer_s", "pack_s"),
}  # fmt: skip


def named(text: str, where: str = "--metrics") -> tuple[str, ...]:
    """A comma list of metrics and groups of them. Raises UnknownNameError."""
    names: dict[str, None] = {}
    for word in words(text, where) if text else ():
        if word not in METRICS and word not in GROUPS:
            raise UnknownNameError("metric", word, (*METRICS, *GROUPS), where=where)
        names |= dict.fromkeys(GROUPS.get(word, (word,)))
    return tuple(names)


def needs(names: Iterable[str]) -> tuple[str, ...]:
    """The groups among these metrics that are measured only on request: energy, timers."""
    shown = set(names)
    return tuple(group for group in ("energy", "timers") if not shown.isdisjoint(GROUPS[group]))


def impossible(restarts: Restarts) -> str:
    """Why the figures of a case cannot be true, else empty. Such a case is marked, and neither ranked nor gated."""
    if restarts.time is None:
        return ""
    if restarts.time.value <= 0:
        return f"a call in {restarts.time.value:g} s: the time is wrong"
    for check in (result.facts.get("new_inputs", NEW_INPUTS_RIGHT) for result in restarts.results):
        if check != NEW_INPUTS_RIGHT:
            return f"above a measured ceiling, {check}"
    if restarts.ceilings is None:
        return ""
    silicon = datasheet.silicon(restarts.ceilings.name, restarts.case.problem.dtype.value, restarts.ceilings.facts)
    rate = METRICS["flop_per_s"].compute(restarts)
    if silicon and rate and rate > silicon:
        limit = units.rate(silicon, "FLOP/s")
        return f"{units.rate(rate, 'FLOP/s')} is above the {limit} of the silicon: time or count is wrong"
    return ""


TIMERS_WITHIN, TIMERS_WITHIN_S = 0.05, 2e-6  # timing modes that are closer than either agree


def timers_disagree(restarts: Restarts) -> str:
    """Which timing modes of a case are more than 5 % and 2 us apart, and the likely cause; empty if none are."""
    times = {mode: METRICS[f"time_{mode}_s"].compute(restarts) for mode in Timing}
    measured = {mode: seconds for mode, seconds in times.items() if seconds}
    if len(measured) < 2:
        return ""
    low, high = min(measured, key=lambda mode: measured[mode]), max(measured, key=lambda mode: measured[mode])
    gap = measured[high] - measured[low]
    if gap <= TIMERS_WITHIN_S or gap <= TIMERS_WITHIN * measured[low]:
        return ""
    samples = [sample for result in restarts.results for sample in result.samples.values()]
    tags = {tag for sample in samples for block in sample.blocks for tag in block.tags}
    cause = _cause(low, high, measured, tags)
    both = f"{high} {units.seconds(measured[high])}, {low} {units.seconds(measured[low])}"
    return f"timers disagree: {both}: {cause}"


def _cause(low: Timing, high: Timing, measured: Mapping[Timing, float], tags: AbstractSet[str]) -> str:
    """The likely cause, by which timing mode differs from the others."""
    if low is Timing.GRAPH and measured[low] < measured[high] / 10:
        return "the graph captured nothing, or not all of it"
    if "host_bound" in tags:
        return "host-bound: the host queues slower than the device works"
    if high is Timing.WALL:
        return "launch-bound: the host's share of a call is large"
    if low is Timing.GRAPH:
        return "cache-resident: calls in a graph find the data of the previous call in the cache"
    if low is Timing.CUPTI:
        return "gaps between kernels, which CUPTI does not count"
    return "unknown"
