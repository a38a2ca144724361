"""Which commit made a case slower: the paired gate at each step, good against the commit in question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

import msgspec

from attnbench.errors import UsageError
from attnbench.gate import trees
from attnbench.gate.judgement import Judged
from attnbench.result import Outcome

RED = (Outcome.REGRESSED, Outcome.BROKEN, Outcome.MISSING)


class Word(StrEnum):
    """What a step says of a commit."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"  # it cannot be said: inconclusive, or it does not run


class Found(msgspec.Struct, frozen=True):
    """Where the search ended: the first bad commit, or the first among several that could not be judged."""

    suspects: tuple[str, ...]
    steps: int

    @property
    def first_bad(self) -> str | None:
        """None where skipped commits leave several."""
        return self.suspects[0] if len(self.suspects) == 1 else None


def search(commits: Sequence[str], ask: Callable[[str], Word]) -> Found:
    """`commits` from the one after the good to the bad one, which is known to be bad; the first bad one of them.

    Halves what is left; where the middle cannot be judged the nearest other one is asked.
    """
    low, high, skipped, steps = -1, len(commits) - 1, set[int](), 0
    while True:
        left = [place for place in range(low + 1, high) if place not in skipped]
        if not left:
            return Found(tuple(commits[low + 1 : high + 1]), steps)
        middle = (low + high) / 2
        place = min(left, key=lambda one: (abs(one - middle), one))
        word = ask(commits[place])
        steps += 1
        if word is Word.GOOD:
            low = place
        elif word is Word.BAD:
            high = place
        else:
            skipped.add(place)


def commits(good: str, bad: str) -> list[str]:
    """Those after `good` up to `bad`, oldest first, along the first parents. UsageError where good is no ancestor."""
    first, last = trees.commit_of(good, "GOOD"), trees.commit_of(bad, "BAD")
    found = trees.between(first, last)
    if not found:
        raise UsageError(f"{good} is no earlier commit than {bad}")
    return found


def word(judged: Judged) -> Word:
    """Bad if any verdict is red, good if time is the same or better, else it cannot be said."""
    seen = {one.outcome for one in judged.verdicts}
    if any(one.outcome is Outcome.BROKEN and "unavailable" in one.reason for one in judged.verdicts):
        return Word.SKIP  # the commit does not run at all
    if seen & set(RED):
        return Word.BAD
    if not seen or Outcome.INCONCLUSIVE in seen:
        return Word.SKIP
    return Word.GOOD
