"""`attnbench claims`: the articles' claims against this machine, each with a verdict."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import MEASURING, OUTPUT

if TYPE_CHECKING:
    from attnbench.result import Result
    from attnbench.store import Run
    from attnbench.studies.max_seq import Longest

MAX_SEQ = {"heads": "1", "mask": "none", "seq": "64", "dtype": "fp32"}


def claims(
    context: typer.Context,
    device: options.DeviceOption = None,
    run: Annotated[
        str, typer.Option("--run", help="Measure nothing: judge by this run of the suite, or `last`.", metavar="RUN")
    ] = "",
    budget: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="Time for the suite: 4m; 0 lifts it.", metavar="TIME")
    ] = "",
    progress_: Annotated[
        str, typer.Option("--progress", rich_help_panel=OUTPUT, help="auto, bar, lines or none.", metavar="STYLE")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON object a line.")] = False,
) -> int:
    """The claims C1 to C17 of the articles (docs/mechanisms.md): what they predict, what is measured, the verdict.

    Measures the suite `claims`, asks how noise and few bits change outputs, and looks for the longest sequence; under
    five minutes on two cores.
    """
    from attnbench import api
    from attnbench.cli import measuring
    from attnbench.studies.claims import SUITE
    from attnbench.sweep import Request, ready

    quiet = context.obj["quiet"]
    if run:
        return _show(api.load(run), [], [], [], json_)
    request = Request(suites=(SUITE,), device=device or "", budget=budget)
    stored, interrupted = measuring.measure(ready(request), "none" if quiet else progress_)
    if interrupted:
        print(f"stopped; what was measured: attnbench claims --run {stored.path}", file=sys.stderr)
        return 130
    from attnbench.studies import claims as study

    robust = _probed(study.ROBUST, "noise", device)
    quantised = _probed(study.QUANTISED, "quantisation", device)
    code = _show(stored, robust, quantised, _longest(device, quiet), json_)
    print(f"run: {stored.path}", file=sys.stderr)
    return code


def _probed(axes: dict[str, str], probe: str, device: str | None) -> list[Result]:
    from attnbench import verification
    from attnbench.api import Quiet
    from attnbench.sweep import Request

    request = Request(axes=axes, backend="naive", device=device or "")
    return verification.run(verification.ready(request, (probe,)), Quiet()).results


def _longest(device: str | None, quiet: bool) -> list[Longest]:
    from attnbench import sweep
    from attnbench.studies import max_seq
    from attnbench.sweep import Request

    request = Request(axes=MAX_SEQ, backend="naive,sdpa:flash", device=device or "", mem_limit="1GiB", timeout="1s")
    planned = sweep.ready(request)
    arms = [arm for group in planned.plan.groups for arm in group.arms]
    if not planned.plan.groups or max_seq.objection(planned.terms):
        return []
    problem, mode = planned.plan.groups[0].problem, planned.plan.groups[0].mode
    terms = sweep.plan_terms(planned.terms)

    def say(text: str) -> None:
        if not quiet:
            print(f"probing {text}", file=sys.stderr, flush=True)

    return list(max_seq.search(problem, mode, arms, planned.terms, terms, say))


def _show(stored: Run, robust: list[Result], quantised: list[Result], longest: list[Longest], as_json: bool) -> int:
    import msgspec

    from attnbench import frame
    from attnbench.errors import Exit
    from attnbench.report import scaling as report
    from attnbench.report.table import columns
    from attnbench.studies import claims as study

    told = list(study.judged(frame.rows(stored.results), robust, quantised, longest))
    if as_json:
        for one in told:
            print(msgspec.json.encode({"type": "claim", **msgspec.to_builtins(one)}).decode())
    else:
        for line in report.claims(told, columns() if sys.stdout.isatty() else None):
            print(line)
        print(report.tally(told))
    return Exit.OK if told else Exit.NOTHING_MEASURED
