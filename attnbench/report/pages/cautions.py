"""What went wrong in a run and what makes its figures less sure, each with the command that helps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from attnbench.analysis import cluster_nodes
from attnbench.analysis.roofline import CeilingsByDevice
from attnbench.analysis.rows import Row, unranked
from attnbench.machine.resources import BUSY_SHARE
from attnbench.records import run_directory
from attnbench.records.run_directory import Run
from attnbench.report import missing, summary
from attnbench.report.answer import Advice
from attnbench.report.charts import panels
from attnbench.report.pages import ranking
from attnbench.report.quantities import listed, sentence
from attnbench.report.reasons import literal
from attnbench.units import counted

RESTARTS = "--restarts 6 --budget 0"  # more restarts do not fit the budget of one
MAX_CAUTIONS = 12
_OF_FIRST_RUN = re.compile(r" (-o|--out|--budget)[ =]('[^']*'|\S+)")


def failures(runs: Sequence[Run], by_run: Sequence[Sequence[Row]]) -> Iterator[Advice]:
    """One line for each backend and kind of failure, and of each run the command that shows them all."""
    for run, rows in zip(runs, by_run, strict=True):
        lines = summary.failure_lines(rows)
        yield from (Advice(literal(line)) for line in lines)
        if lines:
            yield Advice("", shlex.join(["attnbench", "show", "--failed", spelled(run)]))


def cautions(
    runs: Sequence[Run], by_run: Sequence[Sequence[Row]], names: Sequence[str], ceilings: CeilingsByDevice
) -> list[Advice]:
    """Load, noise and unmeasured cases of each run, then what holds for all."""
    texts: list[Advice] = []
    for run, rows, name in zip(runs, by_run, names, strict=True):
        words = sentence(panels.words("run", name)) if name in panels.OLD_AND_NEW else name
        prefix = f"{words}: " if len(runs) > 1 else ""
        texts += [Advice(prefix + advice.text, advice.command) for advice in _of_run(run, rows)]
        texts += [Advice(prefix + note) for note in summary.notes(rows, ceilings)]
    return texts[:MAX_CAUTIONS]


def _of_run(run: Run, rows: Sequence[Row]) -> Iterator[Advice]:
    if load := busy(run):
        yield Advice(f"The machine was busy: {load}. Other processes make times longer and less sure.")
    yield from (Advice(literal(note)) for note in cluster_nodes.notes(run.manifest.nodes))
    timed = [row for row in rows if row.time_s is not None]
    noisy = sum(bool(row.noisy) for row in timed)
    ties = sum(contest.contested and not contest.winner for contest in ranking.contests(rows))
    if noisy:
        which = "the tie" if ties == 1 else f"some of {ties} ties"
        decided = f"; that may decide {which} too" if ties else ""
        verb = "is" if noisy == 1 else "are"
        text = f"{noisy} of {counted(len(timed), 'time')} {verb} noisy. Measure again on an idle machine{decided}."
        yield Advice(text, _with_restarts(run))
    cut = sum(map(missing.cut, rows))
    resume = run_directory.continuing(run.manifest, run.path, spelled(run))
    if unmeasured := run.unmeasured:
        verb = "is" if unmeasured == 1 else "are"
        text = f"{unmeasured} of {counted(run.manifest.planned, 'case')} {verb} not measured: the run has not ended."
        yield Advice(text, resume)
    if cut:
        budget = " ".join(filter(None, ("the budget", str(run.manifest.request.get("budget") or ""))))
        verb = "was" if cut == 1 else "were"
        yield Advice(f"{counted(cut, 'case')} {verb} not measured: {budget} was spent.", resume)
    if apart := unranked(rows):
        verb = "is" if len(apart) == 1 else "are"
        yield Advice(f"{listed(apart)} shared no rounds with the others in some problems, and {verb} not ranked there.")
    if wrong := [row for row in rows if row.impossible]:
        verb = "is" if len(wrong) == 1 else "are"
        yield Advice(f"{counted(len(wrong), 'time')} cannot be true and {verb} not ranked: {wrong[0].impossible}.")
    if run.skipped_lines:
        yield Advice(f"{counted(run.skipped_lines, 'line')} of the results could not be read.")


def busy(run: Run) -> str:
    """`load 3.7 on 2 cores`, if other processes used over half of the cores when the run began."""
    load, cores = run.manifest.machine.get("load"), run.manifest.machine.get("cores")
    if not isinstance(load, int | float) or not isinstance(cores, int) or load <= BUSY_SHARE * cores:
        return ""
    return f"load {load:.1f} on {counted(cores, 'core')}"


def spelled(run: Run) -> str:
    """The run as commands take it: its name if it is in the folder of results, else its path."""
    return run.path.name if run.path.parent == run_directory.results_root() else str(run.path)


def _with_restarts(run: Run) -> str:
    """The command of the run, or those of runs that were merged, for new runs with restarts.

    Empty if one is unknown or has them.
    """
    commands = run.manifest.command.split(" && ")
    if any(not text.startswith("attnbench run ") or "--restarts" in text or "\n" in text for text in commands):
        return ""
    return " && ".join(f"{_OF_FIRST_RUN.sub('', text)} {RESTARTS}" for text in commands)
