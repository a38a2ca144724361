"""What an option accepts: checks that run where the option is parsed, before any command does anything.

A check takes the value and the option, and raises an error that names both. What it needs is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pkgutil import resolve_name
from typing import TypeVar

import msgspec
import typer

from attnbench.errors import UnknownNameError, UsageError

T = TypeVar("T")
Check = Callable[[str, str], object]
Names = Callable[[], Iterable[str]]


def callback(check: Check) -> Callable[[typer.CallbackParam, T], T]:
    """The check as a callback of Typer; of a repeatable option each value is checked."""

    def call(parameter: typer.CallbackParam, value: T) -> T:
        for item in value if isinstance(value, list | tuple) else (value,):
            if item not in (None, ""):
                check(str(item), parameter.opts[0])
        return value

    return call


def names_in(place: str) -> Names:
    """The names in `module:NAME` of attnbench, imported when they are needed."""
    return lambda: resolve_name(f"attnbench.{place}")


def parsed(place: str, several: bool = False) -> Check:
    """A value, or each item of a comma list, that the parser `module:function` of attnbench accepts."""

    def check(text: str, flag: str) -> None:
        from attnbench.units import words

        parse = resolve_name(f"attnbench.{place}")
        for item in words(text, flag) if several else (text,):
            parse(item, flag)

    return check


class ClosedSet(msgspec.Struct, frozen=True):
    """A check for words of a closed set, which the completion of a shell offers too."""

    noun: str
    names: Names
    several: bool = False  # a comma list

    def __call__(self, text: str, flag: str) -> None:
        from attnbench.units import words

        known = tuple(self.names())
        for word in words(text, flag) if self.several else (text,):
            if word not in known:
                raise UnknownNameError(self.noun, word, known, where=flag)


def one_of(noun: str, names: Names) -> ClosedSet:
    """One word of a closed set."""
    return ClosedSet(noun, names)


def some_of(noun: str, names: Names) -> ClosedSet:
    """A comma list of words of a closed set."""
    return ClosedSet(noun, names, several=True)


def at_least(minimum: int, maximum: int | None = None) -> Check:
    """A number of a typed option; Typer has parsed it."""

    def check(text: str, flag: str) -> None:
        if int(text) < minimum:
            raise UsageError(f"{flag}: {text}: at least {minimum}")
        if maximum is not None and int(text) > maximum:
            raise UsageError(f"{flag}: {text}: at most {maximum}")

    return check


def count(text: str, flag: str) -> None:
    """One number of at least 1: 512, 4k."""
    from attnbench.units import integer

    if integer(text, flag) < 1:
        raise UsageError(f"{flag}: {text}: at least 1")


def axis(name: str) -> Check:
    """The values of an axis of a problem."""

    def check(text: str, flag: str) -> None:
        from attnbench.suite.keys import AXES

        AXES[name].read(text, flag)

    return check


def settings(text: str, flag: str) -> None:
    """KEY=VALUES of an axis."""
    from attnbench.suite.keys import read_flags

    key, values = _pair(text, flag)
    read_flags({key.replace("-", "_"): values})


def tag(text: str, flag: str) -> None:
    """KEY=VALUE."""
    _pair(text, flag)


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value:
        raise UsageError(f"{flag}: not KEY=VALUE: {text!r}")
    return key.strip(), value


def suite(text: str, flag: str) -> None:
    """A shipped suite, or a file."""
    from attnbench.suite import load

    try:
        load(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error


backends = parsed("engine.plan:named_backends")


def backend_python(text: str, _flag: str) -> None:
    """NAME=PYTHON of an interpreter that exists."""
    from attnbench.engine.interpreters import parse

    parse([text])


def backend(text: str, flag: str) -> None:
    """One backend, or one arm of a run: `naive`, `naive#2`, `naive@head`."""
    from attnbench import backends as known

    name = text.partition("#")[0] if "#" in text else text.partition("@")[0]
    if known.is_folder(name):
        known.load(name)
    elif not known.is_file(name):
        one_of("backend", known.names)(name, flag)


def devices(text: str, flag: str) -> None:
    """A comma list of devices."""
    from attnbench.records.arm import parse_device
    from attnbench.units import words

    for word in words(text, flag):
        parse_device(word)


hardware = parsed("records.arm:check_hardware", several=True)


def address(text: str, _flag: str) -> None:
    """HOST:PORT of a cluster."""
    from attnbench.engine.cluster.nodes import parse_address

    parse_address(text)


def devices_or_sheets(text: str, flag: str) -> None:
    """A comma list of devices, and of devices with a data sheet."""
    from attnbench.errors import UnknownNameError
    from attnbench.machine.datasheet import SHEETS, sheets_named
    from attnbench.units import words

    for word in words(text, flag):
        # A comma that cuts a list of cores leaves a number.
        if word.startswith(("cpu", "cuda")) or word.replace("-", "").isdecimal():
            devices(word, flag)
        elif not sheets_named(word):
            raise UnknownNameError("device", word, ("cpu", "cuda:0", *(sheet.name for sheet in SHEETS)), where=flag)


duration = parsed("units:parse_seconds")  # 0 lifts the limit
age = parsed("units:parse_age")
limit = parsed("units:parse_limit")  # a time above 0
share = parsed("units:parse_share")
size = parsed("units:parse_bytes")
rounds = parsed("units:parse_rounds")
metrics = parsed("analysis.metrics:named")
inputs = parsed("attention.inputs:check", several=True)


def case_filter(text: str, flag: str) -> None:
    """KEY=VALUES of `--only` and `--skip`."""
    from attnbench.suite.filters import parse_filter

    condition = parse_filter(text, flag)
    if condition.key == "backend":
        for word in condition.words:
            backends(word, flag)


def shrink(text: str, _flag: str) -> None:
    """A share above 0 and at most 1."""
    from attnbench.suite import parse_shrink

    parse_shrink(text)


def shard(text: str, _flag: str) -> None:
    """K/N."""
    from attnbench.suite import parse_shard

    parse_shard(text)
