"""`attnbench claims`: check the claims of the articles on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.engine.sweep import Request
    from attnbench.records.result import Result
    from attnbench.records.run_directory import Run
    from attnbench.studies.max_seq import Longest

MAX_SEQ = {"heads": "1", "mask": "none", "seq": "64", "dtype": "fp32"}


@options.with_options(
    options.DEVICE, options.ROUNDS, options.BUDGET.but(help="Time limit of the suite: 4m; 0 for no limit.")
)
def claims(
    context: typer.Context,
    request: Request,
    run: Annotated[
        str,
        typer.Option("--run", help="Judge this stored run of the suite, or `last`, without measuring.", metavar="RUN"),
    ] = "",
    progress: options.Progress = "auto",
    json: options.Json = False,
) -> int:
    """Test claims of survey articles on this machine.

    Prints prediction, measurement and verdict of the claims C1 to C17 of docs/articles.md. Measures the suite `claims`,
    the effect of noise and quantisation, and the longest sequence that fits; under five minutes on two cores.
    """
    import msgspec

    from attnbench.cli import output, running, stop_signals
    from attnbench.engine.sweep import prepare
    from attnbench.studies import claims as study

    shared = options.global_options(context)
    if run:
        options.refuse_beside(context, f"claims --run {run}", ("run", "progress", "json"))
        return _show(output.load(run), [], [], [], json)
    request = msgspec.structs.replace(request, suites=(study.SUITE,))
    stored, interrupted = running.measure(prepare(request), shared, progress, "claims")
    if interrupted:
        return stop_signals.current.exit_code
    robust = _probed(study.ROBUST, "noise", request.device)
    quantised = _probed(study.QUANTISED, "quantisation", request.device)
    code = _show(stored, robust, quantised, _longest(request.device, shared.quiet), json)
    return output.after_study(stored, code)


def _probed(axes: dict[str, str], probe: str, device: str) -> list[Result]:
    from attnbench.engine import verify_only
    from attnbench.engine.runner import SilentObserver
    from attnbench.engine.sweep import Request

    request = Request(axes=axes, backend="naive", device=device, probe=probe)
    return verify_only.run(verify_only.prepare(request), SilentObserver()).results


def _longest(device: str, quiet: bool) -> list[Longest]:
    from attnbench.cli.running import find_max_seq
    from attnbench.engine import sweep
    from attnbench.engine.sweep import Request
    from attnbench.studies import max_seq

    request = Request(axes=MAX_SEQ, backend="naive,sdpa:flash", device=device, mem_limit="1GiB", timeout="1s")
    planned = sweep.prepare(request)
    if not planned.plan.groups or max_seq.objection(planned.settings):
        return []
    return find_max_seq(planned, planned.plan.groups[0].problem, planned.plan.groups[0].mode, quiet)


def _show(stored: Run, robust: list[Result], quantised: list[Result], longest: list[Longest], as_json: bool) -> int:
    import msgspec

    from attnbench.analysis import rows
    from attnbench.cli import output
    from attnbench.errors import Exit
    from attnbench.records.result import Status
    from attnbench.report.terminal import scaling as report
    from attnbench.studies import claims as study

    beside = robust or quantised or longest
    if not beside and not any(result.status is Status.OK for result in stored.results):
        print(f"no claim: nothing was measured in {stored.path}", file=sys.stderr)
        return Exit.NOTHING_MEASURED
    verdicts = list(study.judged(rows.rows_of(stored.results), robust, quantised, longest))
    records = ({"type": "claim", **msgspec.to_builtins(verdict)} for verdict in verdicts)
    output.lines(records, (*report.claims(verdicts, output.width()), report.tally(verdicts)), as_json)
    if left := output.share_of_cases(stored, lambda status: status is Status.SKIPPED):
        print(f"{left} not measured: some claims lack them", file=sys.stderr)
    return Exit.OK
