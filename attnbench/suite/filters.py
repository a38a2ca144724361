"""Conditions on cells: `seq=..4k`, `backend=flex,naive`; for `--only`, `--skip` and the exclusions of a suite."""

import sys
from collections.abc import Callable, Sequence

from attnbench import units
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import RangeError, UnknownNameError, UsageError
from attnbench.records.arm import parse_device
from attnbench.records.result import Record, Result
from attnbench.suite.keys import AXES
from attnbench.suite.readers import integers, spell, words


class Filter(Record, frozen=True, kw_only=True):
    """One condition: the value of `key` is in one of the spans, ends included, or is one of the words."""

    key: str
    spans: tuple[tuple[int, int], ...] = ()
    words: tuple[str, ...] = ()

    def matches(self, problem: Problem, mode: Mode, backend: str, device: str) -> bool:
        """Whether a case fulfils the condition. `device=cpu` also matches `cpu:threads=1`."""
        if self.key == "device":
            parts = set(device.split(":"))
            return any(parts.issuperset(word.split(":")) for word in self.words)
        if self.key == "backend":
            return backend in self.words
        if self.key == "mode":
            return mode in self.words
        value = AXES[self.key].of(problem)
        if isinstance(value, int) and self.spans:
            return any(low <= value <= high for low, high in self.spans)
        return spell(value) in self.words


def keeps(only: Sequence[str] | None, skip: Sequence[str] | None) -> Callable[[Result], bool]:
    """A predicate of results: whether one fulfils all of `--only` and none of `--skip`."""
    required, excluded = ([parse_filter(text) for text in texts or ()] for texts in (only, skip))

    def selected(result: Result) -> bool:
        facts = result.case.problem, result.case.mode, result.arm.backend, result.arm.device
        return all(term.matches(*facts) for term in required) and not any(term.matches(*facts) for term in excluded)

    return selected


def parse_filter(text: str, where: str = "--only, --skip") -> Filter:
    """Read `KEY=VALUES` of `--only` or `--skip`. `1k..4k` is an interval; with a step it is a list of values."""
    key, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise UsageError(f"{where}: not KEY=VALUES: {text!r} (try seq=..4k or backend=flex)")
    return make_filter(key.strip().replace("-", "_"), values, f"{where} {text!r}", filter_keys())


def axis_keys() -> tuple[str, ...]:
    """The axes that a case has a value of; it holds the heads of one rank, so not the number of ranks."""
    return tuple(name for name in AXES if name != "tp")


def filter_keys() -> tuple[str, ...]:
    """The keys of `--only` and `--skip`."""
    return (*axis_keys(), "backend", "device")


def make_filter(key: str, values: object, place: str, known: tuple[str, ...]) -> Filter:
    """A condition on one of the keys `known`; values as in a suite file."""
    if key not in known:
        raise UnknownNameError("key", key, known, where=place)
    if key == "device":
        return Filter(key=key, words=tuple(_device(word, place) for word in words(values, place)))
    if key == "backend":
        return Filter(key=key, words=words(values, place))
    if AXES[key].read is integers:
        items = values if isinstance(values, (list, tuple)) else str(values).split(",")
        spans = [span for item in items for span in _spans(str(item).strip(), place)]
        return Filter(key=key, spans=tuple(spans))
    return Filter(key=key, words=tuple(spell(value) for value in AXES[key].read(values, place)))


def _spans(item: str, place: str) -> list[tuple[int, int]]:
    low, dots, high = item.partition("..")
    if not dots or ":" in item:
        return [(value, value) for value in units.integers(item, place)]
    if not low and not high:
        raise RangeError(f"{place}: an empty range {item!r} (try ..4k or 8k..)")
    span = (units.integer(low, place) if low else 0, units.integer(high, place) if high else sys.maxsize)
    if span[0] > span[1]:
        raise RangeError(f"{place}: empty range {item!r}: the low end comes first")
    return [span]


def _device(word: str, place: str) -> str:
    try:
        parse_device(word)
    except UnknownNameError as unknown:
        raise UnknownNameError(unknown.kind, unknown.name, unknown.known, where=place) from None
    return word
