"""Formatting of quantities, and parsing of durations, sizes, shares and lists of numbers.

Everywhere else values are in base units (s, B, FLOP/s); they are scaled here, when they are printed. Bytes have binary
prefixes (MiB), rates and times decimal ones (TFLOP/s, ms).

Lists on the command line and in suites: `512..16384`, `1k..8k:x4`, `128,777,1k..4k`.

    list := item(,item)*
    item := N | LO..HI | LO..HI:xK | LO..HI:+K | LO..HI:nK

`xK` multiplies (x2 by default), `+K` adds, `nK` gives K points spaced evenly on a log scale. Both ends are always
included. `k` and `m` are binary: 4k is 4096. Values are sorted and unique.
"""

import re
from collections.abc import Callable, Sequence

from attnbench.errors import RangeError, UsageError

MAX_VALUES = 1_000_000  # in one list
MAX_INTEGER = 1 << 40  # above any length in tokens
MAX_PERCENT = 2.0  # more is printed as a factor

_INTEGER = re.compile(r"(\d{1,18})([km]?)")
_SUFFIX = {"": 1, "k": 1024, "m": 1024**2}
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"


def seconds(value: float | None) -> str:
    """Format a time in seconds, as 4.21 ms; None as a dash."""
    if value is None:
        return "-"
    if value >= 119.5:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{value / 3600:,.1f} h"
    scale, unit = next(((s, u) for s, u in _TIMES if abs(value) >= 0.9995 * s), _TIMES[-1])
    return f"{_three_digits(value / scale)} {unit}"


def about(value: float) -> str:
    """Format a predicted time in seconds with two digits, as 7.8 s, 12 ms or 4.5 min."""
    if value >= 119.5:
        scale, unit = (60.0, "min") if value < 7170 else (3600.0, "h")
    else:
        scale, unit = next(((s, u) for s, u in _TIMES if value >= 0.995 * s), _TIMES[-1])
    return f"{float(f'{value / scale:.2g}'):,g} {unit}"


def size(value: float | None) -> str:
    """Format a number of bytes, as 512 MiB; None as a dash."""
    if value is None:
        return "-"
    step = 0
    while abs(value) >= 1023.5 and step < len(_BINARY) - 1:
        value /= 1024
        step += 1
    return f"{value:.0f} B" if step == 0 else f"{_three_digits(value)} {_BINARY[step]}"


def rate(value: float | None, unit: str) -> str:
    """Format a rate in a unit such as `FLOP/s` or `B/s`, as 623 TFLOP/s; None as a dash."""
    if value is None:
        return "-"
    step = 0
    while abs(value) >= 999.5 and step < len(_DECIMAL) - 1:
        value /= 1000
        step += 1
    return f"{_three_digits(value)} {_DECIMAL[step]}{unit}"


def figure(value: float | None) -> str:
    """Format a number without a unit with three digits, as 5.2, 340 or 1.75e-5; None as a dash."""
    if value is None:
        return "-"
    return _short_exponent(f"{value:.0f}" if 100 <= abs(value) < 1e5 else f"{value:.3g}")


def exponential(value: float, digits: int = 1) -> str:
    """Format a number with an exponent and so many decimals, as 1.7e-5."""
    return _short_exponent(f"{value:.{digits}e}")


def _short_exponent(text: str) -> str:
    text = re.sub(r"e[+-]00$", "", text)
    return re.sub(r"e([+-])0*(?=\d)", lambda match: f"e{match[1].strip('+')}", text)


def short(value: float) -> str:
    """Format a length in tokens for tables and axes, as 512, 1k, 2k."""
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"


def percent(value: float | None, decimals: int | None = None) -> str:
    """Format a share with three digits or so many decimals, as 1.20 %, and above 200 % as a factor, as 38x."""
    if value is None:
        return "-"
    if value > MAX_PERCENT:
        return factor(value)
    return f"{_three_digits(100 * value) if decimals is None else f'{100 * value:.{decimals}f}'} %"


def whole_percent(value: float | None) -> str:
    """Format a share without decimals, as 45 %, and above 200 % as a factor; None as a dash."""
    return percent(value, 0)


def change(value: float | None) -> str:
    """Format a relative change, as +4.2 %, and one of more than 200 % as the ratio, as 38x; None as a dash."""
    return "-" if value is None else changes_format(value)(value)


def changes(values: Sequence[float]) -> list[str]:
    """Format relative changes in one unit: that of the largest."""
    return list(map(changes_format(max(values)), values))


def change_and_interval(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """Format a relative change and, in its unit, the interval, which is empty where an end is None."""
    if value is None or low is None or high is None:
        return change(value), ""
    show = changes_format(value)
    return show(value), between(show(low), show(high))


def changes_format(largest: float) -> Callable[[float], str]:
    """How relative changes beside each other are formatted: in percent, or as ratios."""
    return (lambda other: factor(1 + other)) if largest > MAX_PERCENT else _signed_percent


def _signed_percent(value: float) -> str:
    if value > MAX_PERCENT:
        return f"{100 * value:+,.0f} %" if value < 1e4 else f"{100 * value:+.0e} %"
    text = f"{100 * value:+.1f} %"
    return "0.0 %" if text in ("+0.0 %", "-0.0 %") else text


def between(low: str, high: str) -> str:
    """Format an interval of formatted values, as 1.02..1.05, or +1.0 % .. +2.0 % where these contain spaces."""
    return f"{low} .. {high}" if " " in low + high else f"{low}..{high}"


def margin(value: float | None) -> str:
    """Format an allowed relative change: as `change` does, without a sign."""
    return change(value).removeprefix("+")


def in_percent(value: float) -> str:
    """Format a relative change without a sign, in percent however large it is: for several in one sentence."""
    return _signed_percent(value).removeprefix("+")


def factor(value: float) -> str:
    """Format a ratio with two digits: 5.8x, 12x, 0.83x; of 100,000 or more in thousands or millions: 123kx."""
    if value >= 99_999.5:
        return f"{value / 1e6:.0f}Mx" if value >= 99_999_500 else f"{value / 1e3:.0f}kx"
    decimals = 0 if value >= 9.95 else 1 if value >= 0.995 else 2 if value >= 0.0995 else 3
    return f"{value:.{decimals}f}x"


def counted(number: int, noun: str) -> str:
    """`1 case`, `2 cases`, `1,200 cases`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def parse_seconds(text: str, name: str) -> float:
    """Parse `45s`, `2m`, `500ms`, `1.5h`, `90d` or a bare number of seconds.

    Raises UsageError, which names the option `name`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|min|h|d)?", text.strip())
    if not match:
        raise UsageError(f"{name}: not a duration: {text!r} (try 45s, 2m or 500ms)")
    return (
        float(match[1]) * {"ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}[match[2]]
    )


def parse_limit(text: str, name: str) -> float:
    """Parse a time limit above 0, as `parse_seconds` does: a kernel that hangs would never end without one."""
    seconds = parse_seconds(text, name)
    if not seconds:
        raise UsageError(f"{name}: {text!r} leaves no time for a case (try 60s, or a long time such as 24h)")
    return seconds


def parse_age(text: str, name: str) -> float:
    """Parse an age above 0, as `parse_seconds` does."""
    seconds = parse_seconds(text, name)
    if not seconds:
        raise UsageError(f"{name}: {text!r} is no age: give one above 0, as 90d")
    return seconds


def parse_share(text: str, name: str) -> float:
    """Parse `2%` or `0.02`, above 0 and at most 1. Raises UsageError, which names the option `name`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%)?", text.strip())
    share = float(match[1]) / (100 if match and match[2] else 1) if match else -1.0
    if not 0 < share <= 1:
        raise UsageError(f"{name}: not a share: {text!r} (try 2% or 0.02)")
    return share


def parse_bytes(text: str, name: str) -> int | float:
    """Parse `8GiB` as bytes (int), or `80%` as a share of free memory (float).

    Raises UsageError, which names the option `name`.
    """
    text = text.strip()
    if text.endswith("%"):
        return parse_share(text, name)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", text.lower())
    if not match or not float(match[1]):
        raise UsageError(f"{name}: not a size: {text!r} (try 80%, 8GiB or 512MiB)")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))


def integer(text: str, name: str = "") -> int:
    """Parse `512`, `4k` or `1m`. Raises RangeError, which names the option or key `name`."""
    match = _INTEGER.fullmatch(text.strip().lower())
    if not match:
        raise RangeError(f"{_at(name)}not an integer: {text!r} (try 512, 4k or 512..16384)")
    value = int(match[1]) * _SUFFIX[match[2]]
    if value > MAX_INTEGER:
        raise RangeError(f"{_at(name)}{text.strip()} is too large: at most {MAX_INTEGER}")
    return value


def integers(text: str | int, name: str = "") -> tuple[int, ...]:
    """Parse a list, as `128,1k..4k`; sorted and unique. Raises RangeError, which names the option or key `name`."""
    values: set[int] = set()
    for item in str(text).split(","):
        values.update(_expand(item.strip(), name))
        if len(values) > MAX_VALUES:
            raise RangeError(f"{_at(name)}{text!r} gives more than {MAX_VALUES} values")
    return tuple(sorted(values))


def words(text: str, name: str = "") -> tuple[str, ...]:
    """Split a comma-separated list, in its order. Raises RangeError for an empty item."""
    items = tuple(word.strip() for word in text.split(","))
    if not all(items):
        raise RangeError(f"{_at(name)}an empty item in {text!r}")
    return items


def _expand(item: str, name: str) -> list[int]:
    if ".." not in item:
        return [integer(item, name)]
    ends, _, step = item.partition(":")
    low_text, _, high_text = ends.partition("..")
    low, high = integer(low_text, name), integer(high_text, name)
    if low > high:
        raise RangeError(f"{_at(name)}empty range {ends!r}: the low end comes first")
    kind, amount = (step[:1], step[1:]) if step else ("x", "2")
    if kind not in ("x", "+", "n") or not amount:
        raise RangeError(f"{_at(name)}no step {step!r} in {item!r} (try :x4, :+512 or :n5)")
    count = integer(amount, name)
    if kind == "+":
        if count < 1:
            raise RangeError(f"{_at(name)}step {step!r} in {item!r} must be at least 1")
        if (high - low) // count > MAX_VALUES:
            raise RangeError(f"{_at(name)}{item!r} gives more than {MAX_VALUES} values")
        return [*range(low, high, count), high]
    if low < 1:
        raise RangeError(f"{_at(name)}{item!r} starts at {low}: a geometric range starts at 1 or more")
    if count < 2:
        raise RangeError(f"{_at(name)}step {step!r} in {item!r} must be at least 2")
    return _powers(low, high, count) if kind == "x" else _log_points(low, high, count, item, name)


def _powers(low: int, high: int, factor: int) -> list[int]:
    values = []
    while low < high:
        values.append(low)
        low *= factor
    return [*values, high]


def _log_points(low: int, high: int, count: int, item: str, name: str) -> list[int]:
    if count > MAX_VALUES:
        raise RangeError(f"{_at(name)}{item!r} gives more than {MAX_VALUES} values")
    between = [round(low * (high / low) ** (k / (count - 1))) for k in range(1, count - 1)]
    return [low, *between, high]


def _at(name: str) -> str:
    return f"{name}: " if name else ""


def parse_rounds(text: str, where: str) -> tuple[int, int]:
    """The minimum and maximum of `5..30`, or of `10`. Raises UsageError that names the option `where`."""
    low, _, high = text.partition("..")
    if not (low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low)):
        raise UsageError(f"{where}: not a range of rounds: {text!r} (try 5..30 or 10)")
    return int(low), int(high or low)
