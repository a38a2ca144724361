"""Axes with their ticks, and values as text with signs: 815 µs, 2.60 MiB, 1.9×."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from attnbench import units
from attnbench.report import quantities
from attnbench.report.charts.figure import ChartAxis, Tick
from attnbench.report.charts.svg import text_width

MAX_TICKS = 6
MAX_DOUBLINGS = 1000  # range of a factor whose ticks are powers of two
MAX_NAME = 16  # characters of a name on an axis


def shown(value: float | None, unit: str) -> str:
    """A value with its unit: `s`, `B`, `x` for a factor, empty for a number, or a rate such as `FLOP/s`."""
    simple = {"s": quantities.seconds, "B": quantities.size, "x": quantities.times}
    if unit in simple:
        return simple[unit](value)
    return quantities.DASH if value is None else units.rate(value, unit) if unit else units.figure(value)


def log_axis(values: Iterable[float], unit: str, title: str, pad: float = 0.06) -> ChartAxis:
    """A logarithmic axis over positive values, with ticks at round values of the unit."""
    values = list(values)
    low, high = min(values), max(values)
    if high / low < 4:
        middle = math.sqrt(low * high)
        low, high = min(low, middle / 2), max(high, middle * 2)
    room = (high / low) ** pad
    low, high = low / room, high * room
    return ChartAxis(low=low, high=high, log=True, title=title, ticks=_log_ticks(low, high, unit), grid=True)


def linear_axis(values: Iterable[float], unit: str, title: str, from_zero: bool = True) -> ChartAxis:
    """A linear axis, from zero unless told otherwise."""
    values = list(values)
    low, high = (0.0 if from_zero else min(values)), max(values)
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _step((high - low) / (MAX_TICKS - 1))
    start = math.ceil(low / step - 1e-9)
    ticks = [step * place for place in range(start, int(high * 1.05 / step) + 1)]
    return ChartAxis(low=low, high=high * 1.05 if high > 0 else high, title=title, grid=True, ticks=tuple(
        Tick(value, tick_text(value, unit)) for value in ticks
    ))  # fmt: skip


def percent_axis(ratios: Iterable[float], title: str) -> ChartAxis:
    """A linear axis over ratios near 1, with ticks at their changes: -5 %, 0 %, +5 %."""
    ratios = list(ratios)
    room = max(0.08 * (max(ratios) - min(ratios)), 0.002)
    low, high = min(ratios) - room, max(ratios) + room
    step = _step((high - low) / (MAX_TICKS - 1))
    places = range(math.ceil((low - 1) / step), math.floor((high - 1) / step) + 1)
    ticks = tuple(Tick(1 + step * place, f"{100 * step * place:+.3g} %" if place else "0 %") for place in places)
    return ChartAxis(low=low, high=high, title=title, ticks=ticks, grid=True)


def length_axis(
    values: Sequence[float], title: str, width: float, show: Callable[[float], str] = units.short
) -> ChartAxis:
    """A log2 axis with ticks at measured values, as many as fit `width` pixels."""
    values = sorted(values)
    low, high = values[0], values[-1]
    room = (high / low) ** 0.04 if high > low else 1.3
    axis = ChartAxis(low=low / room, high=high * room, log=True, title=title)
    texts = {value: show(value) for value in values}
    return replace(axis, ticks=_fitting(axis, texts, width))


def ordinal_axis(names: Sequence[str], title: str, width: float) -> ChartAxis:
    """Places 0, 1, 2, ... with the names that fit `width` pixels."""
    axis = ChartAxis(low=-0.5, high=len(names) - 0.5, title=title)
    cut = {
        float(place): name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…" for place, name in enumerate(names)
    }
    return replace(axis, ticks=_fitting(axis, cut, width))


def _fitting(axis: ChartAxis, texts: Mapping[float, str], width: float) -> tuple[Tick, ...]:
    """Ticks from the left, without those that would touch the one before."""
    ticks: list[Tick] = []
    end = -math.inf
    for value, text in texts.items():
        place, half = axis.share(value) * width, text_width(text) / 2
        if place - half >= end + 6:
            ticks.append(Tick(value, text))
            end = place + half
    return tuple(ticks)


def row_axis(count: float) -> ChartAxis:
    """Rows 0, 1, 2, ... from the top."""
    return ChartAxis(low=0, high=count, down=True)


def tick_text(value: float, unit: str) -> str:
    """A round value, without needless digits: 100 µs, 64 MiB, 2×."""
    if unit == "x":
        return f"{_scaled(value, quantities.RATES).replace(' ', '') if value >= 1000 else f'{value:g}'}×"
    if value == 0:
        return "0"
    if unit == "s":
        return _scaled(value, quantities.SECONDS)
    if unit == "B":
        return _scaled(value, quantities.BYTES)
    if unit:
        return f"{_scaled(value, quantities.RATES)}{unit}"
    return f"{value:g}" if 1e-3 <= abs(value) < 1e5 else units.figure(value)


def _scaled(value: float, table: Sequence[tuple[float, str]]) -> str:
    scale, name = next(((scale, name) for scale, name in table if abs(value) >= scale * 0.9995), table[-1])
    return f"{value / scale:.3g} {name}"


def _log_ticks(low: float, high: float, unit: str) -> tuple[Tick, ...]:
    """Powers of ten, or of two for bytes and factors, with steps between them while they fit."""
    base = 2.0 if unit == "B" or (unit == "x" and high / low < MAX_DOUBLINGS) else 10.0
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    powers = [base**power for power in range(first, last + 1)]
    candidates = [[step * power for power in powers for step in (1, 2, 5)]] if base == 10 else []
    candidates += [powers[::skip] for skip in (1, 2, 3, 4, 5, 10, 20)]
    fitting = ([value for value in values if low <= value <= high] for values in candidates)
    chosen = next((values for values in fitting if len(values) <= MAX_TICKS), [])
    return tuple(Tick(value, tick_text(value, unit)) for value in chosen)


def _step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= least * (1 - 1e-9))
