"""A sweep that is measured for a study: with progress, stored, and stopped by Ctrl-C without a loss."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from attnbench import sweep
from attnbench.cli import progress, running

if TYPE_CHECKING:
    from attnbench.runner import Runner
    from attnbench.store import Run
    from attnbench.sweep import Sweep


def measure(planned: Sweep, style: str) -> tuple[Run, bool]:
    """The stored run, and whether it was interrupted; `style` of the progress as `--progress` has it."""
    runners: list[Runner] = []
    with progress.observer(style, planned.plan.cases) as watcher, running.interruptible(runners):
        outcome = sweep.run(
            planned.request, watcher, watch=runners.append, sweep=planned, command=["attnbench", *sys.argv[1:]]
        )
    return outcome.run, outcome.ending.interrupted
