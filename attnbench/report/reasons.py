"""Reasons of refusals and failures as people read them: of one kind where only numbers differ, and not too long."""

import re
import textwrap
from collections.abc import Collection, Sequence
from itertools import takewhile

MAX_REASON = 100  # characters of a reason in a sentence
MAX_FOOTNOTE = 300  # characters of a reason below a table; `show --skipped` and the stored results have it whole
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)


def without_numbers(reason: str) -> str:
    """The reason with `#` in place of numbers: equal for failures of one kind."""
    return _NUMBER.sub("#", reason)


def shortened(reason: str, limit: int = MAX_REASON) -> str:
    """At most `limit` characters of a reason, whole words where they fit."""
    if len(reason) <= limit:
        return reason
    whole_words = textwrap.shorten(reason, limit, placeholder=" ...")
    return f"{reason[: limit - 4]} ..." if whole_words.strip() == "..." else whole_words


def similar(reasons: Collection[str]) -> str:
    """` (and 3 similar)`: how many there are beside the first, if they differ from it in numbers alone."""
    others = len(set(reasons)) - 1
    return f" (and {others} similar)" if others > 0 else ""


def kinds(reasons: Sequence[str]) -> list[str]:
    """The first reason of each kind, with the number of those that differ from it in numbers alone."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        groups.setdefault(without_numbers(reason), []).append(reason)
    return [f"{group[0]}{similar(group)}" for group in groups.values()]


def different_words(reason: str, other: str) -> str:
    """The words from the first to the last in which a reason differs from another one; empty if in none.

    Dots stand for the words beside several such ones, which would read as a sentence that is cut.
    """
    words, others = reason.split(), other.split()
    first = _alike(words, others)
    last = _alike(words[first:][::-1], others[first:][::-1])
    own = words[first : len(words) - last]
    before, after = (["..."] if len(own) > 1 and shared else [] for shared in (first, last))
    return " ".join([*before, *own, *after])


def _alike(words: Sequence[str], others: Sequence[str]) -> int:
    """How many words are the same from the beginning."""
    pairs = zip(words, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def literal(text: str) -> str:
    """A message of a kernel within a sentence of a page, where backticks would mark code."""
    return text.replace("`", "\\`")
