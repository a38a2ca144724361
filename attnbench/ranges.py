"""The grammar of lists on the command line and in suites: `512..16384`, `1k..8k:x4`, `128,777,1k..4k`.

    list := item(,item)*
    item := N | LO..HI | LO..HI:xK | LO..HI:+K | LO..HI:nK

`xK` multiplies (x2 by default), `+K` adds, `nK` gives K points spaced evenly on a log scale. Both ends are always
taken. `k` and `m` are binary: 4k is 4096. Values come out sorted and unique.
"""

from __future__ import annotations

import re

from attnbench.errors import RangeError

MOST_VALUES = 1_000_000
LARGEST = 1 << 40  # beyond any length; products of a few such sizes still fit into what is stored

_INTEGER = re.compile(r"(\d{1,18})([km]?)")
_SUFFIX = {"": 1, "k": 1024, "m": 1024**2}


def integer(text: str, name: str = "") -> int:
    """`512`, `4k` or `1m`; `name` is the option or key that it came from."""
    match = _INTEGER.fullmatch(text.strip().lower())
    if not match:
        raise RangeError(f"{_at(name)}not an integer: {text!r} (try 512, 4k or 512..16384)")
    value = int(match[1]) * _SUFFIX[match[2]]
    if value > LARGEST:
        raise RangeError(f"{_at(name)}{text.strip()} is too large: at most {LARGEST}")
    return value


def integers(text: str | int, name: str = "") -> tuple[int, ...]:
    """Every value of a list, sorted and unique."""
    values: set[int] = set()
    for item in str(text).split(","):
        values.update(_expand(item.strip(), name))
        if len(values) > MOST_VALUES:
            raise RangeError(f"{_at(name)}{text!r} gives more than {MOST_VALUES} values")
    return tuple(sorted(values))


def words(text: str, name: str = "") -> tuple[str, ...]:
    """The words of a comma list, in their order."""
    found = tuple(word.strip() for word in text.split(","))
    if not all(found):
        raise RangeError(f"{_at(name)}an empty item in {text!r}")
    return found


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
        if (high - low) // count > MOST_VALUES:
            raise RangeError(f"{_at(name)}{item!r} gives more than {MOST_VALUES} values")
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
    if count > MOST_VALUES:
        raise RangeError(f"{_at(name)}{item!r} gives more than {MOST_VALUES} values")
    between = [round(low * (high / low) ** (k / (count - 1))) for k in range(1, count - 1)]
    return [low, *between, high]


def _at(name: str) -> str:
    return f"{name}: " if name else ""
