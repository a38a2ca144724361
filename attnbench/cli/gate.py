"""`attnbench gate`: compare head with base, with verdicts, an exit code, and reports for CI."""

from __future__ import annotations

import math
import os
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import engine_options, options
from attnbench.cli.checks import one_of
from attnbench.cli.engine_options import EngineOptions
from attnbench.cli.options import GlobalOptions, OptionGroup, option

if TYPE_CHECKING:
    from attnbench.cli.running import PreparedGate
    from attnbench.engine.plan import Plan
    from attnbench.engine.sweep import Request
    from attnbench.gate.judgement import GateVerdicts
    from attnbench.gate.paired import GateRun
    from attnbench.gate.trees import Revision
    from attnbench.records.arm import Arm
    from attnbench.records.run_directory import Run


class Base(OptionGroup, frozen=True, kw_only=True):
    """What head is compared with."""

    base_ref: Annotated[str, option("--base-ref", help="Base: a commit, branch or tag.", metavar="REF")] = ""
    against: Annotated[int | None, option("--against", help="Base: the commit so many before HEAD.", metavar="N")] = (
        None
    )
    base_path: Annotated[
        Path | None, option("--base-path", help="Base: another checkout of the project.", metavar="DIR")
    ] = None
    base_python: Annotated[
        str, option("--base-python", help="Base: the Python of another environment.", metavar="PYTHON")
    ] = ""
    baseline: Annotated[
        str, option(help="Compare the stored RUN with this run or baseline instead of measuring.", metavar="RUN|NAME")
    ] = ""
    noop: Annotated[bool, option("--noop", help="Compare head with itself, to see what this machine can detect.")] = (
        False
    )

    changed: Annotated[
        bool, option("--changed", help="Measure only cases whose code differs between base and head.")
    ] = False

    @property
    def flags(self) -> list[str]:
        """The options that name a base to measure."""
        values = {
            "--base-ref": self.base_ref, "--against": self.against is not None, "--base-path": self.base_path,
            "--base-python": self.base_python, "--noop": self.noop,
        }  # fmt: skip
        return [name for name, value in values.items() if value]


class Reports(OptionGroup, frozen=True, kw_only=True):
    """What is printed and written, and the exit code of an undecided case."""

    inconclusive: Annotated[
        str,
        option(
            help="Exit code if a case stays undecided: 3 (fail) or 0 (ok).",
            metavar="fail|ok",
            check=one_of("choice", lambda: ("fail", "ok")),
        ),
    ] = "fail"
    everything: Annotated[
        bool, option("--all", help="Also show unchanged cases; with -v also their memory and errors.")
    ] = False
    json: options.Json = False
    markdown: Annotated[Path | None, option(help="Write a pull-request comment to this file.", metavar="FILE")] = None
    junit: Annotated[Path | None, option(help="Write JUnit XML to this file.", metavar="FILE")] = None
    gitlab: Annotated[Path | None, option(help="Write a GitLab code quality report to this file.", metavar="FILE")] = (
        None
    )
    github: Annotated[
        bool,
        option("--github", help="Print GitHub annotations, append to the step summary, and set the output `verdict`."),
    ] = False
    history: Annotated[
        Path | None, option("--history", help="Append the times of head to this history file.", metavar="FILE")
    ] = None


@options.with_options(
    options.SUITES.but(
        metavar="SUITE|RUN", help="Suites to measure, `ci` by default; or the run of a gate, to judge it again."
    ),
    options.PROBLEM, options.BACKEND, options.BACKEND_PYTHON,
    options.DEVICE.but(help="Devices; by default cuda:0, or cpu:threads=1 without a GPU."), options.HARDWARE,
    options.BUDGET.but(default="15m", help="Time after which no further restart begins."),
    options.ROUNDS.but(default="10", help="Number of rounds per restart.", metavar="N"),
    options.TIMEOUT, options.SEED, options.ONLY, options.SKIP,
)  # fmt: skip
def gate(
    context: typer.Context,
    request: Request,
    base: Base,
    how: EngineOptions,
    reports: Reports,
    case: Annotated[str, option("--case", help="Measure one case only: its label or id.", metavar="CASE")] = "",
    out: Annotated[Path | None, option("--out", "-o", help="Run directory.", metavar="DIR")] = None,
    progress: options.Progress = "auto",
) -> int:
    """Compare two versions of a project: what regressed.

    Measures base and head side by side over worker restarts, until every case is decided or too noisy.

    Exit codes: 0 ok, 1 regressed, 3 inconclusive, 4 not comparable, 5 wrong, failed or vanished, 6 nothing measured.
    """
    from attnbench.cli import output, stop_signals
    from attnbench.errors import Exit, UsageError
    from attnbench.report.terminal import gate_verdicts as report

    interrupted, larger = False, ""
    if stored := _stored(request.suites):
        engine_options.refuse(how, stored, "is a stored run, which is judged here")
        run, judged = _judged_again(stored, base)
    elif base.baseline:
        _check_names(request.suites)
        name = base.baseline
        raise UsageError(f"--baseline {name}: the run to compare is missing: attnbench gate RUN --baseline {name}")
    else:
        shared = options.global_options(context)
        ended, larger = _measure(request, how, case, base, out, shared, progress)
        run, judged, interrupted = ended.run, ended.judgement, ended.interrupted
        if ended.note:
            print(ended.note, file=sys.stderr)
    code = stop_signals.current.exit_code if interrupted else report.exit_code(judged, reports.inconclusive == "ok")
    _print(run, judged, code, reports, noop=base.noop, verbose=options.global_options(context).verbose)
    _write(run, judged, reports)
    if reports.history:
        output.append_run(reports.history, run)
    if base.noop and not reports.json:
        print(f"\n{report.reach(judged)}")
    print(f"run: {run.path}", file=sys.stderr)
    if interrupted:
        print(f"stopped; judge again what was measured: attnbench gate {run.path}", file=sys.stderr)
    elif any(result.status.failed for result in run.results):
        print(f"next: {output.next_command(run)}", file=sys.stderr)
    elif larger and code is Exit.NOTHING_MEASURED:
        print(f"next: {larger}", file=sys.stderr)
    return code


def _stored(names: tuple[str, ...]) -> str:
    """The name of a run, where a run was given and no suite. Raises UsageError for a run beside another name."""
    from attnbench.errors import UsageError
    from attnbench.records import run_directory

    root = run_directory.results_root()
    stored = [
        name
        for name in names
        if name == "last" or any((path / run_directory.MANIFEST).is_file() for path in (Path(name), root / name))
    ]
    if not stored or len(names) == 1:
        return "".join(stored)
    if len(stored) == len(names) == 2:
        old, new = map(shlex.quote, stored)
        raise UsageError(
            f"gate judges one stored run; to compare two: attnbench compare {old} {new}, or with verdicts: "
            f"attnbench gate {new} --baseline {old}"
        )
    raise UsageError(f"{stored[0]} is a stored run, which gate takes alone, to judge it again")


def _check_names(names: tuple[str, ...], *, runs: bool = True) -> None:
    """Raises UsageError for a name that is neither a suite nor, where `runs` are taken, a run."""
    from attnbench.errors import UnknownNameError, UsageError
    from attnbench.records import run_directory
    from attnbench.suite import files

    for name in names:
        if "/" in name and Path(name).suffix not in (".toml", ".json") and not Path(name).is_file():
            newest = [str(path) for path in run_directory.stored_in(run_directory.results_root())[-1:]]
            known = f"the newest run is {newest[0]}" if newest else f"{run_directory.results_root()}/ holds no run"
            raise UsageError(f"no suite and no run of the name {name!r}; {known}; suites: attnbench list suites")
        try:
            files.load(name)
        except UnknownNameError as error:
            if error.name != name or not runs:  # the first: a name inside a suite file
                raise
            raise UnknownNameError("run or suite", name, error.known) from None


def _judged_again(name: str, base: Base) -> tuple[Run, GateVerdicts]:
    from attnbench.cli import output
    from attnbench.errors import UsageError
    from attnbench.gate import judgement
    from attnbench.gate import stored as rule

    if flags := [*base.flags, *(["--changed"] if base.changed else [])]:
        raise UsageError(f"{flags[0]}: {name} is a stored run; a base is only for suites that are to be measured")
    run = output.load(name)
    if base.baseline:
        return run, rule.against(run, rule.base_of(base.baseline, run.manifest.fingerprint))
    return run, judgement.judge(run)


def _side(base: Base) -> AbstractContextManager[Revision]:
    from attnbench.errors import UsageError
    from attnbench.gate import trees

    if len(base.flags) != 1:
        problem = f"{' and '.join(base.flags)} name the base twice" if base.flags else "no base"
        options = "--base-ref REF, --against N, --base-path DIR, --base-python PYTHON, --noop"
        raise UsageError(f"{problem}: give one of {options}")
    if base.changed and (base.base_python or base.noop):
        raise UsageError(f"--changed: {base.flags[0]} compares no files; give --base-ref, --against or --base-path")
    if base.against is not None:
        return trees.of_back(base.against)
    if base.base_ref:
        return trees.of_ref(base.base_ref)
    if base.base_path:
        return nullcontext(trees.of_path(base.base_path))
    return nullcontext(trees.of_python(base.base_python) if base.base_python else trees.head())


def _side_of(arm: Arm) -> str:
    """`sdpa:flash base`; the A/A control runs base as well."""
    from attnbench.gate.evidence import BASE, CONTROL, HEAD

    return f"{arm.backend} {({BASE: 'base', HEAD: 'head', CONTROL: 'control'})[arm.copy]}"


def _measure(
    request: Request, how: EngineOptions, case: str, base: Base, out: Path | None, shared: GlobalOptions, progress: str
) -> tuple[GateRun, str]:  # fmt: skip
    """Measure base and head, and say before what is compared; and the command with a budget for a first look."""
    from datetime import UTC, datetime

    from attnbench.cli import running
    from attnbench.gate import paired
    from attnbench.records import run_directory

    if base.base_python:
        engine_options.refuse(how, f"--base-python {base.base_python}", "names an interpreter of this machine")
    _check_names(request.suites, runs=not base.flags)
    with _side(base) as side, running.prepared_gate(how, request, case, side, base.changed) as gate:
        ready = gate.ready
        paired.check(ready)
        where = out or run_directory.new_directory(
            run_directory.results_root(), f"gate-{ready.name}", ready.devices[0].text, datetime.now(UTC)
        )
        judged_later = running.named_at_once(where, f"attnbench gate {where}")
        larger: list[str] = []

        def announce(plan: Plan) -> None:
            if plan.groups and not math.isinf(gate.budget_s):
                budget = _sufficient_budget(_first_look_s(gate, plan), gate.budget_s)
                larger.append(shlex.join(running.with_value(running.command(), ("--budget",), budget)))
            if not shared.quiet:
                print(_headline(gate, plan), file=sys.stderr)

        with judged_later, running.watched(shared.progress(progress), 0, _side_of) as (watcher, watch):
            ended = paired.measure(
                ready, gate.base, gate.head, directory=where, observer=watcher, budget_s=gate.budget_s, watch=watch,
                announce=announce, command=running.command(), chosen_cases=gate.cases, engine=gate.engine,
            )  # fmt: skip
    return ended, "".join(larger)


def _first_look_s(gate: PreparedGate, plan: Plan) -> float:
    """Predicted seconds of the first look."""
    settings = gate.ready.settings
    return plan.rest(frozenset(), range(settings.restarts), settings.speeds).seconds


def _sufficient_budget(needed_s: float, budget_s: float) -> str:
    """A budget for so long, as typed; twice the one that was given if that should have sufficed."""
    wanted_s = 1.05 * needed_s if needed_s > budget_s else 2 * budget_s
    return f"{5 * math.ceil(wanted_s / 5)}s"


def _headline(gate: PreparedGate, plan: Plan) -> str:
    """What is compared, and how long it takes: the first look by prediction, the further ones by the budget."""
    from attnbench.cli import output
    from attnbench.gate import judgement, significance
    from attnbench.units import about, counted

    ready, most = gate.ready, max(significance.LOOKS)
    looked_at = ready.settings.restarts
    needed_s = _first_look_s(gate, plan)
    within = "" if math.isinf(gate.budget_s) else f", within {about(gate.budget_s)}"
    limit = f"up to {most} where undecided{within}"
    if needed_s > gate.budget_s:
        budget = _sufficient_budget(needed_s, gate.budget_s)
        limit = f"more than the budget of {about(gate.budget_s)}: try --budget {budget}"
    times = f"about {about(needed_s)} for {looked_at} restarts ({plan.times_from}), {limit}"
    parts = [
        f"gate {ready.name}",
        judgement.sides(gate.base.name, gate.head.name),
        counted(len(plan.groups), "case"),
        ", ".join(device.text for device in ready.devices),
        times if plan.groups else "nothing to measure",
    ]
    return "\n".join([output.machine(ready), " · ".join(parts)])


def _print(run: Run, judged: GateVerdicts, code: int, reports: Reports, *, noop: bool, verbose: bool) -> None:
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.report.terminal import gate_verdicts as report
    from attnbench.report.terminal.text_layout import terminal_width

    records = (*map(report.record, judged.verdicts), report.summary(run, judged, Exit(code)))
    lines = report.text(run, judged, terminal_width(), reports.everything or noop, verbose)
    output.lines(records, lines, reports.json)


def _write(run: Run, judged: GateVerdicts, reports: Reports) -> None:
    from attnbench.errors import writing
    from attnbench.report.formats import gate_comment, github_annotations, gitlab_code_quality
    from attnbench.report.formats import junit as junit_format
    from attnbench.report.terminal import gate_verdicts

    texts = (
        (reports.markdown, gate_comment.markdown(run, judged)),
        (reports.junit, junit_format.xml(judged, run.manifest.suite)),
        (reports.gitlab, gitlab_code_quality.json(judged, run.manifest.request.get("suites", ()))),
    )
    for path, text in texts:
        if path:
            with writing(path):
                path.write_text(text, encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)
    if reports.github:
        _append("GITHUB_STEP_SUMMARY", gate_comment.markdown(run, judged, gate_comment.MAX_SUMMARY))
        _append("GITHUB_OUTPUT", f"verdict={gate_verdicts.verdict_word(judged)}\n")
        for line in github_annotations.commands(judged):
            print(line)


def _append(variable: str, text: str) -> None:
    """Append to the file that a variable of GitHub Actions names, if it is set."""
    from attnbench.errors import writing

    if name := os.environ.get(variable):
        with writing(Path(name)), Path(name).open("a", encoding="utf-8") as file:
            file.write(text)
