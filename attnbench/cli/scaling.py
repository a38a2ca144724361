"""`attnbench scaling`: how time and memory grow, what that says of the textbook's claims, and what still fits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import MEASURING, OUTPUT

if TYPE_CHECKING:
    from attnbench.store import Run
    from attnbench.sweep import Request


def scaling(
    context: typer.Context,
    suites: options.Suites = None,
    seq: options.Seq = None,
    batch: options.Batch = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    head_dim: options.HeadDim = None,
    dtype: options.Dtype = None,
    mask: options.Mask = None,
    score: options.Score = None,
    bias: options.Bias = None,
    mode: options.ModeOption = None,
    set_: options.Set = None,
    backend: options.BackendOption = None,
    device: options.DeviceOption = None,
    run: Annotated[
        str, typer.Option("--run", help="Measure nothing: take the exponents from this run, or `last`.", metavar="RUN")
    ] = "",
    find_max_seq: Annotated[
        bool, typer.Option("--find-max-seq", help="The longest sequence that fits, by backend, instead.")
    ] = False,
    budget: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="Time for everything: 150s, 5m; 0 lifts it.", metavar="TIME")
    ] = "",
    rounds: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="Least and most rounds.", metavar="LO..HI")
    ] = "5..30",
    timeout: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="For each phase of a case, each probe.", metavar="TIME")
    ] = "",
    mem_limit: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="80% of what is free, or 8GiB.", metavar="SIZE")
    ] = "80%",
    seed: Annotated[int, typer.Option(rich_help_panel=MEASURING, help="Of inputs and of the order.", metavar="N")] = 0,
    progress_: Annotated[
        str, typer.Option("--progress", rich_help_panel=OUTPUT, help="auto, bar, lines or none.", metavar="STYLE")
    ] = "auto",
    json_: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON object a line.")] = False,
) -> int:
    """Exponents of time and memory along seq, head_dim, heads and batch, with the claims that they decide.

    Without options: the suite `scaling`, under three minutes on two cores.
    """
    from attnbench import api
    from attnbench.cli import measuring
    from attnbench.studies.scaling import DEFAULT_SUITE
    from attnbench.sweep import Request, ready

    axes = options.axes(
        set_, seq=seq, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, mask=mask,
        score=score, bias=bias, mode=mode,
    )  # fmt: skip
    request = Request(
        suites=tuple(suites or ()),
        axes=axes,
        backend=backend or "",
        device=device or "",
        budget=budget,
        rounds=rounds,
        timeout=timeout or ("20s" if find_max_seq else "60s"),
        mem_limit=mem_limit,
        seed=seed,
    )
    width = None if json_ or not sys.stdout.isatty() else _columns()
    if find_max_seq:
        return _max_seq(request, width, json_, quiet=context.obj["quiet"])
    if run:
        return _show(api.load(run), width, json_)
    planned = ready(request, default_suite=DEFAULT_SUITE)
    stored, interrupted = measuring.measure(planned, "none" if context.obj["quiet"] else progress_)
    code = _show(stored, width, json_)
    print(f"run: {stored.path}", file=sys.stderr)
    return 130 if interrupted else code


def _columns() -> int:
    from attnbench.report.table import columns

    return columns()


def _show(stored: Run, width: int | None, as_json: bool) -> int:
    import msgspec

    from attnbench import frame
    from attnbench.errors import Exit
    from attnbench.report import scaling as report
    from attnbench.studies import scaling as study

    found = list(study.laws(frame.rows(stored.results)))
    told = list(study.claims(found)) if found else []
    if as_json:
        for line in (*map(report.record, found), *({"type": "claim", **msgspec.to_builtins(one)} for one in told)):
            print(msgspec.json.encode(line).decode())
    else:
        for text in (*report.laws(found, width), "", *report.claims(told, width)):
            print(text)
    if not found:
        print(f"no exponent: nothing was measured at {study.LEAST_POINTS} points of one axis", file=sys.stderr)
    return Exit.OK if found else Exit.NOTHING_MEASURED


def _max_seq(request: Request, width: int | None, as_json: bool, quiet: bool) -> int:
    import msgspec

    from attnbench import sweep
    from attnbench.errors import Exit, UsageError
    from attnbench.report import scaling as report
    from attnbench.studies import max_seq as study
    from attnbench.units import size

    if set(request.axes) & {"seq", "seq_q", "seq_kv", "lengths"}:
        raise UsageError("--find-max-seq looks for the length itself; give no --seq")
    planned = sweep.ready(
        msgspec.structs.replace(request, suites=(), axes={"mask": "none", **request.axes, "seq": "64"})
    )
    if objection := study.objection(planned.terms):
        print(f"--find-max-seq: {objection}", file=sys.stderr)
        return Exit.NOTHING_MEASURED
    cells = {(group.problem, group.mode) for group in planned.plan.groups}
    if len(cells) != 1:
        raise UsageError(f"--find-max-seq takes one problem; the options give {len(cells)}")
    ((problem, mode),) = cells
    arms = [arm for group in planned.plan.groups for arm in group.arms]

    def say(text: str) -> None:
        if not quiet:
            print(f"probing {text}", file=sys.stderr, flush=True)

    found = list(study.search(problem, mode, arms, planned.terms, sweep.plan_terms(planned.terms), say))
    if as_json:
        for one in found:
            print(msgspec.json.encode(report.longest_record(one)).decode())
    else:
        what = (
            f"b{problem.batch} h{problem.heads} d{problem.head_dim} {problem.mask} {problem.dtype.value} {mode.value}"
        )
        limit = f"{what}, {size(planned.terms.memory_bytes)} and {planned.terms.timeout_s:g} s a phase"
        for line in report.longest(found, limit, width):
            print(line)
    return Exit.OK if any(one.seq for one in found) else Exit.NOTHING_MEASURED
