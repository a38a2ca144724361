"""Numbers as a page shows them, with signs in place of letters: 815 µs, 1.9×, 0.93..4.0×; and the unit of a column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from attnbench import units
from attnbench.analysis.traffic_totals import TrafficTotals
from attnbench.report import pivot

SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
LONG = ((7199.5, 3600.0, "h"), (119.5, 60.0, "min"))  # from how many seconds on, as units.seconds has it
BYTES = tuple((1024.0**power, name) for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB"), (0, "B")))
RATES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
MIN_PRINTED = 1e-6  # smaller numbers have an exponent
DASH = "–"


class Unit(msgspec.Struct, frozen=True):
    """The unit that all numbers of a column have."""

    scale: float
    name: str

    def show(self, value: float | None) -> str:
        return DASH if value is None or not math.isfinite(value) else number(value / self.scale)


def unit(values: Iterable[float | None], table: Sequence[tuple[float, str]], name: str = "") -> Unit:
    """The unit in the middle of these values; `name` is that of a rate, which gets a prefix."""
    logs = [math.log(value) for value in values if value is not None and value > 0 and math.isfinite(value)]
    middle = math.exp((min(logs) + max(logs)) / 2) if logs else 1.0
    scale, prefix = next(((scale, prefix) for scale, prefix in table if middle >= 0.9995 * scale), table[-1])
    return Unit(scale, prefix + name)


def per_hour_unit(totals: TrafficTotals) -> Unit:
    """The unit of attention time per hour of traffic, in every table."""
    every = (*(total.seconds for total in totals.totals), *(policy.seconds for policy in totals.policies))
    values = [totals.per_hour(seconds).value for seconds in every if seconds]
    for least, scale, name in LONG:
        if min(values, default=0.0) >= least:  # the headline has the fastest
            return Unit(scale, f"{name} per hour")
    return unit(values, SECONDS, " per hour")


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, or so many: 0.815, 8.28, 111, 1536."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) < MIN_PRINTED:
        return units.exponential(value, 2)
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(decimals, 0)}f}"


def seconds(value: float | None) -> str:
    """A time: 815 µs."""
    return DASH if value is None else units.seconds(value).replace(" us", " µs")


def size(value: float | None) -> str:
    """A number of bytes: 2.60 MiB."""
    return DASH if value is None else units.size(value)


def times(value: float | None) -> str:
    """A ratio with two digits: 1.9×, 12×, 0.83×."""
    return DASH if value is None else pivot.factor(value).replace("x", "×")


def between(low: float, high: float) -> str:
    """An interval of ratios: 0.93..4.0×."""
    return units.between(times(low).rstrip("×"), times(high))


def percent(value: float) -> str:
    """A share: 26 %, 0.4 %."""
    return f"{100 * value:.{0 if value >= 0.0995 else 1}f} %" if value >= 0.00995 else f"{100 * value:.2g} %"


def whole(count: int, noun: str) -> str:
    """`the only problem`, `both problems`, `all 7 problems`."""
    return f"the only {noun}" if count == 1 else f"both {noun}s" if count == 2 else f"all {count:,} {noun}s"


def listed(names: Sequence[str], word: str = "and", limit: int = 3) -> str:
    """`a, b and c`; of many the first, and how many more."""
    shown = list(names) if len(names) <= limit else [*names[: limit - 1], f"{len(names) - limit + 1} more"]
    return f" {word} ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def clipped(text: str, limit: int) -> str:
    """At most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def sentence(text: str) -> str:
    """With a capital letter; for texts that begin with no name."""
    return text[:1].upper() + text[1:]
