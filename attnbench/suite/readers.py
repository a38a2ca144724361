"""Read the values of axes from a suite file, an option or a filter; write one value as a user types it.

`place` names the file, key or option, for errors. `attnbench --help` imports this module, so everything that needs
numpy is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from attnbench import units
from attnbench.errors import ProblemError, RangeError, UnknownNameError, UsageError
from attnbench.suite.ragged import lengths

if TYPE_CHECKING:
    from attnbench.attention.scores import Score

AxisValue = int | float | str | bool | tuple[int, ...] | None
Values = tuple[AxisValue, ...]
Reader = Callable[[object, str], Values]
T = TypeVar("T")
R = TypeVar("R")


def _items(value: object) -> Iterable[object]:
    for item in value if isinstance(value, (list, tuple)) else (value,):
        yield from item.split(",") if isinstance(item, str) else (item,)


def integers(value: object, place: str) -> tuple[int, ...]:
    """Read positive integers, sorted and unique."""
    numbers: set[int] = set()
    for item in _items(value):
        numbers.update(units.integers(str(item), place))
    if not numbers:
        raise RangeError(f"{place}: an empty list")
    if min(numbers) < 1:
        raise RangeError(f"{place}: {min(numbers)}: must be at least 1")
    return tuple(sorted(numbers))


def words(value: object, place: str) -> tuple[str, ...]:
    """The words of a comma list or of a list, in their order; duplicates are preserved."""
    texts = tuple(str(item).strip() for item in _items(value))
    if not texts or not all(texts):
        raise RangeError(f"{place}: an empty item in {value!r}")
    return texts


def member(enum: str, noun: str) -> Reader:
    """Read members of an enumeration of `attention.choices`."""

    def read(value: object, place: str) -> tuple[StrEnum, ...]:
        known = problem_enum(enum)
        unique = tuple(dict.fromkeys(words(value, place)))
        for word in unique:
            if word not in tuple(known):
                raise UnknownNameError(noun, word, tuple(known), where=place)
        return tuple(map(known, unique))

    return read


def problem_enum(name: str) -> type[StrEnum]:
    """An enumeration of `attention.choices`."""
    from attnbench.attention import choices

    kind: type[StrEnum] = getattr(choices, name)
    return kind


def texts(parse: Callable[[str], str]) -> Reader:
    """Read words in a grammar; `parse` returns the canonical text of one."""

    def read(value: object, place: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_located(parse, word, place) for word in words(value, place)))

    return read


def grammar(module: str) -> Reader:
    """Read words in the grammar of a module of `attention`; its `parse` returns None for `none`."""

    def canonical(word: str) -> str:
        parsed = import_module(f"attnbench.attention.{module}").parse(word)
        return str(parsed.text) if parsed else "none"

    return texts(canonical)


def scope(word: str) -> str:
    """The canonical text of a scope."""
    from attnbench.attention.scope_text import parse_scope

    return parse_scope(word)[0]


def score(word: str) -> str:
    """The canonical text of a score, whose file must exist."""
    from attnbench.attention.scores import check_function

    score = parse_score(word)
    if score.function:
        check_function(score.function)
    return spell_score(score)


def switches(value: object, place: str) -> tuple[bool, ...]:
    """Read `true` and `false`."""
    known = {"true": True, "false": False}
    switches = []
    for item in _items(value):
        if (word := str(item).strip().lower()) not in known:
            raise UnknownNameError("switch", word, tuple(known), where=place)
        switches.append(known[word])
    return tuple(dict.fromkeys(switches))


def page_sizes(value: object, place: str) -> tuple[int, ...]:
    """Read powers of two, where 0 and `none` mean none."""
    sizes: list[int] = []
    for item in _items(value):
        text = str(item).strip()
        hint = f"{place}: {text}: must be a power of two, as 16 or 64, or 0 for no pages"
        try:
            numbers = (0,) if text in ("0", "none") else units.integers(text.removeprefix("-"), place)
        except RangeError as error:
            raise error if ".." in text else RangeError(hint) from None
        if text.startswith("-") or any(number & (number - 1) for number in numbers):
            raise RangeError(hint)
        sizes += numbers
    return tuple(dict.fromkeys(sizes))


def shares(value: object, place: str) -> tuple[float, ...]:
    """Read numbers from 0 to below 1."""
    shares = [_float(str(item), place, "try 0.1") for item in _items(value)]
    for share in shares:
        if not 0 <= share < 1:
            raise UsageError(f"{place}: {share:g}: from 0 to below 1")
    return tuple(dict.fromkeys(shares))


def _float(text: str, place: str, hint: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{place}: not a number: {text!r} ({hint})") from None


def numbers(field: str) -> Reader:
    """Read values of a field of Score, or `none`."""

    def read(value: object, place: str) -> tuple[float | None, ...]:
        return tuple(dict.fromkeys(_number(field, str(item).strip(), place) for item in _items(value)))

    return read


def _number(field: str, text: str, place: str) -> float | None:
    if text == "none":
        return None
    from attnbench.attention.scores import Score

    make: Callable[..., Score] = Score
    number = _float(text, place, "try 30, or none")
    checked: float | None = getattr(_located(lambda value: make(**{field: value}), number, place), field)
    return checked


def ragged(value: object, place: str) -> tuple[str, ...]:
    """Read the lengths of ragged batches, as `300-200-12`, as requests with as many queries as keys."""
    batches = (lengths(word, place) for word in words(value, place))
    return tuple(dict.fromkeys(requests("_".join(f"q{length}" for length in batch)) for batch in batches))


def kv(word: str) -> str:
    """The canonical text of a latent cache; empty for separate k and v."""
    from attnbench.attention.kv_cache import parse_latent

    cache = parse_latent(word)
    return cache.text if cache else ""


def requests(word: str) -> str:
    """The canonical text of a batch of requests."""
    from attnbench.attention.requests import parse, spell

    return spell(parse(word))


def shared_prefix(word: str) -> str:
    """The canonical text of a prefix that requests share; empty for `none`."""
    from attnbench.attention.shared_prefix import parse, spell

    return "" if word == "none" else spell(parse(word))


def _located(parse: Callable[[T], R], value: T, place: str) -> R:
    """The result of `parse`; the place is put in front of its error message."""
    try:
        return parse(value)
    except UnknownNameError as unknown:
        raise UnknownNameError(unknown.kind, unknown.name, unknown.known, where=place) from None
    except ProblemError as wrong:
        raise ProblemError(f"{place}: {wrong}") from None


@lru_cache(maxsize=1024)
def parse_score(text: str) -> Score:
    """Read `dot`, `dot:softcap=30`, `cosine:scale=20`, or `file.py:function`."""
    from attnbench.attention.scores import NUMBERS, Score, Similarity

    file, dot_py, rest = text.partition(".py:")
    word, *values = (rest if dot_py else text).split(":")
    fields: dict[str, float] = {}
    for value in values:
        key, equals, number = value.partition("=")
        if key not in NUMBERS:
            raise UnknownNameError(f"key of {word}", key, NUMBERS)
        try:
            fields[key] = float(number)
        except ValueError:
            hint = "not a number" if equals else "no value"
            raise ProblemError(f"score {text!r}: {hint}: {value!r} (try {key}=30)") from None
    make: Callable[..., Score] = Score
    if dot_py:
        return make(similarity=Similarity.FILE, function=f"{file}.py:{word}", **fields)
    if word not in tuple(Similarity):
        raise UnknownNameError("score", word, score_names())
    return make(similarity=Similarity(word), **fields)


def spell_score(score: Score) -> str:
    """The score as a user types it, without its bias, which is a separate axis."""
    from attnbench.attention.scores import NUMBERS

    numbers = {name: getattr(score, name) for name in NUMBERS}
    keys = (f"{key}={spell(value)}" for key, value in numbers.items() if value is not None)
    return ":".join([score.function or score.similarity.value, *keys])


def spell(value: object) -> str:
    """One value of an axis as a user types it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, float):
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value)


def score_names() -> Sequence[str]:
    """Every kind of score."""
    from attnbench.attention.scores import Similarity

    return (*(kind for kind in Similarity if kind is not Similarity.FILE), "file.py:function")


def examples(module: str, table: str, *others: str) -> Callable[[], Sequence[str]]:
    """A function that returns an example of every kind in a table of a module of `attention`, after the others."""

    def names() -> Sequence[str]:
        kinds = getattr(import_module(f"attnbench.attention.{module}"), table)
        return (*others, *(kind.example for kind in kinds.values()))

    return names
