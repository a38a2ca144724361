"""Values of axes, read from what a user types or a file holds."""

from __future__ import annotations

import pytest

from attnbench.attention import masks
from attnbench.errors import UnknownNameError, UsageError
from attnbench.suite import readers
from attnbench.suite.keys import with_flag


def test_switches_are_true_or_false() -> None:
    assert readers.switches("true,False,true", "--sinks") == (True, False)
    with pytest.raises(UnknownNameError, match="--sinks: no switch 'yes'; there are true, false"):
        readers.switches("yes", "--sinks")


def test_shares_are_below_one() -> None:
    assert readers.shares([0, 0.25], "--dropout") == (0.0, 0.25)
    with pytest.raises(UsageError, match="--dropout: 1: from 0 to below 1"):
        readers.shares("1", "--dropout")


def test_pages_are_powers_of_two_or_none() -> None:
    assert readers.page_sizes("none,16..64:x2,0", "--set page_size") == (0, 16, 32, 64)
    for text in ("3", "-1", "16,24"):
        with pytest.raises(
            UsageError, match=rf"page_size: {text[-2:].strip(',')}: must be a power of two, as 16 or 64, or 0"
        ):
            readers.page_sizes(text, "problem[0].page_size")
    with pytest.raises(
        UsageError, match=r"--set page_size: 1\.5: must be a power of two, as 16 or 64, or 0 for no pages"
    ):
        readers.page_sizes("1.5", "--set page_size")


def test_examples_are_one_of_each_kind() -> None:
    first, *names = readers.examples("masks", "PRIMITIVES", "none")()
    assert first == "none"
    assert all(word in masks.parse(name).words for word, name in zip(masks.PRIMITIVES, names, strict=True))


def test_a_list_is_spelled_with_dashes() -> None:
    assert (readers.spell((5, 3)), readers.spell(())) == ("5-3", "none")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("page_size=3: use a power of 2", "--set page_size=3: use a power of 2"),
        ("requests 'q1s': no segment", "--requests q1s: no segment"),
        ("mask=causal: unsupported", "mask=causal: unsupported"),
        ("nothing", "nothing"),
    ],
)
def test_a_reason_names_the_option_that_was_typed(reason: str, expected: str) -> None:
    assert with_flag(reason, {"page_size", "requests"}) == expected
