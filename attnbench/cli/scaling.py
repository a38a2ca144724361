"""`attnbench scaling`: how time and memory grow, which textbook claims hold, and which length still fits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.engine_options import EngineOptions

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request
    from attnbench.records.run_directory import Run


@options.with_options(
    options.SUITES, options.PROBLEM, options.ARMS, options.HARDWARE, options.BUDGET, options.ROUNDS,
    options.TIMEOUT.but(
        help="Time limit of each phase of a case, 60s by default; with --find-max-seq of each probe, 20s.", default=""
    ),
    options.MEM_LIMIT, options.SEED,
)  # fmt: skip
def scaling(
    context: typer.Context,
    request: Request,
    how: EngineOptions,
    run: Annotated[
        str,
        typer.Option(
            "--run", help="Fit the exponents of this stored run, or `last`, without measuring.", metavar="RUN"
        ),
    ] = "",
    find_max_seq: Annotated[
        bool,
        typer.Option("--find-max-seq", help="Find the longest sequence that fits for each backend, and no exponents."),
    ] = False,
    progress: options.Progress = "auto",
    json: options.Json = False,
) -> int:
    """Fit how time and memory grow with length, heads and batch.

    Prints exponents with intervals, and tests claims about them. Without options: the suite `scaling`, under three
    minutes on two cores.
    """
    import msgspec

    from attnbench.cli import engine_options, output, running, stop_signals
    from attnbench.studies.scaling import DEFAULT_SUITE

    shared = options.global_options(context)
    if run:
        options.refuse_beside(context, f"scaling --run {run}", ("run", "progress", "json"))
        return _show(output.load(run), json)
    request = msgspec.structs.replace(request, timeout=request.timeout or ("20s" if find_max_seq else "60s"))
    if find_max_seq:
        engine_options.refuse(how, "--find-max-seq", "probes the memory of this machine")
        return _max_seq(request, json, quiet=shared.quiet)
    with engine_options.prepared(how, request, DEFAULT_SUITE) as (planned, start):
        stored, interrupted = running.measure(planned, shared, progress, "scaling", start, options.typed(how))
    code = output.after_study(stored, _show(stored, json))
    return stop_signals.current.exit_code if interrupted else code


def _show(stored: Run, as_json: bool) -> int:
    import msgspec

    from attnbench.analysis import rows
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.report.terminal import scaling as report
    from attnbench.studies import scaling as study

    laws = list(study.laws(rows.rows_of(stored.results)))
    claims = list(study.claims(laws)) if laws else []
    width = output.width()
    records = (*map(report.record, laws), *({"type": "claim", **msgspec.to_builtins(claim)} for claim in claims))
    output.lines(records, (*report.laws(laws, width), "", *report.claims(claims, width)), as_json)
    if not laws:
        print(f"no exponent: no axis was measured at {study.MIN_POINTS} points or more", file=sys.stderr)
    return Exit.OK if laws else Exit.NOTHING_MEASURED


def _max_seq(request: Request, as_json: bool, quiet: bool) -> int:
    import msgspec

    from attnbench.cli import output, running
    from attnbench.engine import sweep
    from attnbench.errors import Exit, UsageError
    from attnbench.report.terminal import scaling as report
    from attnbench.studies import max_seq as study
    from attnbench.units import size

    if set(request.axes) & {"seq", "seq_q", "seq_kv", "lengths"}:
        raise UsageError("--find-max-seq searches the length: leave --seq and the other lengths out")
    axes = {"mask": "none", **request.axes, "seq": "64"}
    planned = sweep.prepare(msgspec.structs.replace(request, suites=(), axes=axes))
    if objection := study.objection(planned.settings):
        print(f"--find-max-seq: {objection}", file=sys.stderr)
        return Exit.NOTHING_MEASURED
    cells = {(group.problem, group.mode) for group in planned.plan.groups}
    if len(cells) != 1:
        raise UsageError(f"--find-max-seq takes one problem; the options give {len(cells)}")
    ((problem, mode),) = cells
    longest = running.find_max_seq(planned, problem, mode, quiet)
    what = f"b{problem.batch} h{problem.heads} d{problem.head_dim} {problem.mask} {problem.dtype.value} {mode.value}"
    limit = f"{what}, {size(planned.settings.memory_bytes)} and {planned.settings.timeout_s:g} s a phase"
    output.lines(map(report.longest_record, longest), report.longest(longest, limit, output.width()), as_json)
    return Exit.OK if any(result.seq for result in longest) else Exit.NOTHING_MEASURED
