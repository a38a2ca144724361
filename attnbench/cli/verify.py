"""`attnbench verify`: check outputs against float64, without timing."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import checks, options
from attnbench.cli.engine_options import EngineOptions
from attnbench.cli.options import option

if TYPE_CHECKING:
    from attnbench.cli.options import GlobalOptions
    from attnbench.engine.sweep import Request, Sweep
    from attnbench.engine.verify_only import Verification


@options.with_options(
    options.SUITES, options.SUITE, options.PROBLEM, options.ARMS, options.HARDWARE,
    options.BUDGET.but(help="Time limit of the command: 45s or 5m; none by default."),
    options.TIMEOUT, options.MEM_LIMIT,
    options.INPUTS.but(
        help="Distributions of inputs: normal, peaked, uniform, outlier, large, sink, heavy, low, zeros or "
        "file:x.safetensors.",
        metavar="LIST",
    ),
    options.SEED.but(help="Random seed for inputs."), options.PROBE, options.ONLY, options.SKIP,
)  # fmt: skip
def verify(
    context: typer.Context,
    request: Request,
    how: EngineOptions,
    random: Annotated[
        str, option(help="Check random problems for this time: 5m.", metavar="TIME", check=checks.limit)
    ] = "",
    figures: Annotated[bool, option("--figures", help="Show the maximum, mean and rms error of every output.")] = False,
    progress: options.Progress = "auto",
    json: options.Json = False,
) -> int:
    """Check outputs and gradients against float64, without timing.

    Without options: the suite `verify`.
    """
    from attnbench.report import probe_outcomes

    shared = options.global_options(context)
    verified = _measure(request, how, random, shared, progress)
    code = _show(verified, json, figures, shared.verbose)
    if note := probe_outcomes.not_run(verified.results, request.probe):
        print(note, file=sys.stderr)
    return code


def _measure(request: Request, how: EngineOptions, random: str, shared: GlobalOptions, style: str) -> Verification:
    import msgspec

    from attnbench.attention.inputs import check
    from attnbench.cli import engine_options, running
    from attnbench.engine import verify_only
    from attnbench.errors import UsageError
    from attnbench.units import parse_seconds, words

    distributions = words(request.inputs, "--inputs")
    for name in distributions:
        check(name, "--inputs")
    request = msgspec.structs.replace(request, inputs="normal")
    if random:
        engine_options.refuse(how, f"--random {random}", "draws its problems on this machine")
        if request.suites or request.budget:
            raise UsageError(f"--random {random}: draws problems for this long; leave suites and --budget out")
        with running.watched(shared.progress(style), 0) as (watcher, watch):
            seconds = parse_seconds(random, "--random")
            return verify_only.soak(request, seconds, watcher, watch, distributions)
    request = verify_only.without_budget(request)
    with engine_options.prepared(how, request, verify_only.DEFAULT_SUITE, interpreted=True) as (timed, start):
        planned = verify_only.untimed(timed)
        names = running.names_beside(planned.plan.arms)
        results = verify_only.count(planned, distributions)
        if not shared.quiet:
            print(_headline(planned, results), file=sys.stderr)
        with running.watched(shared.progress(style), results, names) as (watcher, watch):
            verified = verify_only.run(planned, watcher, watch, distributions, start)
    _suggest_budget(planned, verified)
    return verified


def _headline(planned: Sweep, results: int) -> str:
    """What is verified, and where."""
    from attnbench.cli import output
    from attnbench.units import counted

    cases, devices = planned.plan.cases, ", ".join(device.text for device in planned.devices)
    more = f", {counted(results, 'result')}" if results > cases else ""
    return f"{output.machine(planned)}\nverify {planned.name} · {counted(cases, 'case')}{more} · {devices}"


def _suggest_budget(planned: Sweep, verified: Verification) -> None:
    """Where the budget ended before the first case: name one within which a case is verified."""
    from attnbench.cli import running
    from attnbench.engine.forecast import Forecast, smallest_budget_s
    from attnbench.machine import resources
    from attnbench.records.result import Cause

    groups, budget_s = planned.plan.groups, planned.settings.budget_s
    unreached = [result for result in verified.results if result.cause is Cause.BUDGET]
    if budget_s is None or not groups or len(unreached) < verified.planned - len(planned.plan.refusals):
        return
    needed_s = smallest_budget_s(groups, Forecast(planned.settings.speeds), len(resources.available_cores()))
    note, options = running.larger_budget(budget_s, needed_s)
    print(f"{note}: {shlex.join([*running.command(), *options])}", file=sys.stderr)


def _show(verified: Verification, as_json: bool, figures: bool, verbose: bool) -> int:
    from attnbench.cli import output
    from attnbench.cli.running import exit_code
    from attnbench.errors import Exit
    from attnbench.report import probe_outcomes
    from attnbench.report.terminal import failures, verification

    code = exit_code(verified.results, verified.ending)
    if code == Exit.OK and any(map(probe_outcomes.wrong, verified.results)):
        code = Exit.FAILED
    if as_json:
        records = (*map(verification.record, verified.results), verification.summary(verified.results, code))
        output.lines(records, (), as_json)
    else:
        _print(verified, figures, verbose)
    if verbose:
        for text in failures.text(verified.results):
            print(text, file=sys.stderr)
    elif not as_json and any("trace" in result.facts or "log" in result.facts for result in verified.results):
        print(f"next: {shlex.join(['attnbench', *sys.argv[1:], '-v'])}  # prints the traces", file=sys.stderr)
    left = verified.planned - len(verified.results)
    if verified.ending.interrupted and left:
        rest = f"{left} of {verified.planned} cases are not verified" if verified.planned else "verified what is shown"
        print(f"stopped: {rest}", file=sys.stderr)
    return code


def _print(verified: Verification, figures: bool, verbose: bool) -> None:
    from attnbench.report.terminal import verification

    shown = verification.random_problems if verified.drawn else verification.text
    for text in shown(verified.results, figures, verbose):
        print(text)
    for result in verified.results:
        if result.status.failed and (command := verified.again(result)):
            print(f"again: {command}", file=sys.stderr)
    cells: dict[str, list[str]] = {}
    for cell, reason in verified.impossible:
        cells.setdefault(reason, []).append(cell)
    for reason, of_reason in cells.items():
        others = f" and {len(of_reason) - 1} more" if len(of_reason) > 1 else ""
        print(f"impossible: {of_reason[0]}{others}: {reason}", file=sys.stderr)
