"""`attnbench bisect`: which commit made a case slower."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request, Sweep
    from attnbench.gate.judgement import GateVerdicts


@options.with_options(
    options.SUITE, options.PROBLEM, options.ARMS,
    options.ROUNDS.but(default="10", help="Number of rounds per restart.", metavar="N"),
    options.BUDGET.but(default="5m", help="Time limit of one step."),
)  # fmt: skip
def bisect(
    context: typer.Context,
    request: Request,
    good: Annotated[str, typer.Argument(help="Commit, branch or tag at which the case was fast.", metavar="GOOD")],
    bad: Annotated[str, typer.Argument(help="Later commit at which it is slow.", metavar="BAD")] = "HEAD",
    case: Annotated[
        str,
        typer.Option(
            "--case", help="Label or id of a case, as `attnbench gate` prints it; all by default.", metavar="CASE"
        ),
    ] = "",
) -> int:
    """Find the commit that made a case slower.

    Compares GOOD with the commits after it. A commit that cannot be judged is skipped, with the reason.
    """
    from attnbench.cli import running
    from attnbench.errors import Exit
    from attnbench.gate import bisect as study
    from attnbench.gate import trees
    from attnbench.gate.bisect import StepOutcome

    commits = study.commits(good, bad)
    ready, budget_s = running.prepare_gate(request, case)
    quiet = options.global_options(context).quiet
    if not quiet:
        print(_headline(ready, good, bad, commits, budget_s), file=sys.stderr)

    def judge(commit: str) -> GateVerdicts:
        return _judge(ready, good, commit, budget_s, quiet)

    last = judge(commits[-1])
    if why := study.why_skipped(last):
        print(f"{bad} cannot be judged against {good}, so no commit is searched for: {why}")
        return Exit.INCONCLUSIVE
    if study.step_outcome(last) is StepOutcome.GOOD:
        print(f"{bad} is not slower than {good}: nothing to look for")
        return Exit.OK
    result = study.search(commits, lambda commit: study.step_outcome(judge(commit)))
    if result.first_bad:
        print(f"first bad: {trees.subject(result.first_bad)}")
        return Exit.OK
    print(f"the first bad commit is one of {len(result.suspects)}; all but the last cannot be judged:")
    print(*(f"  {trees.subject(commit)}" for commit in result.suspects), sep="\n")
    return Exit.INCONCLUSIVE


def _headline(ready: Sweep, good: str, bad: str, commits: Sequence[str], budget_s: float) -> str:
    """What is compared, and in how many steps: one for BAD, then each halves the commits that are left."""
    from attnbench.cli import output
    from attnbench.gate import judgement
    from attnbench.units import about, counted

    steps = 1 + math.ceil(math.log2(len(commits)))
    within = "" if math.isinf(budget_s) else f", each within {about(budget_s)}"
    parts = [
        f"bisect {ready.name}",
        judgement.sides(good, bad),
        f"{counted(len(commits), 'commit')} in about {counted(steps, 'step')}{within}",
        counted(ready.plan.cases, "case"),
        ", ".join(device.text for device in ready.devices),
    ]
    return "\n".join([output.machine(ready), " · ".join(parts)])


def _judge(ready: Sweep, good: str, commit: str, budget_s: float, quiet: bool) -> GateVerdicts:
    from attnbench.cli import progress
    from attnbench.gate import bisect as study
    from attnbench.gate import paired, trees

    with (
        tempfile.TemporaryDirectory(prefix="attnbench-") as folder, trees.of_ref(good, "GOOD") as base,
        trees.of_ref(commit, "BAD") as head, progress.observer("none", 0) as watcher,
    ):  # fmt: skip
        ended = paired.measure(
            ready, base, head, directory=Path(folder) / "run", observer=watcher, budget_s=budget_s,
            watch=lambda _: None,
        )  # fmt: skip
    if not quiet:
        words = [f"{study.step_outcome(ended.judgement).value:<5} {trees.subject(commit)}"]
        print(": ".join([*words, *filter(None, [study.why_skipped(ended.judgement)])]), file=sys.stderr, flush=True)
    return ended.judgement
