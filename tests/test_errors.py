"""Mistakes of a user: their exit codes, their kinds and their words."""

from __future__ import annotations

import re

import pytest

from attnbench import errors
from attnbench.attention.problem import Dtype
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
        ("NothingMeasuredError", 6),
    ],
)
def test_kind_has_its_exit_code(kind: str, code: int) -> None:
    assert getattr(errors, kind)("x").exit == code


def test_every_kind_stands_in_the_tree_of_the_docstring() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AttnbenchError)}
    assert kinds == set(re.findall(r"\w+Error", errors.__doc__ or ""))


def test_interruption_has_the_code_of_the_signal() -> None:
    assert Exit.INTERRUPTED == 128 + 2


def test_unknown_name_comes_with_the_nearest() -> None:
    assert str(UnknownNameError("backend", "navie", ("naive", "flex"))) == "no backend 'navie'; did you mean 'naive'?"


def test_member_of_a_closed_set_is_hinted_at_as_it_is_typed() -> None:
    assert str(UnknownNameError("dtype", "bf61", Dtype)) == "no dtype 'bf61'; did you mean 'bf16'?"


def test_of_two_names_that_are_as_near_the_one_of_like_length_is_meant() -> None:
    assert str(UnknownNameError("key", "sek", ("seq_kv", "seq"))) == "no key 'sek'; did you mean 'seq'?"


def test_unknown_name_without_a_near_one_comes_with_all() -> None:
    assert str(UnknownNameError("backend", "xyz", ("naive", "flex"))) == "no backend 'xyz'; there are naive, flex"


def test_unknown_name_where_nothing_is_known_says_so() -> None:
    assert str(UnknownNameError("run", "last", ())) == "no run 'last'; there are none"


def test_unknown_name_begins_with_its_place() -> None:
    assert str(UnknownNameError("mask", "casual", ("causal",), where="--mask")).startswith("--mask: no mask 'casual'")
