"""`attnbench run`: measure, store, show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import CHOOSING, MEASURING, OUTPUT


def run(
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
    reference: options.Reference = "naive",
    device: options.DeviceOption = None,
    budget: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="Time for everything: 45s, 5m; 0 lifts it.", metavar="TIME")
    ] = "",
    rounds: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="Least and most rounds.", metavar="LO..HI")
    ] = "5..30",
    launches: Annotated[
        int, typer.Option(rich_help_panel=MEASURING, help="How often all workers start anew.", metavar="N")
    ] = 1,
    timeout: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="For each phase of a case.", metavar="TIME")
    ] = "60s",
    mem_limit: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="80% of what is free, or 8GiB.", metavar="SIZE")
    ] = "80%",
    timing: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="wall, events, graph, cupti, or all of them.", metavar="MODE")
    ] = "",
    cache: Annotated[str, typer.Option(rich_help_panel=MEASURING, help="cold or warm.", metavar="STATE")] = "",
    rel_ci: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="Stop at this half-width of the interval.", metavar="SHARE")
    ] = "2%",
    seed: Annotated[int, typer.Option(rich_help_panel=MEASURING, help="Of inputs and of the order.", metavar="N")] = 0,
    inputs: options.Inputs = "normal",
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", rich_help_panel=MEASURING, help="Look at each case after its rounds; traces go into the run."
        ),
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CHOOSING, help="Keep these: seq=..4k.", metavar="KEY=VALUES")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CHOOSING, help="Drop these: backend=flex.", metavar="KEY=VALUES")
    ] = None,
    shrink: Annotated[
        str,
        typer.Option(
            rich_help_panel=CHOOSING,
            help="Lengths and batches at that share, for a small machine: 0.25.",
            metavar="SHARE",
        ),
    ] = "",
    shard: Annotated[
        str, typer.Option(rich_help_panel=CHOOSING, help="One part of all cases: 3/8.", metavar="K/N")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", rich_help_panel=CHOOSING, help="Print the plan alone.")] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", rich_help_panel=CHOOSING, help="Stop at a failure.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", rich_help_panel=CHOOSING, help="Exit 5 for oom, skipped, unavailable too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", rich_help_panel=OUTPUT, help="Run directory; goes on there.")
    ] = None,
    resume: Annotated[
        str, typer.Option(rich_help_panel=OUTPUT, help="Go on with this run, or `last`.", metavar="RUN")
    ] = "",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", rich_help_panel=OUTPUT, help="Measure failed cases again.")
    ] = False,
    metrics: options.Metrics = "",
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Go on although the machine changed.")
    ] = False,
    tag: Annotated[
        list[str] | None, typer.Option(rich_help_panel=OUTPUT, help="Stored with the run.", metavar="KEY=VALUE")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", rich_help_panel=OUTPUT, help="table, md, csv, jsonl.", metavar="FORMAT")
    ] = "table",
    json_: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="JSON Lines on stdout.")] = False,
    no_save: Annotated[bool, typer.Option("--no-save", rich_help_panel=OUTPUT, help="Keep no run directory.")] = False,
    report: Annotated[bool, typer.Option("--report", rich_help_panel=OUTPUT, help="Write the report too.")] = False,
    progress: Annotated[
        str, typer.Option(rich_help_panel=OUTPUT, help="auto, bar, lines, none.", metavar="STYLE")
    ] = "auto",
) -> int:
    """Sweep attention backends: verify every output, time in paired rounds, store and show.

    Without options: the suite `quick`, under a minute on two cores.
    """
    from attnbench.cli import defaults, running
    from attnbench.sweep import Request

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
        reference=reference,
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        shard=shard,
        shrink=shrink,
        budget=budget,
        rounds=rounds,
        launches=launches,
        timeout=timeout,
        mem_limit=mem_limit,
        timing=timing,
        cache=cache,
        rel_ci=rel_ci,
        seed=seed,
        tags=options.pairs(tag, "--tag"),
        metrics=metrics,
        inputs=inputs,
        profile=profile,
    )
    return running.main(
        request,
        running.Manner(
            dry_run=dry_run,
            fail_fast=fail_fast,
            strict=strict,
            out=out,
            resume=resume,
            retry_failed=retry_failed,
            force=force,
            format="jsonl" if json_ else format_,
            save=not no_save,
            report=report,
            progress=progress,
            quiet=context.obj["quiet"],
            origins=defaults.origins(context, context.obj["app"]) if context.obj["verbose"] else {},
            color=context.obj["color"],
        ),
    )
