"""The notation of masks, biases and weightings: `word(:value|:key=value)*`, positional values first, then keys."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar, TypeVar

import msgspec

from attnbench.errors import ProblemError, RangeError, UnknownNameError
from attnbench.units import integer

Value = int | float | str | tuple[int, ...]


class Spec(msgspec.Struct, frozen=True):
    """One parsed text: its word selects the class, its values are the fields in their order."""

    noun: ClassVar[str]  # what the text describes: "mask", "bias" or "weighting"
    word: ClassVar[str]
    example: ClassVar[str] = ""
    not_in_text: ClassVar[frozenset[str]] = frozenset()  # fields that the notation does not have
    joint: ClassVar[str] = "-"  # between the numbers of a tuple

    @property
    def text(self) -> str:
        """The canonical text: defaults are left out, and a value after one that is left out has its key."""
        parts, skipped = [self.word], False
        for field in _fields(type(self)):
            if field.name in self.not_in_text:
                continue
            if not field.required and getattr(self, field.name) == field.default:
                skipped = True
                continue
            value = _written(getattr(self, field.name), self.joint)
            parts.append(f"{field.name.rstrip('_')}={value}" if skipped else value)
        return ":".join(parts)

    def error(self, message: str) -> ProblemError:
        """An error about this text."""
        return ProblemError(f"{self.noun} {self.text!r}: {message}")

    def check_at_least(self, **minimums: int) -> None:
        """Raise ProblemError if a field, or a number of a tuple, is below its minimum."""
        for name, minimum in minimums.items():
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,), default=minimum) < minimum:
                raise self.error(f"{self.assigned(name)}: must be at least {minimum}")

    def assigned(self, name: str) -> str:
        """A field as it is written with its key, as `shape=32x32`."""
        return f"{name.rstrip('_')}={_written(getattr(self, name), self.joint)}"


Kind = TypeVar("Kind", bound=Spec)


@cache
def _fields(kind: type[Spec]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a class; msgspec evaluates their annotations at each call."""
    return msgspec.structs.fields(kind)


def _written(value: Value, joint: str) -> str:
    if isinstance(value, tuple):
        return joint.join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse(part: str, kinds: Mapping[str, type[Kind]], noun: str, text: str, others: tuple[str, ...] = ()) -> Kind:
    """Parse `part`, which is all or a part of `text`. Raises ProblemError or UnknownNameError, which name it.

    `others` are words that another parser knows, for the hint at the nearest name.
    """
    word, *items = part.split(":")
    where = f"{noun} {text!r}"
    if word not in kinds:
        raise UnknownNameError(noun, word, (*others, *kinds), where=where if word != text else "")
    kind = kinds[word]
    fields = [field for field in _fields(kind) if field.name not in kind.not_in_text]
    names = [field.name.rstrip("_") for field in fields]
    values: dict[str, Value] = {}
    for position, item in enumerate(items):
        key, equals, rest = item.partition("=")
        name = key if equals else (names[position] if position < len(names) else "")
        if not name:
            raise ProblemError(f"{where}: {word} takes {len(names)} value(s), not {len(items)}")
        if name not in names:
            raise UnknownNameError(f"key of {word}", name, names, where=where)
        field = fields[names.index(name)]
        values[field.name] = _READERS[str(field.type)](rest if equals else item, where, kind)
    if missing := [field.name for field in fields if field.required and field.name not in values]:
        raise ProblemError(f"{where}: {word} needs {missing[0]}, as in {kind.example}")
    return kind(**values)


def _read_integer(value: str, where: str, kind: type[Spec]) -> int:
    if value.startswith("-"):
        raise ProblemError(f"{where}: {value} is negative; write a whole number, as in {kind.example}")
    return integer(value, where)


def _read_lengths(value: str, where: str, kind: type[Spec]) -> tuple[int, ...]:
    try:
        return tuple(_read_integer(item, where, kind) for item in value.split(kind.joint))
    except RangeError:
        expected = f"not whole numbers joined by {kind.joint!r}, as in {kind.example}"
        raise ProblemError(f"{where}: {value!r}: {expected}") from None


def _read_share(value: str, where: str, kind: type[Spec]) -> float:
    try:
        return float(value)
    except ValueError:
        raise ProblemError(f"{where}: not a number: {value!r}, as in {kind.example}") from None


_READERS: dict[str, Callable[[str, str, type[Spec]], Value]] = {
    str(int): _read_integer,
    str(float): _read_share,
    str(tuple[int, ...]): _read_lengths,
    str(str): lambda value, where, kind: value,
}
