"""METRICS: every derived number, one row each: name, unit, which way is better, how it follows from what was measured.

A column, a plot axis and a gate criterion follow from a row. Units are base units; `units.py` scales them when printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import msgspec

from attnbench import stats, units
from attnbench.attention import cost
from attnbench.result import Result, Sample, Status
from attnbench.stats import Estimate

# The worst first: what a case says of itself when its launches ended differently.
WORST_FIRST = (
    Status.INCORRECT,
    Status.CRASHED,
    Status.ERROR,
    Status.TIMEOUT,
    Status.OOM,
    Status.UNAVAILABLE,
    Status.UNSUPPORTED,
    Status.OK,
    Status.SKIPPED,
)


class Joined:
    """All launches of one (case, arm), and those of the arm that its speed-up is against.

    Times are None unless every launch that was tried is ok; counts of the problem and error figures are always there.
    """

    def __init__(self, results: Sequence[Result], partner: Sequence[Result] = ()) -> None:
        self.results = tuple(sorted(results, key=lambda result: result.launch))
        self.partner = tuple(sorted(partner, key=lambda result: result.launch))
        self.case, self.arm = self.results[0].case, self.results[0].arm

    @cached_property
    def worst(self) -> Result:
        """The launch that gives status and reason. One that was skipped does not undo those that were measured."""
        return min(self.results, key=lambda result: WORST_FIRST.index(result.status))

    @property
    def status(self) -> Status:
        """ok if every launch that was tried is, else the worst."""
        return self.worst.status

    @property
    def launches(self) -> int:
        """How many of them were measured."""
        return len(self.times)

    @cached_property
    def times(self) -> list[Sample]:
        """One Sample a launch; empty unless all went well."""
        if self.status is not Status.OK:
            return []
        return [result.samples["time"] for result in self.results if "time" in result.samples]

    @cached_property
    def time(self) -> Estimate | None:
        """Seconds a call."""
        return stats.estimate(self.times)

    @property
    def noisy(self) -> bool:
        """Whether any launch was."""
        return any(stats.is_noisy(sample) for sample in self.times)

    @cached_property
    def speedup(self) -> Estimate | None:
        """The partner's time over this one's, paired by round where both were in the same rounds."""
        if not self.times:
            return None
        by_launch = {result.launch: result for result in self.partner}
        pairs = [pair for own in self.results if (pair := _paired(by_launch.get(own.launch), own))]
        if len(pairs) == len(self.times):
            return stats.ratio(pairs)
        reference = Joined(self.partner).time if self.partner else None
        return stats.unpaired_ratio(reference, self.time) if reference and self.time else None

    @property
    def reference(self) -> str | None:
        """The id of the arm that `speedup` is against."""
        if self.partner:
            return self.partner[0].arm.id
        return next((str(r.facts["reference"]) for r in self.results if "reference" in r.facts), None)

    def ratio_to(self, other: Joined) -> Estimate | None:
        """As `speedup`, against any arm that measured the same problem."""
        return Joined(self.results, other.results).speedup


def _paired(reference: Result | None, own: Result) -> stats.Pair | None:
    """The two Samples of one launch that share rounds: taken side by side, or beside a borrowed reference arm."""
    if "time" not in own.samples:
        return None
    if reference is not None and own.group and reference.group == own.group and "time" in reference.samples:
        return reference.samples["time"], own.samples["time"]
    borrowed = own.samples.get("reference_time")
    if borrowed is None or (reference is not None and own.facts.get("reference") != reference.arm.id):
        return None
    return borrowed, own.samples["time"]


Compute = Callable[[Joined], float | None]


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One derived number. None where it was not measured, never zero."""

    name: str
    unit: str  # a base unit; empty for a ratio or a count
    better: Literal["lower", "higher"] | None
    summary: str
    follow: Compute  # from the joined launches; may ask for the reference arm

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


def _max_abs_err(joined: Joined) -> float | None:
    """None where nothing was checked, and where an output held what is not finite."""
    found = _errors(joined, "max_abs")
    return None if None in found else max((value for value in found if value is not None), default=None)


def _rel_err(joined: Joined) -> float | None:
    """Outputs whose reference is zero have none."""
    return max((value for value in _errors(joined, "rel") if value is not None), default=None)


def _errors(joined: Joined, figure: str) -> list[float | None]:
    outputs: list[dict[str, float | None]] = [
        errors for result in joined.results for errors in result.facts.get("errors", {}).values()
    ]
    return [errors.get(figure) for errors in outputs]


def _rounds(joined: Joined) -> int | None:
    return sum(len(stats.by_round(sample)) for sample in joined.times) or None


def _tokens(problem: Any, _: Any) -> int:
    return sum(problem.lengths) or problem.batch * problem.seq_q


def _intensity(joined: Joined) -> float:
    problem, mode = joined.case.problem, joined.case.mode
    return cost.flops(problem, mode) / cost.traffic_bytes(problem, mode)


def _row(name: str, unit: str, better: Literal["lower", "higher", ""], summary: str, follow: Compute) -> Metric:
    return Metric(name=name, unit=unit, better=better or None, summary=summary, follow=follow)


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
        _row("max_abs_err", "", "lower", "largest error against float64, over all outputs", _max_abs_err),
        _row("rel_err", "", "lower", "error over the norm of the reference, of the worst output", _rel_err),
        _row("import_s", "s", "lower", "start of the process and its imports", _first("import")),
        _row("first_call_s", "s", "lower", "the first call, compiling included", _first("first_call")),
        _row("compile_s", "s", "lower", "compiling alone", _first("compile")),
        _row("mask_build_s", "s", "lower", "building the block mask or dense mask", _first("mask_build")),
    )
}


def impossible(joined: Joined, silicon_flop_per_s: float | None = None) -> str:
    """Why the figures of a case cannot be true, or nothing: such a case is marked, and neither ranked nor gated.

    `silicon_flop_per_s` is FLOP a clock x units x highest clock of the device, where that is known.
    """
    if joined.time is None:
        return ""
    if joined.time.value <= 0:
        return f"a call in {joined.time.value:g} s: the time is wrong"
    rate = METRICS["flop_per_s"].compute(joined)
    if silicon_flop_per_s and rate and rate > silicon_flop_per_s:
        most = units.rate(silicon_flop_per_s, "FLOP/s")
        return f"{units.rate(rate, 'FLOP/s')} is above the {most} of the silicon: time or count is wrong"
    return ""
