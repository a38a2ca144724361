"""User-facing exceptions: exit codes, classes and messages."""

from __future__ import annotations

import re

import pytest

from attnbench import errors
from attnbench.attention.choices import Dtype
from attnbench.errors import AttnbenchError, Exit, UnknownNameError


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("UsageError", 2),
        ("RangeError", 2),
        ("ProblemError", 2),
        ("SuiteError", 2),
        ("UnsupportedPlatformError", 2),
        ("StoreError", 2),
        ("LockedError", 2),
        ("SchemaError", 2),
        ("NotComparableError", 4),
    ],
)
def test_kind_has_its_exit_code(kind: str, code: int) -> None:
    assert getattr(errors, kind)("x").exit == code


def test_docstring_lists_every_class() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AttnbenchError)}
    assert kinds == set(re.findall(r"\w+Error", errors.__doc__ or ""))


def test_interruption_has_the_code_of_the_signal() -> None:
    assert Exit.INTERRUPTED == 128 + 2


def test_unknown_name_suggests_the_nearest() -> None:
    assert str(UnknownNameError("backend", "navie", ("naive", "flex"))) == "no backend 'navie'; did you mean 'naive'?"


def test_suggestion_from_an_enum_is_its_value() -> None:
    assert str(UnknownNameError("dtype", "bf61", Dtype)) == "no dtype 'bf61'; did you mean 'bf16'?"


def test_of_two_similar_names_the_one_of_similar_length_is_suggested() -> None:
    assert str(UnknownNameError("key", "sek", ("seq_kv", "seq"))) == "no key 'sek'; did you mean 'seq'?"


def test_unknown_name_without_a_similar_one_lists_all() -> None:
    assert str(UnknownNameError("backend", "xyz", ("naive", "flex"))) == "no backend 'xyz'; there are naive, flex"


@pytest.mark.parametrize(("name", "known"), [("nosuch", "zentorch"), ("nosuch", "noise"), ("naive", "machine")])
def test_a_name_that_is_no_typing_error_has_no_suggestion(name: str, known: str) -> None:
    assert str(UnknownNameError("name", name, (known, "x"))) == f"no name {name!r}; there are {known}, x"


def test_unknown_name_without_known_names() -> None:
    assert str(UnknownNameError("run", "last", ())) == "no run 'last'; there are none"


def test_unknown_name_message_begins_with_its_place() -> None:
    assert str(UnknownNameError("mask", "casual", ("causal",), where="--mask")).startswith("--mask: no mask 'casual'")


def test_windows_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(errors.UnsupportedPlatformError, match="WSL"):
        errors.check_platform()
    monkeypatch.setattr("sys.platform", "linux")
    errors.check_platform()
