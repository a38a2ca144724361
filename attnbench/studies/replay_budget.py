"""How many drawn steps a budget suffices for, and the budget that so many steps need."""

import bisect
import math
from collections.abc import Collection
from pathlib import Path

import msgspec

from attnbench.analysis import traffic_part
from attnbench.engine.forecast import MARGIN
from attnbench.errors import UsageError
from attnbench.records import run_directory, speeds
from attnbench.records.result import Key
from attnbench.records.run_directory import Run
from attnbench.records.speeds import Speeds
from attnbench.studies.replayed_steps import ReplayPlan
from attnbench.units import about, seconds

MOST_BUDGETS = 2  # that an answer may take by prediction, and is tried: speeds of a busy machine predict too much


def predicted_s(planned: ReplayPlan, count: int, done: Collection[Key], known: Speeds) -> float:
    """Seconds until so many of the drawn steps are measured, where these keys are stored, by these speeds."""
    problems = {problem for place in planned.order[:count] for problem, _ in planned.steps[place].layers}
    groups = (group for group in planned.sweep.plan.groups if group.problem in problems)
    part = msgspec.structs.replace(
        planned.sweep.plan, groups=tuple(msgspec.structs.replace(group, seconds=0.0) for group in groups), refusals=()
    )
    return part.rest(done, range(1), known).seconds


def within(planned: ReplayPlan, out: Path | None = None) -> int:
    """How many of the drawn steps are measured when the budget ends, by prediction; `out` may hold some of them."""
    settings, counts = planned.sweep.settings, range(1, len(planned.steps) + 1)
    if settings.budget_s is None:
        return len(counts)
    done = run_directory.stored_keys(out, retry_failed=False) if out else frozenset()
    return bisect.bisect_right(
        counts, settings.budget_s, key=lambda count: predicted_s(planned, count, done, settings.speeds)
    )


def check(planned: ReplayPlan, out: Path | None = None) -> None:
    """Raise UsageError where the fewest steps of an answer take far longer than the budget, by prediction.

    A run that is continued has measured some, and a shard measures a part of each.
    """
    settings, fewest = planned.sweep.settings, min(traffic_part.MIN_STEPS, len(planned.steps))
    continued = out is not None and (out / run_directory.MANIFEST).exists()
    if settings.budget_s is None or continued or planned.sweep.request.shard:
        return
    needed_s = predicted_s(planned, fewest, (), settings.speeds)
    if needed_s <= MOST_BUDGETS * settings.budget_s:
        return
    raise UsageError(
        f"--budget {seconds(settings.budget_s)}: {fewest} drawn steps take about {about(needed_s)}, and fewer are no "
        f"answer: use --budget {with_margin(needed_s)}, or a smaller model"
    )


def left_s(planned: ReplayPlan, run: Run, count: int) -> float:
    """Seconds until so many steps are measured, by what the run showed; a draw of more steps is measured anew."""
    known, drawn = speeds.load(run.manifest.fingerprint), len(planned.steps)
    if count > drawn:
        return predicted_s(planned, drawn, (), known) * count / drawn
    return predicted_s(planned, count, run_directory.done_keys(run, retry_failed=False), known)


def with_margin(needed_s: float) -> str:
    """A budget that suffices for so long, as typed."""
    return f"{math.ceil(MARGIN * needed_s)}s"
