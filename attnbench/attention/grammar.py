"""How masks, biases and weightings are written: `name(:value|:key=value)*`, positions first, then keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from attnbench.errors import ProblemError, UnknownNameError
from attnbench.ranges import integer


class Word(msgspec.Struct, frozen=True):
    """What one such text says: its fields are the values, in their order."""

    word: ClassVar[str]
    example: ClassVar[str] = ""
    unspelled: ClassVar[frozenset[str]] = frozenset()  # fields that are no part of the grammar

    @property
    def text(self) -> str:
        """As a user types it: defaults left out, and a key named where a value before it is left out."""
        parts, skipped = [self.word], False
        for field in msgspec.structs.fields(self):
            if field.name in self.unspelled:
                continue
            if not field.required and getattr(self, field.name) == field.default:
                skipped = True
                continue
            value = spell(getattr(self, field.name))
            parts.append(f"{field.name.rstrip('_')}={value}" if skipped else value)
        return ":".join(parts)


Kind = TypeVar("Kind", bound=Word)


def spell(value: Any) -> str:
    """A value as the grammar has it: lengths joined by -, a share without needless digits."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def read(part: str, kinds: Mapping[str, type[Kind]], noun: str, text: str, others: tuple[str, ...] = ()) -> Kind:
    """The word of `part`, which stands in `text`. Raises ProblemError or UnknownNameError, naming it.

    `others` are words that are read elsewhere, for the hint at the nearest name.
    """
    word, *values = part.split(":")
    where = f"{noun} {text!r}"
    if word not in kinds:
        raise UnknownNameError(noun, word, (*others, *kinds), where=where if word != text else "")
    kind = kinds[word]
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in kind.unspelled]
    names = [field.name.rstrip("_") for field in fields]
    given: dict[str, Any] = {}
    for position, value in enumerate(values):
        key, equals, rest = value.partition("=")
        name = key if equals else (names[position] if position < len(names) else "")
        if not name:
            raise ProblemError(f"{where}: {word} takes {len(names)} value(s), not {len(values)}")
        if name not in names:
            raise UnknownNameError(f"key of {word}", name, names, where=where)
        field = fields[names.index(name)]
        given[field.name] = _READERS[str(field.type)](rest if equals else value, where, kind)
    if missing := [field.name for field in fields if field.required and field.name not in given]:
        raise ProblemError(f"{where}: {word} needs {missing[0]}, as in {kind.example}")
    return kind(**given)


def _read_integer(value: str, where: str, kind: type[Word]) -> int:
    if value.startswith("-"):
        raise ProblemError(f"{where}: {value} is negative; write a whole number, as in {kind.example}")
    return integer(value, where)


def _read_lengths(value: str, where: str, kind: type[Word]) -> tuple[int, ...]:
    return tuple(_read_integer(item, where, kind) for item in value.split("-"))


def _read_share(value: str, where: str, kind: type[Word]) -> float:
    try:
        return float(value)
    except ValueError:
        raise ProblemError(f"{where}: not a number: {value!r}, as in {kind.example}") from None


_READERS: dict[str, Callable[[str, str, type[Word]], Any]] = {
    str(int): _read_integer,
    str(float): _read_share,
    str(tuple[int, ...]): _read_lengths,
    str(str): lambda value, where, kind: value,
}
