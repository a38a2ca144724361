"""The commit that made a case slower: each step gates the good commit against the commit in question."""

from collections.abc import Callable, Sequence
from enum import StrEnum

import msgspec

from attnbench import units
from attnbench.errors import UsageError
from attnbench.gate import trees
from attnbench.gate.judgement import RED, GateVerdicts
from attnbench.records.result import Outcome, Status


class StepOutcome(StrEnum):
    """The outcome of one step."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"  # inconclusive, or the commit does not run


class SearchResult(msgspec.Struct, frozen=True):
    """The end of a search: the first bad commit, or several, where skipped commits leave it open."""

    suspects: tuple[str, ...]
    steps: int

    @property
    def first_bad(self) -> str | None:
        """The first bad commit; None where skipped commits leave several."""
        return self.suspects[0] if len(self.suspects) == 1 else None


def search(commits: Sequence[str], test: Callable[[str], StepOutcome]) -> SearchResult:
    """Find the first bad one of `commits`, which go from the one after the good commit to the known bad one.

    Each step halves what is left; where the middle is skipped, the nearest other commit is tested.
    """
    low, high, skipped, steps = -1, len(commits) - 1, set[int](), 0
    while True:
        left = [index for index in range(low + 1, high) if index not in skipped]
        if not left:
            return SearchResult(tuple(commits[low + 1 : high + 1]), steps)
        middle = (low + high) / 2
        place = min(left, key=lambda index: (abs(index - middle), index))
        outcome = test(commits[place])
        steps += 1
        if outcome is StepOutcome.GOOD:
            low = place
        elif outcome is StepOutcome.BAD:
            high = place
        else:
            skipped.add(place)


def commits(good: str, bad: str) -> list[str]:
    """The commits after `good` up to `bad`, oldest first, along first parents. UsageError if good is no ancestor."""
    first, last = trees.commit_of(good, "GOOD"), trees.commit_of(bad, "BAD")
    between = trees.between(first, last)
    if not between:
        raise UsageError(f"{good} is no earlier commit than {bad}{trees.deepening()}")
    return between


def step_outcome(judgement: GateVerdicts) -> StepOutcome:
    """Bad if any verdict is a regression or failure, good if time is the same or better, else skip."""
    outcomes = {verdict.outcome for verdict in judgement.verdicts}
    if any(verdict.head_status is Status.UNAVAILABLE for verdict in judgement.verdicts):
        return StepOutcome.SKIP  # the commit does not run at all
    if outcomes.intersection(RED):
        return StepOutcome.BAD
    return StepOutcome.SKIP if not outcomes or Outcome.INCONCLUSIVE in outcomes else StepOutcome.GOOD


def why_skipped(judgement: GateVerdicts) -> str:
    """Why a step is neither good nor bad, for people; empty for one that is."""
    if step_outcome(judgement) is not StepOutcome.SKIP:
        return ""
    for verdict in judgement.verdicts:
        if verdict.head_status is Status.UNAVAILABLE:
            return f"it does not run: {verdict.reason}"
    unclear = [verdict for verdict in judgement.verdicts if verdict.outcome is Outcome.INCONCLUSIVE]
    if not unclear:
        return "nothing was measured"
    cases = len({(verdict.case_id, verdict.device) for verdict in judgement.verdicts})
    return f"undecided in {len(unclear)} of {units.counted(cases, 'case')}: {unclear[0].label}: {unclear[0].reason}"
