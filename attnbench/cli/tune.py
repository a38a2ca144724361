"""`attnbench tune`: measure configurations of the in-house kernels on this GPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import checks, options
from attnbench.cli.options import option

if TYPE_CHECKING:
    from attnbench.kernels.tables import TileConfig
    from attnbench.studies.tune import Finding, TuningTarget


def _widths(text: str, flag: str) -> None:
    from attnbench.errors import UsageError
    from attnbench.studies.tune import WIDTHS
    from attnbench.units import integers

    if wrong := [width for width in integers(text, flag) if width not in WIDTHS]:
        raise UsageError(f"{flag}: {wrong[0]}: tables hold {', '.join(map(str, WIDTHS))}")


def _architecture(text: str, flag: str) -> None:
    from attnbench.errors import UsageError
    from attnbench.kernels.tiling import family

    try:
        family(text)
    except ValueError as unknown:
        raise UsageError(f"{flag}: {unknown}") from None


Kernels = Annotated[
    str,
    option(
        help="Kernels: forward, backward_kv, decode and others; all by default.",
        metavar="LIST",
        check=checks.some_of("kernel", checks.names_in("kernels.tables:Kernel")),
    ),
]
Widths = Annotated[
    str, option(help="Head dimensions: 64, 128, 256, 512 (latent); all by default.", metavar="LIST", check=_widths)
]
Masks = Annotated[
    str,
    option(
        help="Masking: some or none; both by default.",
        metavar="LIST",
        check=checks.some_of("masking", checks.names_in("studies.tune:MASKS")),
    ),
]
Architecture = Annotated[
    str,
    option(
        help="Architecture of another GPU, such as sm_90; only for --dry-run and --show.",
        metavar="ARCH",
        check=_architecture,
    ),
]


def tune(
    context: typer.Context,
    kernel: Kernels = "",
    head_dim: Widths = "",
    mask: Masks = "",
    device: Annotated[str, option(help="GPU to measure on.", metavar="DEVICE", check=checks.devices)] = "cuda:0",
    budget: Annotated[
        str, option(help="Time limit of the command: 30m; 0 for no limit.", metavar="TIME", check=checks.duration)
    ] = "10m",
    out: Annotated[
        Path | None, typer.Option(help="File of the table; the user's table by default.", metavar="FILE")
    ] = None,
    arch: Architecture = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the candidates without measuring.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the entries in use and their source.")] = False,
) -> int:
    """Find faster tile sizes for the in-house kernels on this GPU.

    Measures tile sizes, warps and stages against those in use, and writes the faster ones into the user's table.
    """
    from attnbench.errors import UsageError
    from attnbench.kernels import tables
    from attnbench.studies import tune as study
    from attnbench.units import integers, words

    if arch and not (dry_run or show):
        raise UsageError(f"--arch {arch}: only with --dry-run or --show; measurements use the GPU of --device")
    lists = {"--kernel": kernel, "--head-dim": head_dim, "--mask": mask}
    names, sizes, masks = (words(text, flag) if text else () for flag, text in lists.items())
    widths = [number for item in sizes for number in integers(item, "--head-dim")]
    try:
        chosen = study.targets(device, names, widths, masks, arch)
        if show or dry_run:
            _list(chosen, candidates=dry_run)
            return 0
        file = out or tables.users_file()
        return _measure(chosen, device, budget, file, quiet=options.global_options(context).quiet)
    except ValueError as wrong:  # a table that cannot be read
        raise UsageError(str(wrong)) from None


def _list(chosen: Sequence[TuningTarget], candidates: bool) -> None:
    from attnbench.studies import tune as study

    for target in chosen:
        used = study.in_use(target)
        print(f"{' '.join(target.key)}: {spelled(used)} ({used.source if used else 'no entry'})")
        if candidates:
            for config in study.candidates(target.kernel, target.arch, target.width):
                print(f"  {spelled(config)}")


def _measure(chosen: Sequence[TuningTarget], device: str, budget: str, file: Path, quiet: bool) -> int:
    from importlib import metadata

    from attnbench.cli import progress
    from attnbench.errors import Exit
    from attnbench.machine import hardware
    from attnbench.studies import tune as study

    name = next(gpu.name for gpu in hardware.gpus() if f"cuda:{gpu.index}" == device)
    total = sum(len(study.candidates(target.kernel, target.arch, target.width)) for target in chosen)
    measured = 0
    with progress.observer("none" if quiet else "auto", total) as watcher:
        for finding in study.run(chosen, device, budget, watcher):
            measured += len(finding.measured)
            # Written at once, so that an interruption loses no measurement.
            study.write([finding], file, name, metadata.version("triton"))
            for line in lines(finding):
                print(line, flush=True)
    print(f"table: {file} (delete it, or its lines, to return to the shipped configurations)", file=sys.stderr)
    return Exit.OK if measured else Exit.NOTHING_MEASURED


def lines(finding: Finding) -> list[str]:
    """One line with the result, and one for each candidate that was not timed."""
    best, used = finding.best, finding.used
    where = " ".join(finding.target.key)
    if best:
        ratio, low, high = next(figures for config, *figures in finding.measured if config == best)
        result = f"{where}: {spelled(used)} -> {spelled(best)}  {ratio:.3f}x faster ({low:.3f}..{high:.3f})"
    elif finding.measured:
        result = f"{where}: {spelled(used)} stays; none of {len(finding.measured)} candidates is significantly faster"
    else:
        result = f"{where}: {spelled(used)} stays; nothing was measured"
    return [result, *(f"  {spelled(config)}: {reason}" for config, reason in finding.lost)]


def spelled(config: TileConfig | None) -> str:
    """`128x64 w8 s3`."""
    return f"{config.block_q}x{config.block_kv} w{config.warps} s{config.stages}" if config else "-"
