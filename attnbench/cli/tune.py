"""`attnbench tune`: configurations of the in-house kernels, measured on this GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attnbench.kernels.tables import Cut
    from attnbench.studies.tune import Finding, Target


def tune(
    context: typer.Context,
    kernel: Annotated[str, typer.Option(help="Comma list: forward, backward_kv, decode ...; all by default.")] = "",
    head_dim: Annotated[str, typer.Option(help="Comma list of 64, 128, 256.")] = "",
    mask: Annotated[str, typer.Option(help="some or none; both by default.")] = "",
    device: Annotated[str, typer.Option(help="The GPU to measure on.", metavar="DEVICE")] = "cuda:0",
    budget: Annotated[str, typer.Option(help="Time for everything: 30m; 0 lifts it.", metavar="TIME")] = "10m",
    out: Annotated[Path | None, typer.Option(help="The table to write, in place of the user's own.")] = None,
    arch: Annotated[str, typer.Option(help="A GPU that is not here, for --dry-run and --show.", metavar="ARCH")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the candidates; measure nothing.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the entries in use and where they are from.")] = False,
) -> int:
    """Measure tile sizes, warps and stages against those in use, and write what is faster into the user's table."""
    from attnbench.errors import UsageError
    from attnbench.kernels import tables
    from attnbench.ranges import integers, words
    from attnbench.studies import tune as study

    if arch and not (dry_run or show):
        raise UsageError(f"--arch {arch}: only with --dry-run or --show; a measurement is of the GPU of --device")
    widths = (
        [number for item in words(head_dim, "--head-dim") for number in integers(item, "--head-dim")]
        if head_dim
        else []
    )
    names, masks = (words(text, flag) if text else () for text, flag in ((kernel, "--kernel"), (mask, "--mask")))
    try:
        chosen = study.targets(device, names, widths, masks, arch)
        file = out or tables.users_file()
        if show or dry_run:
            _list(chosen, candidates=dry_run)
            return 0
        return _measure(chosen, device, budget, file, quiet=context.obj["quiet"])
    except ValueError as wrong:  # a table that cannot be read
        raise UsageError(str(wrong)) from None


def _list(chosen: Sequence[Target], candidates: bool) -> None:
    from attnbench.studies import tune as study

    for target in chosen:
        used = study.in_use(target)
        print(f"{' '.join(target.key)}: {spelled(used)} ({used.source if used else 'no entry'})")
        if candidates:
            for cut in study.candidates(target.kernel, target.arch, target.width):
                print(f"  {spelled(cut)}")


def _measure(chosen: Sequence[Target], device: str, budget: str, file: Path, quiet: bool) -> int:
    from importlib import metadata

    from attnbench import host
    from attnbench.cli import progress
    from attnbench.errors import Exit
    from attnbench.studies import tune as study

    name = next(gpu.name for gpu in host.gpus() if f"cuda:{gpu.index}" == device)
    total = sum(len(study.candidates(one.kernel, one.arch, one.width)) for one in chosen)
    measured = 0
    with progress.observer("none" if quiet else "auto", total) as watcher:
        for finding in study.run(chosen, device, budget, watcher):
            measured += len(finding.measured)
            # Written at once: an interruption loses nothing that is measured.
            study.write([finding], file, name, metadata.version("triton"))
            for line in lines(finding):
                print(line, flush=True)
    print(f"table: {file} (delete it, or lines of it, to go back)", file=sys.stderr)
    return Exit.OK if measured else Exit.NOTHING_MEASURED


def lines(finding: Finding) -> list[str]:
    """One line of what was found, and one for each candidate that was lost."""
    best, used = finding.best, finding.used
    where = " ".join(finding.target.key)
    if best:
        ratio, low, high = next(figures for cut, *figures in finding.measured if cut == best)
        said = f"{where}: {spelled(used)} -> {spelled(best)}  {ratio:.3f}x faster ({low:.3f} to {high:.3f})"
    elif finding.measured:
        said = f"{where}: {spelled(used)} stays; none of {len(finding.measured)} candidates is faster beyond doubt"
    else:
        said = f"{where}: {spelled(used)} stays; nothing was measured"
    return [said, *(f"  {spelled(cut)}: {reason}" for cut, reason in finding.lost)]


def spelled(cut: Cut | None) -> str:
    """`128x64 w8 s3`."""
    return f"{cut.block_q}x{cut.block_kv} w{cut.warps} s{cut.stages}" if cut else "-"
