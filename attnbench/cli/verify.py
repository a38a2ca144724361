"""`attnbench verify`: outputs against float64, with no timing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import CHOOSING, MEASURING, OUTPUT

if TYPE_CHECKING:
    from attnbench.runner import Runner
    from attnbench.verification import Verified


def verify(
    context: typer.Context,
    suites: options.Suites = None,
    suite: options.Suite = None,
    seq: options.Seq = None,
    seq_q: options.SeqQ = None,
    seq_kv: options.SeqKv = None,
    batch: options.Batch = None,
    tokens: options.Tokens = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    head_dim: options.HeadDim = None,
    head_dim_v: options.HeadDimV = None,
    dtype: options.Dtype = None,
    mask: options.Mask = None,
    score: options.Score = None,
    bias: options.Bias = None,
    mode: options.ModeOption = None,
    set_: options.Set = None,
    backend: options.BackendOption = None,
    device: options.DeviceOption = None,
    budget: Annotated[
        str,
        typer.Option(rich_help_panel=MEASURING, help="Time for everything: 45s, 5m; none by default.", metavar="TIME"),
    ] = "",
    timeout: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="For each phase of a case.", metavar="TIME")
    ] = "60s",
    mem_limit: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="80% of what is free, or 8GiB.", metavar="SIZE")
    ] = "80%",
    inputs: Annotated[
        str,
        typer.Option(
            rich_help_panel=MEASURING,
            help="Distributions: normal,uniform,outlier,large,sink,zeros,file:x.safetensors.",
            metavar="LIST",
        ),
    ] = "normal",
    probe: Annotated[
        str,
        typer.Option(
            rich_help_panel=MEASURING,
            help="Beyond right or wrong: noise,adversarial,determinism,batch,double_backward,quantisation,soft.",
            metavar="LIST",
        ),
    ] = "",
    random: Annotated[
        str,
        typer.Option(
            rich_help_panel=CHOOSING, help="Problems drawn at random for so long: 5m; options hold.", metavar="TIME"
        ),
    ] = "",
    seed: Annotated[int, typer.Option(rich_help_panel=MEASURING, help="Of the inputs.", metavar="N")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CHOOSING, help="Keep these: seq=..4k.", metavar="KEY=VALUES")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CHOOSING, help="Drop these: backend=flex.", metavar="KEY=VALUES")
    ] = None,
    progress_: Annotated[
        str, typer.Option("--progress", rich_help_panel=OUTPUT, help="auto, bar, lines or none.", metavar="STYLE")
    ] = "auto",
    figures: Annotated[
        bool, typer.Option("--figures", rich_help_panel=OUTPUT, help="Max, mean and rms error of every output.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON object a line.")] = False,
) -> int:
    """Check outputs and gradients against float64, of the suite `verify` unless others are named; nothing is timed."""
    from attnbench import verification
    from attnbench.attention.inputs import check
    from attnbench.cli import progress, running
    from attnbench.errors import UsageError
    from attnbench.ranges import words
    from attnbench.sweep import Request
    from attnbench.units import parse_seconds

    axes = options.axes(
        set_,
        seq=seq,
        seq_q=seq_q,
        seq_kv=seq_kv,
        batch=batch,
        tokens=tokens,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        dtype=dtype,
        mask=mask,
        score=score,
        bias=bias,
        mode=mode,
    )
    request = Request(
        suites=(*(suites or ()), *(suite or ())),
        axes=axes,
        backend=backend or "",
        device=device or "",
        budget=budget,
        timeout=timeout,
        mem_limit=mem_limit,
        seed=seed,
        only=tuple(only or ()),
        skip=tuple(skip or ()),
    )
    distributions = words(inputs, "--inputs")
    for one in distributions:
        check(one, "--inputs")
    probes = words(probe, "--probe") if probe else ()
    runners: list[Runner] = []

    def watch(runner: Runner) -> None:
        runners[:] = [runner]

    if random:
        if request.suites or budget:
            raise UsageError(
                f"--random {random}: draws its problems and is its own budget; leave suites and --budget out"
            )
        observer = progress.observer("none" if context.obj["quiet"] else progress_, 0)
        with observer as watcher, running.interruptible(runners):
            seconds = parse_seconds(random, "--random")
            found = verification.soak(request, seconds, watcher, watch, probes, distributions)
        return _show(found, json_, figures)
    planned = verification.ready(request, probes)
    cases = planned.plan.cases * len(distributions)
    observer = progress.observer("none" if context.obj["quiet"] else progress_, cases)
    with observer as watcher, running.interruptible(runners):
        found = verification.run(planned, watcher, watch, distributions)
    return _show(found, json_, figures)


def _show(found: Verified, as_json: bool, figures: bool) -> int:
    import msgspec

    from attnbench.cli.running import exit_code
    from attnbench.report import errors

    code = exit_code(found.results, found.ending)
    if as_json:
        for line in (*map(errors.record, found.results), errors.summary(found.results, code)):
            print(msgspec.json.encode(line).decode())
        return code
    for text in (errors.drawn if found.drawn else errors.text)(found.results, figures):
        print(text)
    for result in found.results:
        if result.status.failed and (command := found.again(result)):
            print(f"again: {command}", file=sys.stderr)
    for cell, reason in found.impossible:
        print(f"impossible: {cell}: {reason}", file=sys.stderr)
    return code
