"""What `run` does around a sweep: plan shown, progress, Ctrl-C, tables and the exit code."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from attnbench import frame, host, store, sweep
from attnbench.attention.problem import Mode, Problem
from attnbench.cli import plan_view, progress
from attnbench.cli.output import show
from attnbench.errors import Exit, UnknownNameError, UsageError
from attnbench.result import Result, Status
from attnbench.runner import Ending, Runner
from attnbench.sweep import Request, Sweep


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is started and shown; nothing of it changes a number."""

    dry_run: bool = False
    fail_fast: bool = False
    strict: bool = False
    out: Path | None = None
    resume: str = ""
    retry_failed: bool = False
    force: bool = False
    format: str = "table"
    save: bool = True
    report: bool = False
    progress: str = "auto"
    quiet: bool = False
    origins: dict[str, str] = {}  # of every option's value, for `--dry-run -v`
    color: str = "auto"


def main(request: Request, manner: Manner) -> int:
    """The whole command; gives the exit code."""
    from attnbench.report import FORMATS

    if manner.format not in FORMATS:
        raise UnknownNameError("format", manner.format, FORMATS, where="--format")
    if manner.resume and manner.out:
        raise UsageError("--resume and --out name the run directory twice; give one of them")
    directory = manner.out
    if manner.resume:
        directory = store.resolve(manner.resume, store.results_root())
        request = _stored_request(directory, request)
    ready = sweep.ready(request)
    if manner.dry_run:
        plan_view.show(ready, manner.format, manner.origins)
        return Exit.OK
    if manner.save:
        return _measure(ready, manner, directory)
    with tempfile.TemporaryDirectory(prefix="attnbench-") as folder:
        return _measure(ready, manner, Path(folder) / "run")


def _stored_request(directory: Path, request: Request) -> Request:
    """What the run was asked for. Options given now would be lost in silence, so they are refused."""
    stored = msgspec.convert(store.read(directory).manifest.request, Request)
    given = [
        field.name
        for field in msgspec.structs.fields(request)
        if getattr(request, field.name) not in (field.default, getattr(stored, field.name))
        and field.name not in ("budget", "axes", "tags")
    ]
    if given or request.axes not in ({}, stored.axes):
        names = ", ".join(given or sorted(request.axes))
        raise UsageError(f"--resume takes the request of the run; to add to it, use --out {directory} (given: {names})")
    return msgspec.structs.replace(stored, budget=request.budget or stored.budget)


def _measure(ready: Sweep, manner: Manner, directory: Path | None) -> int:
    streaming = manner.format == "jsonl"
    names = sweep.shown_metrics(ready.request)
    style = "none" if manner.quiet else manner.progress
    if not manner.quiet:
        plan_view.headline(ready)
    with progress.observer(style, ready.plan.cases * ready.terms.launches) as watcher:
        observer = Streaming(watcher, ready, names) if streaming else watcher
        runner_seen: list[Runner] = []
        with interruptible(runner_seen):
            outcome = sweep.run(
                ready.request,
                observer,
                directory=directory,
                retry_failed=manner.retry_failed,
                force=manner.force,
                fail_fast=manner.fail_fast,
                watch=runner_seen.append,
                sweep=ready,
                command=["attnbench", *sys.argv[1:]],
            )
    code = exit_code(outcome.run.results, outcome.ending, manner.strict)
    printed = observer.printed if isinstance(observer, Streaming) else ()
    show(outcome.run, manner.format, color=manner.color, saved=manner.save, code=code, printed=printed, metrics=names)
    if manner.report:
        from attnbench.report import write

        print(f"report: {write([outcome.run])}", file=sys.stderr)
    if outcome.ending.interrupted:
        print(f"stopped; go on with: attnbench run --resume {outcome.directory}", file=sys.stderr)
    return code


@contextmanager
def interruptible(runners: list[Runner]) -> Iterator[None]:
    """The first Ctrl-C lets the block in progress end and keeps all results; the second stops at once."""

    def ask_to_stop(*_: object) -> None:
        if not runners or runners[-1].stop_requested:
            raise KeyboardInterrupt
        runners[-1].stop_requested = True  # of several stages the one that goes on
        print("\nstopping after this block; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, ask_to_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Streaming:
    """Writes one JSON line to stdout as each case ends: with several launches, as its last one ends."""

    def __init__(self, watcher: progress.Silent, ready: Sweep, names: Sequence[str]) -> None:
        self._watcher, self._launches, self._names = watcher, ready.terms.launches, names
        devices = {arm.device for arm in ready.plan.arms}
        self._roofs = sweep.calibrated(devices, host.fingerprint()[0]) if names else {}
        self._seen: dict[tuple[str, str], list[Result]] = {}
        self._beside: dict[tuple[Problem, Mode], list[Result]] = {}
        self.printed: set[str] = set()

    def phase(self, text: str) -> None:
        """Passed on."""
        self._watcher.phase(text)

    def result(self, result: Result, remaining_s: float) -> None:
        """Passed on, and printed when the case is complete."""
        self._watcher.result(result, remaining_s)
        launches = self._seen.setdefault((result.case.id, result.arm.id), [])
        launches.append(result)
        if len(launches) == self._launches or not result.group:  # a refusal of the plan has one line for all launches
            self._print(launches)

    def _print(self, launches: list[Result]) -> None:
        from attnbench.report import jsonl

        # Beside what the other arms of the problem gave so far, or there would be no speed-up.
        beside = self._beside.setdefault((launches[0].case.problem, launches[0].case.mode), [])
        beside += launches
        for row in frame.rows(beside, roofs=self._roofs):
            if row["arm"] == launches[0].arm.id:
                self.printed.add(row["case_id"] + row["arm"])
                print(jsonl.line(jsonl.record(row, self._names)), flush=True)


def exit_code(results: Iterable[Result], ending: Ending, strict: bool = False) -> int:
    """130 if interrupted, 5 if a case failed, 6 if nothing is ok, else 0; `strict` counts oom and skipped as failed."""
    if ending.interrupted:
        return Exit.INTERRUPTED
    statuses = {result.status for result in results}
    if any(status.failed for status in statuses):
        return Exit.FAILED
    if strict and statuses & {Status.OOM, Status.SKIPPED, Status.UNAVAILABLE}:
        return Exit.FAILED
    return Exit.OK if Status.OK in statuses else Exit.NOTHING_MEASURED
