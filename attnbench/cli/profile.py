"""`attnbench profile`: where the time and the memory of one case go."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import options
from attnbench.cli.options import MEASURING, OUTPUT

if TYPE_CHECKING:
    from attnbench.result import Result


def profile(
    seq: options.Seq = None,
    seq_q: options.SeqQ = None,
    seq_kv: options.SeqKv = None,
    batch: options.Batch = None,
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
    timeout: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="For each phase of the case.", metavar="TIME")
    ] = "60s",
    mem_limit: Annotated[
        str, typer.Option(rich_help_panel=MEASURING, help="80% of what is free, or 8GiB.", metavar="SIZE")
    ] = "80%",
    bare: Annotated[
        bool,
        typer.Option("--bare", rich_help_panel=MEASURING, help="Only calls in NVTX ranges, for nsys and ncu outside."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", rich_help_panel=OUTPUT, help="Folder of trace and timeline.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON object.")] = False,
) -> int:
    """Look at one case of one backend: operators or kernels, gaps, memory over time, counters, a Perfetto trace.

    Without options: sdpa at b1 h8 q1024 d64, causal.
    """
    import msgspec

    from attnbench.cli.running import exit_code
    from attnbench.report import profile as report
    from attnbench.studies import profile as study
    from attnbench.sweep import Request

    axes = options.axes(
        set_, seq=seq, seq_q=seq_q, seq_kv=seq_kv, batch=batch, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        head_dim_v=head_dim_v, dtype=dtype, mask=mask, score=score, bias=bias, mode=mode,
    )  # fmt: skip
    request = Request(
        axes=study.DEFAULT_AXES | axes
        if {"seq_q", "lengths"} & set(axes)
        else {"seq": "1024"} | study.DEFAULT_AXES | axes,
        backend=backend or study.DEFAULT_BACKEND,
        device=device or "",
        timeout=timeout,
        mem_limit=mem_limit,
    )
    folder = out or Path("profile")
    result, ending = study.run(request, folder, bare=bare)
    code = exit_code([result], ending)
    if json_:
        print(msgspec.json.encode({"type": "profile", "folder": str(folder), **msgspec.to_builtins(result)}).decode())
    elif "profile" not in result.facts:
        print(f"{result.case.label}: {result.status.value}: {result.reason}", file=sys.stderr)
    elif bare:
        print(f"{result.case.label}: called in NVTX ranges named attnbench")
    else:
        for line in report.text(result, str(folder), _commands(result)):
            print(line)
    return code


def _commands(result: Result) -> list[str]:
    """How nsys and ncu look at the same calls; the workers are children, which both follow."""
    if not result.arm.device.startswith("cuda"):
        return []
    own = shlex.join(["attnbench", *sys.argv[1:], "--bare"])
    return [
        f"nsys profile --trace cuda,nvtx --capture-range nvtx --nvtx-capture attnbench "
        f"--env-var NSYS_NVTX_PROFILER_REGISTER_ONLY=0 -o attnbench {own}",
        f"ncu --target-processes all --nvtx --nvtx-include attnbench/ -o attnbench {own}",
    ]
