"""`attnbench viz`: draw a mask, or the weights of attention, in the terminal or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.cli import checks, options
from attnbench.cli.options import OptionGroup, option

if TYPE_CHECKING:
    from attnbench.attention.masks import Mask
    from attnbench.attention.problem import Problem
    from attnbench.attention.terms import Grid
    from attnbench.report.charts.figure import Figure

TRACKERS = ("tensorboard", "wandb")


class MaskShape(OptionGroup, frozen=True, kw_only=True):
    """The lengths on which a mask is drawn."""

    seq: Annotated[str, option("--seq", help="Number of tokens.", metavar="N", check=checks.count)] = ""
    seq_q: Annotated[
        str, option("--seq-q", help="Number of queries, if it differs.", metavar="N", check=checks.count)
    ] = ""
    seq_kv: Annotated[
        str, option("--seq-kv", help="Number of keys, if it differs.", metavar="N", check=checks.count)
    ] = ""
    requests: Annotated[
        str,
        option(
            "--requests", help="A batch of requests in place of lengths: 2q2k_32q1s1k; causal, unless MASK is given.",
            metavar="LIST", check=checks.axis("requests"),
        ),
    ] = ""  # fmt: skip
    batch: Annotated[
        int, option(help="Batch size; padding differs between sequences.", metavar="N", check=checks.at_least(1))
    ] = 1
    block: Annotated[
        int, option(help="Block size for the count of empty blocks, in tokens.", metavar="N", check=checks.at_least(1))
    ] = 128


class WeightOptions(OptionGroup, frozen=True, kw_only=True):
    """The problem whose weights are drawn, and where to."""

    weights: Annotated[bool, option("--weights", help="Draw attention weights: of 128 tokens, or of --seq.")] = False
    collapse: Annotated[
        bool, option("--collapse", help="Plot the entropy of the weights over head_dim, with and without scaling.")
    ] = False
    inputs: Annotated[
        str,
        option(
            metavar="NAME",
            names=options.INPUTS.names,
            check=checks.inputs,
            help="Distribution of inputs: normal, peaked, sink and others, or file:x.safetensors with q, k and v.",
        ),
    ] = "normal"
    heads: Annotated[str, option(help="Number of query heads.", metavar="N", check=checks.count)] = ""
    kv_heads: Annotated[str, option(help="Number of key heads.", metavar="N", check=checks.count)] = ""
    head_dim: Annotated[str, option(help="Head dimension.", metavar="N", check=checks.count)] = ""
    score: Annotated[
        str, option(help="Score, as for `attnbench run`.", metavar="SCORE", check=checks.axis("score"))
    ] = ""
    bias: Annotated[str, option(help="Bias, as for `attnbench run`.", metavar="BIAS", check=checks.axis("bias"))] = ""
    set: options.Set = None
    head: Annotated[int, option(help="Head to show in a terminal.", metavar="N", check=checks.at_least(0))] = 0
    seed: Annotated[int, option(help="Random seed for inputs.", metavar="N", check=checks.at_least(0))] = 0
    to: Annotated[
        str,
        option(
            help="Log to tensorboard or wandb, into the folder of --out.",
            metavar="TOOL",
            check=checks.one_of("tool", checks.names_in("cli.viz:TRACKERS")),
        ),
    ] = ""

    def axes(self, shape: MaskShape, mask: str) -> dict[str, str]:
        lengths = {name: getattr(shape, name) for name in ("seq", "seq_q", "seq_kv", "requests")}
        values = lengths | {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim,
                            "score": self.score, "bias": self.bias, "mask": mask}  # fmt: skip
        return {name: value for name, value in values.items() if value} | options.axes_of_set(self.set)


@options.with_options()
def viz(
    mask: Annotated[
        str,
        typer.Argument(
            help="Mask, as in `attnbench list masks`: causal+window:512.", metavar="MASK", show_default="none"
        ),
    ] = "",
    *,
    shape: MaskShape,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            help="Picture to write: .svg, .png or .pdf; by default drawn in the terminal.",
            metavar="FILE",
        ),
    ] = None,
    chosen: WeightOptions,
) -> None:
    """Draw a mask, or attention weights.

    Also counts the visible pairs and empty blocks of a mask. With --weights: weights of the float64 reference. Nothing
    is timed.
    """
    from attnbench.errors import UsageError

    mask = mask or ("causal" if shape.requests else "none")
    if shape.requests and (shape.seq or shape.seq_q or shape.seq_kv or shape.batch != 1):
        raise UsageError("--requests: gives the lengths and the batch: leave out --seq, --seq-q, --seq-kv and --batch")
    if chosen.to and not (chosen.weights and out):
        raise UsageError(f"--to {chosen.to}: needs --weights, and a folder by --out")
    if chosen.collapse:
        _show_collapse(chosen.seed, out)
    elif chosen.weights:
        _show_weights(_problem(chosen.axes(shape, mask), chosen.inputs), chosen, out)
    else:
        _show_mask(mask, shape, out)


def _show_collapse(seed: int, out: Path | None) -> None:
    from attnbench.report.charts import entropy_collapse
    from attnbench.report.terminal import pictures
    from attnbench.studies.weights import collapse as study

    entropies = study(seed=seed)
    if out:
        _save(entropy_collapse.figure(entropies), out)
    else:
        print(*pictures.collapsed(entropies), sep="\n")


def _show_mask(text: str, shape: MaskShape, out: Path | None) -> None:
    from attnbench.report.charts import mask as mask_chart
    from attnbench.report.terminal import pictures

    if shape.requests:
        problem = _problem({"requests": shape.requests, "mask": text}, "normal")
        mask, grids = problem.masking, [part.grid for part in problem.parts]
    else:
        mask, grids = _mask_on(text, shape)
    if out:
        _save(mask_chart.figure(mask, grids, shape.block), out)
    else:
        print(*pictures.mask_picture(mask, grids, shape.block), sep="\n")


def _mask_on(text: str, shape: MaskShape) -> tuple[Mask, list[Grid]]:
    """The mask, and the grid of the lengths."""
    from attnbench.attention import masks
    from attnbench.attention.terms import Grid
    from attnbench.errors import UsageError
    from attnbench.units import integer

    tokens = integer(shape.seq or "1k", "--seq")
    grid = Grid(
        shape.batch,
        integer(shape.seq_q, "--seq-q") if shape.seq_q else tokens,
        integer(shape.seq_kv, "--seq-kv") if shape.seq_kv else tokens,
    )
    sizes = (("--seq", min(grid.seq_q, grid.seq_kv)), ("--batch", shape.batch), ("--block", shape.block))
    for flag, value in sizes:
        if value < 1:
            raise UsageError(f"{flag} {value}: at least 1")
    mask = masks.parse(text)
    mask.check(grid)
    return mask, [grid]


def _problem(axes: dict[str, str], inputs: str) -> Problem:
    """The one problem of the options; the shapes of a file replace the defaults."""
    from attnbench import suite
    from attnbench.attention.choices import Dtype
    from attnbench.attention.inputs import FILE, check
    from attnbench.errors import UsageError
    from attnbench.studies.weights import shape_of
    from attnbench.suite.keys import with_flag

    check(inputs, "--inputs")
    plain = {"seq": "128", "heads": "4"}
    if inputs.startswith(FILE):
        shape = shape_of(Path(inputs.removeprefix(FILE)))
        plain = {name: str(value) for name, value in shape.items()}
    elif {"seq_q", "lengths", "requests"} & set(axes):
        plain.pop("seq")
    cells = list(suite.expand(suite.from_flags(plain | axes), kind="cpu", dtype=Dtype.FP32))
    if len(cells) != 1:
        raise UsageError(f"viz --weights looks at one problem; the options give {len(cells)}")
    (cell,) = cells
    if isinstance(cell, suite.Impossible):
        raise UsageError(with_flag(cell.reason, axes))
    return cell.problem


def _show_weights(problem: Problem, chosen: WeightOptions, out: Path | None) -> None:
    from attnbench.errors import UsageError, writing
    from attnbench.report.charts import attention_weights as weights_chart
    from attnbench.report.formats import tensorboard, wandb
    from attnbench.report.terminal import pictures
    from attnbench.studies.weights import look

    if problem.requests:
        raise UsageError("--weights: of one sequence, not of a batch of requests: use --seq-q and --seq-kv")
    if not 0 <= chosen.head < problem.heads:
        raise UsageError(f"--head {chosen.head}: there are heads 0 to {problem.heads - 1}")
    seen = look(problem, chosen.inputs, chosen.seed)
    if out is None:
        print(*pictures.weights_picture(seen, [chosen.head]), sep="\n")
    elif chosen.to:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            {"tensorboard": tensorboard.write_weights, "wandb": wandb.write_weights}[chosen.to](seen, out)
        print(out)
    else:
        _save(weights_chart.figure(seen), out)


def _save(figure: Figure, out: Path) -> None:
    from attnbench.report.charts.rendering import Picture

    Picture(figure).save(out)
    print(out)
