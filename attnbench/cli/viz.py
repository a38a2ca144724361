"""`attnbench viz`: what a mask looks like, or the weights of attention, in the terminal or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.cli import options

if TYPE_CHECKING:
    from attnbench.attention.problem import Problem
    from attnbench.report.drawing import Chart
    from attnbench.studies.weights import Seen

WEIGHTS = "Weights"
TRACKERS = ("tensorboard", "wandb")


def viz(
    mask: Annotated[
        str, typer.Argument(help="As in `attnbench list masks`: causal+window:512.", metavar="MASK")
    ] = "none",
    seq: Annotated[str, typer.Option("--seq", help="Tokens.", metavar="N")] = "",
    seq_q: Annotated[str, typer.Option("--seq-q", help="Queries, if not as many.", metavar="N")] = "",
    seq_kv: Annotated[str, typer.Option("--seq-kv", help="Keys, if not as many.", metavar="N")] = "",
    batch: Annotated[int, typer.Option(help="Sequences: padding differs among them.", metavar="N")] = 1,
    block: Annotated[int, typer.Option(help="Tokens of the blocks that are counted.", metavar="N")] = 128,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="mask.svg, mask.png or mask.pdf.", metavar="FILE")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", rich_help_panel=WEIGHTS, help="Look at weights: of 128 tokens, or --seq.")
    ] = False,
    collapse: Annotated[
        bool, typer.Option("--collapse", rich_help_panel=WEIGHTS, help="Why scores are scaled: entropy by head_dim.")
    ] = False,
    inputs: Annotated[
        str,
        typer.Option(
            rich_help_panel=WEIGHTS,
            help="normal, peaked, sink ..., or file:x.safetensors with q and k.",
            metavar="NAME",
        ),
    ] = "normal",
    heads: Annotated[str, typer.Option(rich_help_panel=WEIGHTS, help="Query heads.", metavar="N")] = "",
    kv_heads: Annotated[str, typer.Option(rich_help_panel=WEIGHTS, help="Key heads.", metavar="N")] = "",
    head_dim: Annotated[str, typer.Option(rich_help_panel=WEIGHTS, help="Width of a head.", metavar="N")] = "",
    score: Annotated[str, typer.Option(rich_help_panel=WEIGHTS, help="As in `run`.", metavar="SCORE")] = "",
    bias: Annotated[str, typer.Option(rich_help_panel=WEIGHTS, help="As in `run`.", metavar="BIAS")] = "",
    set_: options.Set = None,
    head: Annotated[
        int, typer.Option(rich_help_panel=WEIGHTS, help="The head that a terminal shows.", metavar="N")
    ] = 0,
    seed: Annotated[int, typer.Option(rich_help_panel=WEIGHTS, help="Of the inputs.", metavar="N")] = 0,
    to: Annotated[
        str, typer.Option(rich_help_panel=WEIGHTS, help="tensorboard or wandb: into the folder --out.", metavar="TOOL")
    ] = "",
) -> None:
    """Draw a mask, with its pairs and how many blocks it leaves empty; with --weights those of the float64 reference.

    Masks need no torch. Nothing is timed.
    """
    from attnbench.errors import UnknownNameError, UsageError

    if to and to not in TRACKERS:
        raise UnknownNameError("tool", to, TRACKERS, where="--to")
    if to and not (weights and out):
        raise UsageError(f"--to {to}: needs --weights, and a folder by --out")
    if collapse:
        from attnbench.report import weights as report
        from attnbench.studies.weights import collapse as study

        found = study(seed=seed)
        if out:
            _save(report.collapse_chart(found), out)
        else:
            print(*report.collapsed(found), sep="\n")
        return
    if weights:
        given = {"seq": seq, "seq_q": seq_q, "seq_kv": seq_kv, "heads": heads, "kv_heads": kv_heads,
                 "head_dim": head_dim, "score": score, "bias": bias, "mask": mask}  # fmt: skip
        axes = options.axes(set_, **{name: value or None for name, value in given.items()})
        _show_weights(_problem(axes, inputs), inputs, seed, head, out, to)
        return
    _show_mask(mask, seq or "1k", seq_q, seq_kv, batch, block, out)


def _show_mask(mask: str, seq: str, seq_q: str, seq_kv: str, batch: int, block: int, out: Path | None) -> None:
    from attnbench.attention import masks
    from attnbench.attention.terms import Grid
    from attnbench.errors import UsageError
    from attnbench.ranges import integer
    from attnbench.report import heat

    tokens = integer(seq, "--seq")
    grid = Grid(
        batch, integer(seq_q, "--seq-q") if seq_q else tokens, integer(seq_kv, "--seq-kv") if seq_kv else tokens
    )
    for flag, value in (("--seq", min(grid.seq_q, grid.seq_kv)), ("--batch", batch), ("--block", block)):
        if value < 1:
            raise UsageError(f"{flag} {value}: at least 1")
    chosen = masks.parse(mask)
    chosen.check(grid)
    if out is None:
        for line in heat.text(chosen, grid, block):
            print(line)
        return
    _save(heat.chart(chosen, grid, block), out)


def _problem(axes: dict[str, str], inputs: str) -> Problem:
    """The one problem of the options; shapes of a file count before those that are not given."""
    from attnbench import suite
    from attnbench.attention.inputs import FILE, check
    from attnbench.attention.problem import Dtype
    from attnbench.errors import UsageError
    from attnbench.studies.weights import shape_of

    check(inputs, "--inputs")
    plain: dict[str, Any] = {"seq": "128", "heads": "4"}
    if inputs.startswith(FILE):
        shape = shape_of(Path(inputs.removeprefix(FILE)))
        plain = {name: str(value) for name, value in shape.items()}
    elif "seq_q" in axes or "lengths" in axes:
        plain.pop("seq")
    cells = list(suite.expand(suite.from_flags(plain | axes), kind="cpu", dtype=Dtype.FP32))
    if len(cells) != 1:
        raise UsageError(f"viz --weights looks at one problem; the options give {len(cells)}")
    (cell,) = cells
    if isinstance(cell, suite.Impossible):
        raise UsageError(cell.reason)
    return cell.problem


def _show_weights(problem: Problem, inputs: str, seed: int, head: int, out: Path | None, to: str) -> None:
    from attnbench.errors import UsageError
    from attnbench.report import weights as report
    from attnbench.studies.weights import look

    if not 0 <= head < problem.heads:
        raise UsageError(f"--head {head}: there are heads 0 to {problem.heads - 1}")
    seen = look(problem, inputs, seed)
    if out is None:
        print(*report.text(seen, [head]), sep="\n")
    elif to:
        _track(seen, out, to)
    else:
        _save(report.chart(seen), out)


def _track(seen: Seen, folder: Path, tool: str) -> None:
    from attnbench.report import pictures

    folder.mkdir(parents=True, exist_ok=True)
    {"tensorboard": pictures.tensorboard, "wandb": pictures.wandb}[tool](seen, folder)
    print(folder)


def _save(chart: Chart, out: Path) -> None:
    from attnbench.errors import UsageError
    from attnbench.report import plots
    from attnbench.report.plots import Picture

    if not plots.available():
        raise UsageError(plots.MISSING)
    Picture(chart).save(out)
    print(out)
