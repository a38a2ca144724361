"""The timer and the state of the caches that a device is measured with, by default and as requested."""

from attnbench.errors import UnknownNameError, UsageError
from attnbench.records.result import Cache, Timing

ALL_TIMINGS = "all"  # the default mode in the rounds, then every other mode once
TIMINGS = (*Timing, ALL_TIMINGS)


def timing(text: str, kind: str) -> Timing:
    """The mode of `--timing` on a kind of device; by default wall on a CPU, events on a GPU."""
    default = Timing.EVENTS if kind == "cuda" else Timing.WALL
    if not text or text == ALL_TIMINGS:
        return default
    if text not in tuple(Timing):
        raise UnknownNameError("mode", text, TIMINGS, where="--timing")
    if kind == "cpu" and text != Timing.WALL:
        raise UsageError(f"--timing {text}: a CPU has only wall")
    return Timing(text)


def cache(text: str, kind: str) -> Cache:
    """The state of `--cache` on a kind of device; by default warm on a CPU, cold on a GPU."""
    if not text:
        return Cache.COLD if kind == "cuda" else Cache.WARM
    if text not in tuple(Cache):
        raise UnknownNameError("state", text, Cache, where="--cache")
    if kind == "cpu" and text != Cache.WARM:
        raise UsageError("--cache cold: a CPU is measured with warm caches")
    return Cache(text)
