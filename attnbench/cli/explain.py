"""`attnbench explain`: why a backend can or cannot run a case, and which kernel really runs."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.cli import options


def explain(
    case: Annotated[
        str, typer.Argument(help="Id, or a unique part of the label, of a case of --run; else the options.")
    ] = "",
    run: Annotated[str, typer.Option(help="The run that CASE is of.", metavar="RUN")] = "last",
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
    backend: options.BackendOption = "all",
    device: options.DeviceOption = None,
) -> None:
    """Say for each backend whether it runs a case, and why not; ask a worker which kernel it is."""
    from attnbench import explanation
    from attnbench.sweep import Request

    axes = options.axes(
        set_,
        seq=seq,
        seq_q=seq_q,
        seq_kv=seq_kv,
        batch=batch,
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
    request = Request(axes=axes, backend=backend or "all", device=device or "", budget="0")
    if case:
        for line in explanation.of_stored(case, run):
            print(line)
        return
    for line in explanation.of_request(request):
        print(line)
