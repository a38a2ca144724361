"""What `attnbench profile` does: one case, verified and timed as in a run, then looked at in the same process."""

from __future__ import annotations

from pathlib import Path

import msgspec

from attnbench import sweep
from attnbench.errors import UsageError
from attnbench.result import Result
from attnbench.runner import Ending, Runner
from attnbench.sweep import Request

DEFAULT_AXES = {"mask": "causal"}
DEFAULT_BACKEND = "sdpa"
ROUNDS = 5


def run(request: Request, folder: Path, bare: bool = False) -> tuple[Result, Ending]:
    """The Result of the case, with what was found among its facts as `profile`. UsageError unless it is one case.

    `bare`: calls in NVTX ranges and nothing else.
    """
    ready = sweep.ready(request)
    arms = [arm for group in ready.plan.groups for arm in group.arms]
    refused = ready.plan.refusals
    if len(arms) + len(refused) != 1:
        cases = [group.case(arm).label for group in ready.plan.groups for arm in group.arms]
        labels = [*cases, *(one.case.label for one in refused)]
        raise UsageError(f"profile takes one case; the options give {len(labels)}: {labels[0]}, {labels[1]} ...")
    if refused:
        return refused[0], Ending()
    procedures = {
        kind: msgspec.structs.replace(one, rounds_least=ROUNDS, rounds_most=ROUNDS)
        for kind, one in ready.terms.procedures.items()
    }
    extras = () if bare else ("timers",)
    terms = msgspec.structs.replace(
        ready.terms, procedures=procedures, extras=extras, profile=str(folder.absolute()), bare=bare, budget_s=None
    )
    results: list[Result] = []
    ending = Runner(ready.plan, terms, results.extend, _Silent()).run()
    return results[0], ending


class _Silent:
    def phase(self, text: str) -> None:
        """One case needs no progress."""

    def result(self, result: Result, remaining_s: float) -> None:
        """It is printed."""
