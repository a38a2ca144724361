"""Profile one case: verify and time it as in a run, then trace it in the same process."""

from pathlib import Path

import msgspec

from attnbench.engine import sweep
from attnbench.engine.runner import Ending, Runner, SilentObserver
from attnbench.engine.sweep import Request
from attnbench.errors import UsageError
from attnbench.records.result import Result

DEFAULT_AXES = {"mask": "causal"}
DEFAULT_BACKEND = "sdpa"
ROUNDS = 5


def with_defaults(request: Request) -> Request:
    """The request with the defaults of the command for what it leaves open."""
    seq = {} if {"seq_q", "lengths"} & set(request.axes) else {"seq": "1024"}
    axes = seq | DEFAULT_AXES | request.axes
    return msgspec.structs.replace(request, axes=axes, backend=request.backend or DEFAULT_BACKEND)


def run(request: Request, folder: Path, bare: bool = False) -> tuple[Result, Ending]:
    """The Result of the case, with the profile in its facts. Raises UsageError unless the options give one case.

    With `bare`, only call in NVTX ranges.
    """
    ready = sweep.prepare(request)
    refused = ready.plan.refusals
    labels = [group.case(arm).label for group in ready.plan.groups for arm in group.arms]
    labels += [refusal.case.label for refusal in refused]
    if len(labels) != 1:
        raise UsageError(f"profile takes one case; the options give {len(labels)}: {labels[0]}, {labels[1]} ...")
    if refused:
        return refused[0], Ending()
    procedures = {
        kind: msgspec.structs.replace(procedure, min_rounds=ROUNDS, max_rounds=ROUNDS)
        for kind, procedure in ready.settings.procedures.items()
    }
    extras = () if bare else ("timers",)
    settings = msgspec.structs.replace(
        ready.settings, procedures=procedures, extras=extras, profile=str(folder.absolute()), bare=bare, budget_s=None
    )
    results: list[Result] = []
    ending = Runner(ready.plan, settings, results.extend, SilentObserver()).run()
    return results[0], ending
