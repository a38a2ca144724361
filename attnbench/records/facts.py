"""The facts that have a range: a value outside it is a bug, and is not stored."""

import math
from typing import Any, TypeAlias

Facts: TypeAlias = dict[str, Any]  # plain JSON values by name; each backend and device adds its own names
STRICT = False  # tests set it: a fact outside its range raises FactRangeError

_ANY = (0.0, math.inf)
_POSITIVE = (1.0, math.inf)
_SHARE = (0.0, 1.0)
# By name, also inside a fact that is a table of others. In base units, but for `block_sparsity`, which is in percent.
RANGES: dict[str, tuple[float, float]] = {
    "block_sparsity": (0.0, 100.0),
    "verified_share": _SHARE,
    **dict.fromkeys(("ranks", "threads", "threads_of_a_rank", "keys_of_a_row", "layers"), _POSITIVE),
    **dict.fromkeys(
        (
            "settle_s", "moved_bytes", "seconds", "calls", "memory_outputs", "memory_saved", "memory_workspace",
            "memory_predicted", "memory_requested", "memory_reserved", "memory_outside", "memory_first_kept",
            "memory_first_call", "idle_cores",
        ),
        _ANY,
    ),
    # of environments: the machine, its software, its clock
    **dict.fromkeys(("timer_resolution_s", "cudnn", "l2_bytes", "power_limit_w", "mig_mode", "sm_clock_most_hz"), _ANY),
    **dict.fromkeys(("memory_bytes", "multiprocessors"), _POSITIVE),
    # of compiled kernels
    **dict.fromkeys(("registers", "spilled_registers", "shared_bytes"), _ANY),
    # of timed blocks
    **dict.fromkeys(
        (
            "minor_faults", "major_faults", "voluntary_switches", "involuntary_switches", "waiting_s", "stolen_s",
            "throttled", "load", "frequency_hz", "sm_clock_hz", "memory_clock_hz", "power_w", "clock_reasons",
            "processes",
        ),
        _ANY,
    ),
    "temperature_c": (-60.0, 200.0),
    # of errors; NaN is a value of a wrong output
    **dict.fromkeys(
        (
            "max_abs", "mean_abs", "rms", "rel", "nan", "inf", "budget", "plain_max", "plain_mean", "plain_rms",
        ),
        _ANY,
    ),
}  # fmt: skip
_BEFORE = "_before"  # of a reading that was taken before the block


class FactRangeError(Exception):
    """A fact outside its range: a bug of attnbench, or of the backend that reported it."""


def within_ranges(facts: Facts) -> tuple[Facts, dict[str, str]]:
    """The facts within their ranges, and by name why the others are left out."""
    accepted: Facts = {}
    dropped: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            accepted[name], nested = within_ranges(value)
            dropped |= nested
        elif reason := _objection(name, value):
            dropped[name] = reason
        else:
            accepted[name] = value
    if dropped and STRICT:
        raise FactRangeError("; ".join(dropped.values()))
    return accepted, dropped


def _objection(name: str, value: object) -> str:
    low, high = RANGES.get(name.removesuffix(_BEFORE), (-math.inf, math.inf))
    if not isinstance(value, int | float) or not (value < low or value > high):
        return ""
    limits = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    return f"{name} is missing: {value} was reported, and it is {limits}"
