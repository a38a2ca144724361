"""Print a run as a table with its summary, or in another format; print a plan, and other results as JSON Lines."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from attnbench import api, backends
from attnbench._version import __version__
from attnbench.analysis import cluster_nodes
from attnbench.analysis.roofline import CeilingsByDevice, ceilings_by_device
from attnbench.analysis.rows import Row, rows_of
from attnbench.api import StoredRun
from attnbench.backends import installation
from attnbench.engine import interpreters, plan
from attnbench.engine.forecast import batched
from attnbench.engine.plan import Rest
from attnbench.engine.sweep import Sweep
from attnbench.errors import Exit
from attnbench.machine import hardware, identity, resources
from attnbench.records import run_directory, run_writer
from attnbench.records.arm import labels
from attnbench.records.case import Case, problem_label
from attnbench.records.result import Cause, Status
from attnbench.records.run_directory import Run
from attnbench.report import probe_outcomes, summary
from attnbench.report.formats import csv, jsonl, markdown
from attnbench.report.terminal import pivot_table
from attnbench.report.terminal.text_layout import terminal_width, wrap
from attnbench.units import about, counted, seconds, size

_BEYOND = "beyond the budget"
_LINES = 1000  # of a plan that are written at once
_REASONS = 3  # of refused cases that are shown where nothing is measured


def lines(records: Iterable[Mapping[str, object]], text: Iterable[str], as_json: bool) -> None:
    """Print the records as JSON Lines, or the text."""
    for line in map(jsonl.line, records) if as_json else text:
        print(line)


def load(name: str) -> StoredRun:
    """A stored run for a command that passes it on; stderr notes what is left out, and that it is being measured."""
    stored = api.load(name)
    if stored.skipped_lines:
        lines = "1 line of the results is" if stored.skipped_lines == 1 else f"{stored.skipped_lines} lines are"
        print(f"{stored.path}: {lines} left out: not readable as a result", file=sys.stderr)
    if run_writer.is_being_written(stored.path):
        print(f"{stored.path} is still being measured: its results so far are read", file=sys.stderr)
    return stored


def append_run(path: Path, run: Run) -> None:
    """Append the point of a run to a history file, or say that it is there."""
    from attnbench.gate import history

    added = history.point(run)
    text = f"{added.run} is in {path} already; not added again"
    if history.append(path, added):
        text = f"added {added.run} to {path}: {counted(len(added.seconds), 'case')}"
    print(text, file=sys.stderr)


def width() -> int | None:
    """The width of the terminal; None if stdout is not one."""
    return terminal_width() if sys.stdout.isatty() else None


def show(
    run: Run, format_: str, *, color: str = "auto", saved: bool = True, code: int = 0, printed: Collection[str] = (),
    metrics: Sequence[str] = (), following: str = "", unmeasured: int = 0,
) -> None:  # fmt: skip
    """Print the run. `printed` are the case ids and arms that were already printed as JSON Lines.

    `following` is the command that continues an interrupted run, `unmeasured` the number of cases that it lacks, by
    default those that the stored run lacks.
    """
    unmeasured = unmeasured or run.unmeasured
    ceilings = ceilings_by_device(run.manifest)
    rows = rows_of(run.results, ceilings=ceilings, arms=run.manifest.arms)
    stream = sys.stdout if format_ == "table" else sys.stderr
    if unmeasured and not rows and format_ != "jsonl":
        print(f"stopped before the first case; {unmeasured} of {run.manifest.planned} not measured", file=stream)
        _names(run, following, saved, stream)
        return
    if format_ == "jsonl":
        for row in rows:
            if row.case_id + row.arm not in printed:
                print(jsonl.line(jsonl.record(row, metrics)))
        for text, reason in run.manifest.impossible:
            print(jsonl.line(jsonl.impossible(text, reason)))
        path = str(run.path) if saved else ""
        print(jsonl.line(summary.record(rows, run.manifest.planned, path, code, ceilings, run.left)))
    elif format_ == "md":
        print(markdown.tables(_by_arm(run, rows)), end="")
    elif format_ == "csv":
        print(csv.text(row.plain() for row in rows), end="")
    else:
        if failures := summary.failure_lines(rows):
            _wrapped([*failures, ""], sys.stdout)
        _table(_by_arm(run, rows), color)
        if metrics:
            _metrics(ceilings, rows, metrics)
    if format_ != "jsonl":
        _after(run, rows, ceilings, stream)
    _left_out(run, unmeasured, stream)
    _names(run, following, saved and bool(following or format_ != "jsonl"), stream)


def _left_out(run: Run, unmeasured: int, stream: TextIO) -> None:
    if note := probe_outcomes.not_run(run.results, run.manifest.request.get("probe", "")):
        print(note, file=stream)
    if unmeasured:
        print(f"{unmeasured} of {run.manifest.planned} cases not measured", file=stream)


def _names(run: Run, following: str, shown: bool, stream: TextIO) -> None:
    for text in (f"run: {run.path}", f"next: {following or next_command(run)}") if shown else ():
        print(text, file=stream)


def _by_arm(run: Run, rows: Sequence[Row]) -> list[Row]:
    """In the order in which the arms were asked for: what was predicted to be cheap may be measured first."""
    places = {arm.id: place for place, arm in enumerate(run.manifest.arms)}
    return sorted(rows, key=lambda row: places.get(row.arm, len(places)))


def _table(rows: Sequence[Row], color: str) -> None:
    if _styled(color):
        from rich.console import Console

        Console(force_terminal=True, highlight=False).print(pivot_table.styled(rows), soft_wrap=True, end="")
    else:
        print(pivot_table.text(rows), end="")
    print()


def _metrics(ceilings: CeilingsByDevice, rows: Sequence[Row], names: Sequence[str]) -> None:
    for line in pivot_table.metric_lines(rows, names, terminal_width()):
        print(line)
    if not ceilings and any(name.startswith("roofline") for name in names):
        print("no roofline, because this machine is not calibrated: attnbench calibrate")
    print()


def _styled(color: str) -> bool:
    if color != "auto":
        return color == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def _after(run: Run, rows: Sequence[Row], ceilings: CeilingsByDevice, stream: TextIO) -> None:
    # Above a table its failures were printed already.
    texts = summary.findings if stream is sys.stdout else summary.text
    _wrapped(texts(rows, len(run.manifest.impossible), ceilings, run.left), stream)
    _wrapped(probe_outcomes.sentences(run.results, labels(result.arm for result in run.results)), stream)
    _wrapped(cluster_nodes.notes(run.manifest.nodes), stream)
    if run.skipped_lines:
        print(f"{counted(run.skipped_lines, 'line')} of the results could not be read", file=stream)


def _wrapped(texts: Iterable[str], stream: TextIO) -> None:
    for text in texts:
        print("\n".join(wrap(text, terminal_width(), indent=2)), file=stream)


def next_command(run: Run) -> str:
    """The command to type after a run: `show --failed` after failures, what continues it after a cut, else `report`."""
    name = run_directory.name_of(run.path, run_directory.results_root())
    if any(result.status.failed for result in run.results):
        return shlex.join(["attnbench", "show", "--failed", name])
    lacks_cases = run.unmeasured or any(result.cause is Cause.BUDGET for result in run.results)
    continuing = run_directory.continuing(run.manifest, run.path, name) if lacks_cases else ""
    return continuing or shlex.join(["attnbench", "report", name])


def share_of_cases(run: Run, chosen: Callable[[Status], bool]) -> str:
    """`3 of 75 cases`: those with such a status in some restart; empty if there are none."""
    cases = {(result.case_id, result.arm.id) for result in run.results}
    those = {(result.case_id, result.arm.id) for result in run.results if chosen(result.status)}
    return f"{len(those)} of {counted(len(cases), 'case')}" if those else ""


def after_study(run: Run, code: int) -> int:
    """Name on stderr the run that a study measured and the next command; the exit code, 5 where a case failed."""
    if failed := share_of_cases(run, lambda status: status.failed):
        print(f"{failed} failed", file=sys.stderr)
    _names(run, "", True, sys.stderr)
    return Exit.FAILED if failed and code in (Exit.OK, Exit.NOTHING_MEASURED) else code


def headline(sweep: Sweep, rest: Rest) -> None:
    """Print on stderr: the machine and its load; the suite, the cases that are left, and their time; what is elsewhere.

    That is the packages of other interpreters, and the libraries that are not installed.
    """
    print(machine(sweep), file=sys.stderr)
    devices = ", ".join(device.text for device in sweep.devices)
    fitting = "" if rest.within is None else f"; about {counted(rest.within, 'case')} fit"
    print(
        f"suite {sweep.name} · {case_counts(sweep, rest)} · {devices} · {predicted(sweep, rest.seconds)}{fitting}",
        file=sys.stderr,
    )
    for python in dict.fromkeys(filter(None, (arm.python for arm in sweep.plan.arms))):
        names = dict.fromkeys(arm.backend for arm in sweep.plan.arms if arm.python == python)
        needed = [name for each in names if each in backends.BUILTIN for name in backends.load(each).distributions]
        there = interpreters.packages(python)
        packages = [f"{name} {there[name]}" for name in dict.fromkeys(("torch", *needed)) if name in there]
        print(f"{', '.join(names)} in {python}: {', '.join(packages)}", file=sys.stderr)
    if absent := _absent(sweep):
        number = f"{len(absent)} of {len(plan.all_libraries('cpu'))} backends of libraries are not installed"
        commands = installation.install_commands(absent)
        print(f"{number} ({', '.join(absent)}); install: {commands}", file=sys.stderr)


def case_counts(sweep: Sweep, rest: Rest) -> str:
    """The cases that are left, and the results that progress counts where these are not as many."""
    every, cases = sweep.plan.cases, rest.cases + len(sweep.plan.impossible)
    text = counted(every, "case") if cases == every else f"{cases:,} of {counted(every, 'case')} left"
    if rest.results == cases:
        return text
    return f"{text}, {counted(rest.results, 'result')} in {counted(sweep.settings.restarts, 'restart')}"


def _absent(sweep: Sweep) -> list[str]:
    """The backends that the word `libraries` leaves out. Beside `auto` it means those that happen to be installed."""
    named = tuple(sweep.request.backend.split(",")) if sweep.request.backend else ()
    selections = {named or cell.backends for cell, _ in sweep.cells}
    if not any("libraries" in words and "auto" not in words for words in selections):
        return []
    installed = plan.libraries("cpu", interpreters.parse(sweep.request.backend_python))
    return [name for name in plan.all_libraries("cpu") if name not in installed]


def machine(sweep: Sweep) -> str:
    """`attnbench 0.1.0 · torch 2.9.0 · Xeon, 2 cores · load 0.9, busy`."""
    return " · ".join([f"attnbench {__version__}", *_machine(sweep)])


def _machine(sweep: Sweep) -> list[str]:
    if sweep.machine:
        card = sweep.machine.card
        return ["cluster", f"{card.get('cpu')}, {card.get('cores')} cores", *map(str, card.get("gpus") or ())]
    load = resources.load()
    return [
        f"torch {identity.packages().get('torch', 'not installed')}",
        f"{hardware.cpu_model() or 'unknown CPU'}, {len(resources.available_cores())} cores",
        *([f"load {load:.1f}{', busy' if resources.busy() else ''}"] if load is not None else []),
    ]


def predicted(sweep: Sweep, needed: float) -> str:
    """The predicted time of a sweep that takes `needed` seconds without a budget, or why it measures nothing."""
    if not sweep.plan.groups and sweep.plan.refusals:
        return f"nothing will be measured: {_refusals(sweep)}"
    if not needed:
        return "nothing to measure"
    if sweep.settings.budget_s is not None and needed > sweep.settings.budget_s:
        budget = f"up to {about(sweep.settings.budget_s)}, the budget"
        return f"{budget}; all would take about {about(needed)} ({sweep.plan.times_from})"
    return f"about {about(needed)} ({sweep.plan.times_from})"


def _refusals(sweep: Sweep) -> str:
    """`12 unavailable: runs on cuda, not on cpu`: the reasons of refused cases, the most frequent first."""
    counts = Counter(f"{refusal.status.value}: {refusal.reason}" for refusal in sweep.plan.refusals)
    shown = [f"{count} {text}" for text, count in counts.most_common(_REASONS)]
    return "; ".join([*shown, *([f"{len(counts) - _REASONS} more reasons"] if len(counts) > _REASONS else [])])


def show_plan(sweep: Sweep, format_: str, origins: Mapping[str, str]) -> None:
    """Print every case with its predicted time and memory, every refusal with its reason, then the totals."""
    as_json = format_ == "jsonl"
    fitting = {group.id for group in sweep.plan.within(sweep.settings.budget_s, sweep.settings.speeds)}
    for chunk in batched(_plan_lines(sweep, fitting, as_json), _LINES):
        print("\n".join(chunk))
    _sums(sweep, fitting, as_json)
    for name, origin in origins.items():
        print(f"{name}: {origin}", file=sys.stderr)


def _plan_lines(sweep: Sweep, fitting: Collection[str], as_json: bool) -> Iterator[str]:
    for group in sweep.plan.groups:
        label, beyond = problem_label(group.problem, group.mode), "" if group.id in fitting else _BEYOND
        end = f"  {beyond}" if beyond else ""
        for arm, call_s, peak in zip(group.arms, group.calls_s, group.peaks_bytes, strict=True):
            if as_json:
                yield _case(group.case(arm), arm.id, "planned", beyond, call_s, peak)
            else:
                yield f"{label} {arm.backend}@{arm.device}  ~{about(call_s)}  peak {size(peak)}{end}"
    for refusal in sweep.plan.refusals:
        case, status, reason = refusal.case, refusal.status.value, refusal.reason
        text = f"{case.label}@{refusal.arm.device}  {status}: {reason}"
        yield _case(case, refusal.arm.id, status, reason, None, None) if as_json else text
    for cell, reason in sweep.plan.impossible:
        record = {"type": "impossible", "cell": cell, "reason": reason}
        yield jsonl.line(record) if as_json else f"{cell}  skipped: {reason}"


def _sums(sweep: Sweep, fitting: Collection[str], as_json: bool) -> None:
    counts = Counter(refusal.status.value for refusal in sweep.plan.refusals)
    planned = sum(len(group.arms) for group in sweep.plan.groups)
    within = sum(len(group.arms) for group in sweep.plan.groups if group.id in fitting)
    counts["skipped"] += len(sweep.plan.impossible)
    needed = sweep.plan.seconds * sweep.settings.restarts
    if as_json:
        cases = {"cases": sweep.plan.cases, "planned": planned, "within_budget": within, "refused": dict(counts)}
        budget_s, times_from = sweep.settings.budget_s, sweep.plan.times_from
        times = {"least_s": needed, "budget_s": budget_s, "times_from": times_from}
        print(jsonl.line({"type": "summary", **cases, **times}))
        return
    refused = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none"
    counted_cases = f"{planned} of {sweep.plan.cases} cases to measure"
    if within < planned:
        counted_cases += f", about {within} of them within the budget"
    print(f"{counted_cases}; refused: {refused}")
    if not planned:
        print(predicted(sweep, needed))
        return
    budget = "no budget" if sweep.settings.budget_s is None else f"budget {seconds(sweep.settings.budget_s)}"
    limit = size(sweep.settings.memory_bytes)
    print(f"predicted: about {about(needed)} ({budget}); memory limit of a group: {limit}")
    print(f"times: {sweep.plan.times_from}")


def _case(case: Case, arm: str, status: str, reason: str, call_s: float | None, peak: int | None) -> str:
    record = {"type": "case", "case_id": case.id, "label": case.label, "arm": arm, "backend": case.backend}
    predicted = {"predicted_time_s": call_s, "predicted_peak_bytes": peak}
    return jsonl.line({**record, "mode": case.mode.value, "status": status, "reason": reason, **predicted})
