"""What commands do around a sweep: show the plan and the progress, stop at Ctrl-C, print tables, set the exit code."""

import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from attnbench.analysis import rows
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.cli import engine_options, output, progress, stop_signals
from attnbench.cli.engine_options import EngineOptions
from attnbench.cli.options import GlobalOptions, typed
from attnbench.cli.run_options import RunOptions
from attnbench.engine import sweep
from attnbench.engine.runner import Ending, PlanRunner, Runner
from attnbench.engine.sweep import FinishedSweep, Request, StartRunner, Sweep
from attnbench.errors import Exit, UsageError
from attnbench.gate import paired, trees
from attnbench.gate.record import ChangedCases
from attnbench.gate.trees import Revision
from attnbench.machine import identity
from attnbench.records import run_directory
from attnbench.records.arm import Arm, labels
from attnbench.records.result import Result, Status
from attnbench.records.run_directory import Run
from attnbench.report.formats import jsonl
from attnbench.report.terminal import failures
from attnbench.studies import max_seq
from attnbench.studies.max_seq import Longest
from attnbench.units import parse_seconds, seconds


def main(request: Request, how: RunOptions, shared: GlobalOptions, origins: Mapping[str, str]) -> int:
    """The whole command; returns the exit code. `origins` says where option values came from, for `--dry-run -v`."""
    if how.resume and how.out:
        raise UsageError("--resume and --out name the run directory twice; give one of them")
    directory = how.out
    if how.resume:
        directory = run_directory.resolve(how.resume, run_directory.results_root())
        request = _stored_request(directory, request, how.engine)
    with ExitStack() as opened:
        with progress.steps("planning") as step:
            ready, start = opened.enter_context(engine_options.prepared(how, request, step=step))
        if how.dry_run:
            done = run_directory.stored_keys(directory, how.retry_failed) if directory else frozenset()
            left = ready.plan.left(done, range(ready.settings.restarts))
            output.show_plan(msgspec.structs.replace(ready, plan=left), how.output_format, origins)
            return Exit.OK
        if how.no_save:
            directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-"))) / "run"
        return _measure(ready, start, how, shared, directory)


def _stored_request(directory: Path, request: Request, engine: str) -> Request:
    """The request of the run. Options that differ from it would be ignored without notice, so they are refused."""
    manifest = run_directory.read_manifest(directory)
    if manifest.is_merged:
        raise UsageError(
            f"--resume {directory}: merged from several runs, each with its own options: resume those, and merge again"
        )
    if run_directory.REPLAY_TAG in manifest.tags:
        again = run_directory.continuing(manifest, directory)
        raise UsageError(f"--resume {directory}: it replays a trace; continue it with: {again}")
    stored = msgspec.convert(manifest.request, Request)
    if engine == "local" and (stored.hardware or manifest.on_cluster):
        raise UsageError(f"--resume {directory}: measured on a Ray cluster; add --engine ray --address HOST:PORT")
    changed = [
        field.name
        for field in msgspec.structs.fields(request)
        if getattr(request, field.name) not in (field.default, getattr(stored, field.name))
        and field.name not in ("budget", "axes", "tags")
    ]
    if changed or request.axes not in ({}, stored.axes):
        names = ", ".join(changed or sorted(request.axes))
        raise UsageError(f"--resume takes the request of the run; to add to it, use --out {directory} (given: {names})")
    return msgspec.structs.replace(stored, budget=request.budget or stored.budget)


def _measure(ready: Sweep, start: StartRunner, how: RunOptions, shared: GlobalOptions, directory: Path | None) -> int:
    rest = sweep.rest(ready, directory, how.retry_failed)
    if not shared.quiet:
        output.headline(ready, rest)
    directory = directory or sweep.new_directory(ready, datetime.now(UTC))
    with named_at_once(directory, "" if how.no_save else resume_command(directory, how)):
        return _measure_into(directory, ready, start, how, shared, rest.results)


def _measure_into(
    directory: Path, ready: Sweep, start: StartRunner, how: RunOptions, shared: GlobalOptions, total: int
) -> int:
    names = sweep.shown_metrics(ready.request)
    with watched(shared.progress(how.progress), total, names_beside(ready.plan.arms)) as (watcher, watch):
        observer = Streaming(watcher, ready, names) if how.output_format == "jsonl" else watcher
        outcome = sweep.run(
            ready, observer, directory=directory, retry_failed=how.retry_failed, force=how.force,
            fail_fast=how.fail_fast, watch=watch, command=() if how.resume else command(), start=start,
        )  # fmt: skip
    code = exit_code(outcome.run.results, outcome.ending, how.strict)
    printed = observer.printed if isinstance(observer, Streaming) else ()
    if outcome.already_measured and not shared.quiet:
        print(_already_measured(outcome.run), file=sys.stderr)
    following = resume_command(directory, how) if outcome.ending.interrupted else _larger_budget(ready, outcome, how)
    output.show(
        outcome.run, how.output_format, color=shared.color, saved=not how.no_save, code=code, printed=printed,
        metrics=names, following=following, unmeasured=outcome.unmeasured if outcome.ending.interrupted else 0,
    )  # fmt: skip
    if shared.verbose and any(result.status.failed for result in outcome.run.results):
        for text in failures.text(outcome.run.results):
            print(text, file=sys.stderr)
    if how.report:
        from attnbench.report.formats.report_directory import write

        print(f"report: {write([outcome.run])}", file=sys.stderr)
    return code


def _already_measured(run: Run) -> str:
    failed = any(result.status.failed for result in run.results)
    again = "; --retry-failed measures those again that failed" if failed else ""
    planned = run.manifest.planned
    return f"{'the case is' if planned == 1 else f'all {planned} cases are'} already measured{again}"


def _larger_budget(ready: Sweep, outcome: FinishedSweep, how: RunOptions) -> str:
    """Where the budget is too short for every case that is left: say so; the command with one that is not."""
    needed_s, budget_s = outcome.smallest_budget_s, ready.settings.budget_s
    if not outcome.unmeasured or budget_s is None or (needed_s <= budget_s and not outcome.idle):
        return ""
    note, options = larger_budget(budget_s, needed_s)
    again = command() if how.no_save else shlex.split(resume_command(outcome.run.path, how))
    larger = shlex.join([*again, *options])
    print(f"{note}: {larger}" if how.no_save else note, file=sys.stderr)
    return larger


def larger_budget(budget_s: float, needed_s: float) -> tuple[str, list[str]]:
    """What to say of a budget that is too short for every case, and the options of one that is not.

    Twice the budget where it was enough by the prediction.
    """
    foreseen = needed_s > budget_s
    options = ["--budget", f"{math.ceil(needed_s if foreseen else 2 * budget_s)}s"]
    why = "" if foreseen else ", twice as much, since a case took longer than was predicted"
    note = f"the budget of {seconds(budget_s)} is too short for each case that is left; try {' '.join(options)}{why}"
    return note, options


def resume_command(directory: Path, how: RunOptions) -> str:
    """The command that continues a run, with the options that are no part of its stored request."""
    options = typed(how, leave_out=("dry_run", "out", "resume", "no_save"))
    return shlex.join(["attnbench", "run", "--resume", str(directory), *options])


def names_beside(arms: Sequence[Arm]) -> progress.NameOf:
    """The name of an arm that no other of these has."""
    names = labels(arms)
    return lambda arm: names.get(arm.id, arm.name)


@contextmanager
def watched(
    style: str, total: int, name_of: progress.NameOf | None = None
) -> Iterator[tuple[progress.Silent, Callable[[PlanRunner], None]]]:
    """The progress display of that style, and a function to which each runner is passed when it starts.

    At the first signal, stop as the runner does and keep all results; at the second, stop at once.
    """
    runners: list[PlanRunner] = []

    def ask_to_stop() -> str:
        if not runners or runners[-1].stop_requested:
            return ""
        runners[-1].stop_requested = True  # the last is the current stage
        return runners[-1].stopping

    with progress.observer(style, total, name_of) as watcher, stop_signals.asking(ask_to_stop):
        yield watcher, runners.append


@contextmanager
def named_at_once(directory: Path, continuing: str) -> Iterator[None]:
    """When a signal ends the command at once, name the command that continues with what is stored."""
    try:
        yield
    except KeyboardInterrupt:
        if continuing and (directory / run_directory.MANIFEST).is_file():
            print(f"stopped; continue with: {continuing}", file=sys.stderr)
        raise


def measure(
    planned: Sweep, shared: GlobalOptions, style: str, study: str, start: StartRunner = Runner,
    engine: Sequence[str] = (),
) -> tuple[Run, bool]:  # fmt: skip
    """Measure and store a sweep for the command of a study: the run, and whether it was interrupted.

    `start` makes the runner; `engine` are the options by which a resume finds it.
    """
    rest = sweep.rest(planned)
    if not shared.quiet:
        output.headline(planned, rest)
    path = sweep.new_directory(planned, datetime.now(UTC))
    continuing = (
        f"{shlex.join(['attnbench', 'run', '--resume', str(path), *engine])}, then: attnbench {study} --run {path}"
    )
    with (
        named_at_once(path, continuing),
        watched(shared.progress(style), rest.results, names_beside(planned.plan.arms)) as (watcher, watch),
    ):
        outcome = sweep.run(planned, watcher, directory=path, watch=watch, command=command(), start=start)
    if outcome.ending.interrupted:
        print(f"stopped; continue with: {continuing}", file=sys.stderr)
    return outcome.run, outcome.ending.interrupted


def measure_into(planned: Sweep, directory: Path | None, style: str) -> FinishedSweep:
    """Measure a sweep for a command that continues its run when it is given the same directory."""
    path = directory or sweep.new_directory(planned, datetime.now(UTC))
    with (
        named_at_once(path, continuing(path)),
        watched(style, sweep.rest(planned, path).results, names_beside(planned.plan.arms)) as (watcher, watch),
    ):
        return sweep.run(planned, watcher, directory=path, watch=watch, command=command())


def continuing(path: Path) -> str:
    """The same command with the run directory."""
    return run_directory.with_directory(command(), path)


def with_value(words: Iterable[str], flags: Sequence[str], value: str = "") -> list[str]:
    """A command with this value of an option that takes one, whatever it had before; empty: without the option."""
    left, rest = [], iter(words)
    for word in rest:
        if word in flags:
            next(rest, "")
        elif not word.startswith(tuple(flag if len(flag) == 2 else f"{flag}=" for flag in flags)):
            left.append(word)
    return [*left, flags[0], value] if value else left


def command() -> list[str]:
    """The command line, as it is stored with a run."""
    return ["attnbench", *sys.argv[1:]]


def prepare_gate(request: Request, case: str) -> tuple[Sweep, float]:
    """The sweep of a gate on this machine, of one case if it is named, and the budget in seconds."""
    gated = paired.on_device(_without_budget(request))
    ready = sweep.prepare(gated, default_suite=paired.DEFAULT_SUITE)
    return (paired.only(ready, case) if case else ready), _gate_budget_s(request)


def _gate_budget_s(request: Request) -> float:
    return parse_seconds(request.budget, "--budget") or math.inf


def _without_budget(request: Request) -> Request:
    """The request of a gate without its budget, which is that of all looks."""
    return paired.request(msgspec.structs.replace(request, budget="0"))


class PreparedGate(NamedTuple):
    """What a gate measures, and where. Base and head are as the machines that measure find them."""

    ready: Sweep
    base: Revision
    head: Revision
    cases: ChangedCases
    engine: paired.Engine
    budget_s: float


@contextmanager
def prepared_gate(
    how: EngineOptions, request: Request, case: str, base: Revision, changed: bool
) -> Iterator[PreparedGate]:
    """The sweep of a gate on the engine: of one case if it is named, and of those that changed if only they are wanted.

    On a cluster, the files of both sides travel.
    """
    head = trees.head()
    if how.engine == "local":
        engine_options.check_local(how, request)
        ready, budget_s = prepare_gate(request, case)
        ready, cases = paired.touched(ready, base, head) if changed else (ready, paired.EVERY_CASE)
        yield PreparedGate(ready, base, head, cases, paired.HERE, budget_s)
        return
    from attnbench.engine.cluster import cluster_sweep

    there: dict[str, Revision] = {}

    def send(folder: Path) -> None:
        there["head"] = trees.sent(head, folder, "head")
        there["base"] = there["head"] if base == head else trees.sent(base, folder, "base")

    with engine_options.cluster(how, request, send) as cluster:
        ready, engine = cluster_sweep.prepare(
            cluster, _without_budget(request), default_suite=paired.DEFAULT_SUITE, cpu=paired.CPU
        )
        ready = paired.only(ready, case) if case else ready
        ready, cases = paired.touched(ready, base, head) if changed else (ready, paired.EVERY_CASE)
        yield PreparedGate(ready, there["base"], there["head"], cases, engine, _gate_budget_s(request))


def find_max_seq(planned: Sweep, problem: Problem, mode: Mode, quiet: bool) -> list[Longest]:
    """The longest sequence of every planned arm; probes are reported on stderr."""
    arms = [arm for group in planned.plan.groups for arm in group.arms]

    def say(text: str) -> None:
        if not quiet:
            print(f"probing {text}", file=sys.stderr, flush=True)

    limits = sweep.plan_limits(planned.settings)
    return [max_seq.search(problem, mode, arm, planned.settings, limits, say) for arm in arms]


class Streaming:
    """Write one JSON line to stdout when the last restart of a case ends."""

    def __init__(self, watcher: progress.Silent, ready: Sweep, names: Sequence[str]) -> None:
        self._watcher, self._restarts, self._names = watcher, ready.settings.restarts, names
        devices = {arm.device for arm in ready.plan.arms}
        self._ceilings = sweep.calibrated(devices, identity.fingerprint()[0]) if names else {}
        self._seen: dict[tuple[str, str], list[Result]] = {}
        self._beside: dict[tuple[Problem, Mode], list[Result]] = {}
        self.printed: set[str] = set()

    def phase(self, text: str) -> None:
        self._watcher.phase(text)

    def result(self, result: Result, remaining_s: float) -> None:
        """Pass the result on, and print the case when it is complete."""
        self._watcher.result(result, remaining_s)
        restarts = self._seen.setdefault((result.case.id, result.arm.id), [])
        restarts.append(result)
        if len(restarts) == self._restarts or not result.group:  # a refusal of the plan has one line for all restarts
            self._print(restarts)

    def more(self, count: int, why: str = "") -> None:
        self._watcher.more(count, why)

    def note(self, text: str) -> None:
        self._watcher.note(text)

    def _print(self, restarts: list[Result]) -> None:
        # With the results of the other arms of the problem so far: a speed-up needs the reference.
        beside = self._beside.setdefault((restarts[0].case.problem, restarts[0].case.mode), [])
        beside += restarts
        for row in rows.rows_of(beside, ceilings=self._ceilings):
            if row.arm == restarts[0].arm.id:
                self.printed.add(row.case_id + row.arm)
                print(jsonl.line(jsonl.record(row, self._names)), flush=True)


def exit_code(results: Iterable[Result], ending: Ending, strict: bool = False) -> int:
    """128 + signal if stopped, 5 if a case failed, 6 if nothing is ok, else 0; `strict`: oom and skipped fail too."""
    if ending.interrupted:
        return stop_signals.current.exit_code
    statuses = {result.status for result in results}
    refused = strict and statuses & {Status.OOM, Status.SKIPPED, Status.UNAVAILABLE}
    if refused or any(status.failed for status in statuses):
        return Exit.FAILED
    return Exit.OK if Status.OK in statuses else Exit.NOTHING_MEASURED
