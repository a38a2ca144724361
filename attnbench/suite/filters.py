"""Conditions on a cell: `seq=..4k`, `backend=flex,naive`; for `--only`, `--skip` and the exclusions of a suite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attnbench import ranges
from attnbench.arm import parse_device
from attnbench.attention.problem import Mode, Problem
from attnbench.errors import RangeError, UnknownNameError, UsageError
from attnbench.result import Record
from attnbench.suite.keys import AXES, spell, spell_score, words

# What a key is of a problem. The other keys, mode, backend and device, are not of the problem.
_OF_PROBLEM: Mapping[str, Callable[[Problem], Any]] = {
    "seq": lambda problem: max(problem.seq_q, problem.seq_kv),
    "seq_q": lambda problem: problem.seq_q,
    "seq_kv": lambda problem: problem.seq_kv,
    "batch": lambda problem: problem.batch,
    "tokens": lambda problem: problem.batch * max(problem.seq_q, problem.seq_kv),
    "heads": lambda problem: problem.heads,
    "kv_heads": lambda problem: problem.kv_heads,
    "head_dim": lambda problem: problem.head_dim,
    "head_dim_v": lambda problem: problem.head_dim_v,
    "dtype": lambda problem: problem.dtype,
    "mask": lambda problem: problem.mask,
    "score": lambda problem: spell_score(problem.score),
    "scale": lambda problem: spell(problem.score.scale),
    "softcap": lambda problem: spell(problem.score.softcap),
    "temperature": lambda problem: spell(problem.score.temperature),
    "bias": lambda problem: problem.score.bias,
    "weighting": lambda problem: problem.weighting,
    "sinks": lambda problem: spell(problem.sinks),
    "dropout": lambda problem: spell(problem.dropout),
    "positions": lambda problem: problem.positions,
    "scope": lambda problem: problem.scope,
    "kv_dtype": lambda problem: problem.kv_dtype,
    "autocast": lambda problem: problem.autocast,
    "page_size": lambda problem: spell(problem.page_size),
    "lengths": lambda problem: spell(problem.lengths),
    "returns": lambda problem: problem.returns,
}
_INTEGERS = frozenset(list(_OF_PROBLEM)[:9])
KEYS = (*_OF_PROBLEM, "mode", "backend", "device")


class Filter(Record, frozen=True, kw_only=True):
    """One condition: the value of `key` lies in one of the spans, ends included, or is one of the words."""

    key: str
    spans: tuple[tuple[int, int], ...] = ()
    words: tuple[str, ...] = ()

    def matches(self, problem: Problem, mode: Mode, backend: str, device: str) -> bool:
        """Whether a case fulfils the condition. `device=cpu` holds for `cpu:threads=1` too."""
        if self.key == "device":
            parts = set(device.split(":"))
            return any(parts.issuperset(word.split(":")) for word in self.words)
        if self.key == "backend":
            return backend in self.words
        if self.key == "mode":
            return mode in self.words
        value = _OF_PROBLEM[self.key](problem)
        return any(low <= value <= high for low, high in self.spans) if self.spans else value in self.words


def keeps(only: Sequence[str] | None, skip: Sequence[str] | None) -> Callable[[Any], bool]:
    """Whether a Result is wanted: it fulfils all of `--only` and none of `--skip`."""
    kept, dropped = ([parse_filter(text) for text in texts or ()] for texts in (only, skip))

    def wanted(result: Any) -> bool:
        facts = result.case.problem, result.case.mode, result.arm.backend, result.arm.device
        return all(one.matches(*facts) for one in kept) and not any(one.matches(*facts) for one in dropped)

    return wanted


def parse_filter(text: str) -> Filter:
    """Read `KEY=VALUES` of `--only` or `--skip`. `1k..4k` means between; with a step it is the list that it gives."""
    key, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise UsageError(f"--only, --skip: not KEY=VALUES: {text!r} (try seq=..4k or backend=flex)")
    return make_filter(key.strip().replace("-", "_"), values, f"--only, --skip {text!r}", KEYS)


def make_filter(key: str, values: Any, place: str, keys: tuple[str, ...]) -> Filter:
    """A condition on one of `keys`; values as in a suite file."""
    if key not in keys:
        raise UnknownNameError("key", key, keys, where=place)
    if key in _INTEGERS:
        items = values if isinstance(values, (list, tuple)) else str(values).split(",")
        spans = [span for item in items for span in _spans(str(item).strip(), place)]
        return Filter(key=key, spans=tuple(spans))
    if key == "device":
        return Filter(key=key, words=tuple(_device(word, place) for word in words(values, place)))
    if key == "backend":
        return Filter(key=key, words=words(values, place))
    return Filter(key=key, words=tuple(spell(value) for value in AXES[key](values, place)))


def _spans(item: str, place: str) -> list[tuple[int, int]]:
    low, dots, high = item.partition("..")
    if not dots or ":" in item:
        return [(value, value) for value in ranges.integers(item, place)]
    if not low and not high:
        raise RangeError(f"{place}: an empty range {item!r} (try ..4k or 8k..)")
    span = (ranges.integer(low, place) if low else 0, ranges.integer(high, place) if high else sys.maxsize)
    if span[0] > span[1]:
        raise RangeError(f"{place}: empty range {item!r}: the low end comes first")
    return [span]


def _device(word: str, place: str) -> str:
    try:
        parse_device(word)
    except UnknownNameError as unknown:
        raise UnknownNameError(unknown.kind, unknown.name, unknown.known, where=place) from None
    return word
