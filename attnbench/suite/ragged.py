"""The lengths of ragged batches: listed, from a log-normal distribution, or from a file.

A distribution gives its quantiles at the middles of equal shares, so that equal texts give equal lengths everywhere.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

from attnbench import units
from attnbench.errors import RangeError, UnknownNameError, UsageError

MAX_LENGTHS = 65_536
_KEYS = ("mean", "cv", "n")
_EXAMPLE = "lognormal:mean=1k:cv=1:n=64"


def lengths(word: str, place: str) -> tuple[int, ...]:
    """Read `300-200-12`, `lognormal:mean=1k:cv=1:n=64` or `file:lengths.txt`, which has one length in each line.

    cv is the standard deviation over the mean. Raises RangeError, UnknownNameError or UsageError, which name `place`.
    """
    if word.startswith("file:"):
        return _from_file(Path(word.removeprefix("file:")), place)
    if word.partition(":")[0] == "lognormal":
        return _lognormal(word, place)
    return tuple(units.integer(item, place) for item in word.split("-"))


def _from_file(path: Path, place: str) -> tuple[int, ...]:
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f"{place}: file:{path}: {reason}; use a text file with one length in each line") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    values = tuple(units.integer(line, f"{place}: {path}:{number}") for number, line in numbered)
    if not values:
        raise RangeError(f"{place}: {path} has no length: write one in each line")
    if len(values) > MAX_LENGTHS:
        raise RangeError(f"{place}: {path} has {len(values):,} lengths: at most {MAX_LENGTHS:,}")
    return values


def _lognormal(word: str, place: str) -> tuple[int, ...]:
    values: dict[str, str] = {}
    for part in word.split(":")[1:]:
        key, _, value = part.partition("=")
        if key not in _KEYS:
            raise UnknownNameError("key of lognormal", key, _KEYS, where=place)
        values[key] = value
    if missing := [key for key in _KEYS if key not in values]:
        raise RangeError(f"{place}: {word!r} has no {missing[0]}: use {_EXAMPLE}")
    mean, count = (units.integer(values[key], f"{place}: {key}") for key in ("mean", "n"))
    try:
        cv = float(values["cv"])
    except ValueError:
        cv = math.nan
    if not 0 <= cv <= 100:
        raise RangeError(f"{place}: cv={values['cv']}: a number from 0 to 100: use {_EXAMPLE}")
    if not (mean >= 1 and 1 <= count <= MAX_LENGTHS):
        raise RangeError(f"{place}: {word!r}: mean is at least 1, n from 1 to {MAX_LENGTHS:,}: use {_EXAMPLE}")
    deviation = math.sqrt(math.log1p(cv * cv))  # of the logarithm
    middle = math.log(mean) - deviation**2 / 2
    quantiles = (NormalDist().inv_cdf((number + 0.5) / count) for number in range(count))
    return tuple(max(1, round(math.exp(middle + deviation * quantile))) for quantile in quantiles)
