"""The keys of a problem table, and how the text of each becomes a tuple of values.

A key is read alike wherever it stands: in a suite file, as an option, in a filter. `place` is that place, for errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

from attnbench import ranges
from attnbench.attention import biases, masks, weightings
from attnbench.attention.problem import Autocast, Dtype, KvDtype, Mode, Positions, Returns, canonical_scope
from attnbench.attention.scores import NUMBERS, Score, Similarity, file_of
from attnbench.errors import ProblemError, RangeError, UnknownNameError, UsageError

Reader = Callable[[Any, str], tuple[Any, ...]]


def _items(value: Any) -> Iterable[Any]:
    """The items of a comma list, or of a list of such."""
    for item in value if isinstance(value, (list, tuple)) else (value,):
        yield from item.split(",") if isinstance(item, str) else (item,)


def _integers(value: Any, place: str) -> tuple[int, ...]:
    found: set[int] = set()
    for item in _items(value):
        found.update(ranges.integers(item, place))
    if not found:
        raise RangeError(f"{place}: an empty list")
    if min(found) < 1:
        raise RangeError(f"{place}: {min(found)}: must be at least 1")
    return tuple(sorted(found))


def words(value: Any, place: str) -> tuple[str, ...]:
    """The words of a comma list or of a list, in their order; one that is given twice stands twice."""
    found = tuple(str(item).strip() for item in _items(value))
    if not found or not all(found):
        raise RangeError(f"{place}: an empty item in {value!r}")
    return found


def _members(kind: type[StrEnum], noun: str) -> Reader:
    def read(value: Any, place: str) -> tuple[StrEnum, ...]:
        return tuple(member(kind, word, noun, place) for word in dict.fromkeys(words(value, place)))

    return read


def member(kind: type[StrEnum], word: str, noun: str, place: str) -> StrEnum:
    """A word of a closed set."""
    if word not in tuple(kind):
        raise UnknownNameError(noun, word, tuple(kind), where=place)
    return kind(word)


def _masks(value: Any, place: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_located(masks.parse, word, place).text for word in words(value, place)))


def _biases(value: Any, place: str) -> tuple[str, ...]:
    found = (_located(biases.parse, word, place) for word in words(value, place))
    return tuple(dict.fromkeys(bias.text if bias else "none" for bias in found))


def _weightings(value: Any, place: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_located(weightings.parse, word, place).text for word in words(value, place)))


def _scopes(value: Any, place: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_located(canonical_scope, word, place) for word in words(value, place)))


def _switches(value: Any, place: str) -> tuple[bool, ...]:
    known = {"true": True, "false": False}
    found = []
    for item in _items(value):
        if (word := str(item).strip().lower()) not in known:
            raise UnknownNameError("switch", word, tuple(known), where=place)
        found.append(known[word])
    return tuple(dict.fromkeys(found))


def _sizes(value: Any, place: str) -> tuple[int, ...]:
    """Integers, and 0 for none."""
    found = [0 if str(item).strip() in ("0", "none") else _integers(item, place)[0] for item in _items(value)]
    return tuple(dict.fromkeys(found))


def _shares(value: Any, place: str) -> tuple[float, ...]:
    found = []
    for item in _items(value):
        try:
            share = float(item)
        except ValueError:
            raise UsageError(f"{place}: not a number: {item!r} (try 0.1)") from None
        if not 0 <= share < 1:
            raise UsageError(f"{place}: {item}: from 0 to below 1")
        found.append(share)
    return tuple(dict.fromkeys(found))


def _scores(value: Any, place: str) -> tuple[str, ...]:
    found = [_located(parse_score, word, place) for word in words(value, place)]
    for score in found:
        if score.function:
            _located(file_of, score.function, place)
    return tuple(dict.fromkeys(map(spell_score, found)))


def _numbers(field: str) -> Reader:
    def read(value: Any, place: str) -> tuple[float | None, ...]:
        return tuple(dict.fromkeys(_number(field, str(item).strip(), place) for item in _items(value)))

    return read


def _number(field: str, text: str, place: str) -> float | None:
    if text == "none":
        return None
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"{place}: not a number: {text!r} (try 30, or none)") from None
    return getattr(_located(lambda value: Score(**{field: value}), number, place), field)  # type: ignore[no-any-return]


def _ragged(value: Any, place: str) -> tuple[tuple[int, ...], ...]:
    batches = (tuple(ranges.integer(item, place) for item in word.split("-")) for word in words(value, place))
    return tuple(dict.fromkeys(batches))


def _located(parse: Callable[[Any], Any], value: Any, place: str) -> Any:
    """What `parse` gives; its complaint with the place in front."""
    try:
        return parse(value)
    except UnknownNameError as unknown:
        raise UnknownNameError(unknown.kind, unknown.name, unknown.known, where=place) from None
    except ProblemError as wrong:
        raise ProblemError(f"{place}: {wrong}") from None


@lru_cache(maxsize=1024)
def parse_score(text: str) -> Score:
    """Read `dot`, `dot:softcap=30`, `cosine:scale=20`, or `file.py:function`."""
    file, dot_py, rest = text.partition(".py:")
    word, *values = (rest if dot_py else text).split(":")
    fields: dict[str, Any] = {}
    for value in values:
        key, equals, number = value.partition("=")
        if key not in NUMBERS:
            raise UnknownNameError(f"key of {word}", key, NUMBERS)
        try:
            fields[key] = float(number)
        except ValueError:
            hint = "not a number" if equals else "no value"
            raise ProblemError(f"score {text!r}: {hint}: {value!r} (try {key}=30)") from None
    if dot_py:
        return Score(similarity=Similarity.FILE, function=f"{file}.py:{word}", **fields)
    if word not in tuple(Similarity):
        raise UnknownNameError("score", word, (*(one for one in Similarity if one != "file"), "file.py:function"))
    return Score(similarity=Similarity(word), **fields)


def spell_score(score: Score) -> str:
    """The score as a user types it, its bias aside, which is an axis of its own."""
    given = {name: getattr(score, name) for name in NUMBERS}
    keys = (f"{key}={spell(value)}" for key, value in given.items() if value is not None)
    return ":".join([score.function or score.similarity.value, *keys])


def spell(value: Any) -> str:
    """One value of an axis as a user types it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.12g}"
    return "none" if value is None else str(value)


AXES: Mapping[str, Reader] = {
    "seq": _integers,
    "seq_q": _integers,
    "seq_kv": _integers,
    "batch": _integers,
    "tokens": _integers,
    "heads": _integers,
    "kv_heads": _integers,
    "head_dim": _integers,
    "head_dim_v": _integers,
    "dtype": _members(Dtype, "dtype"),
    "mask": _masks,
    "score": _scores,
    "scale": _numbers("scale"),
    "softcap": _numbers("softcap"),
    "temperature": _numbers("temperature"),
    "bias": _biases,
    "weighting": _weightings,
    "sinks": _switches,
    "dropout": _shares,
    "scope": _scopes,
    "kv_dtype": _members(KvDtype, "format of keys and values"),
    "autocast": _members(Autocast, "autocast"),
    "tp": _integers,
    "page_size": _sizes,
    "positions": _members(Positions, "kind of positions"),
    "lengths": _ragged,
    "returns": _members(Returns, "return value"),
    "mode": _members(Mode, "mode"),
}
