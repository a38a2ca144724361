"""Options that several commands share, in the panels of `run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from attnbench.errors import UsageError

PROBLEM, ARMS, MEASURING, CHOOSING, OUTPUT = "Problem", "Arms", "Measuring", "Choosing", "Output"

# Completion offers static names: looking backends up would import packages.
_BIASES = ("none", "alibi", "t5", "xl", "shaw:", "span:", "edge:")
_MASKS = ("none", "causal", "window:", "causal+window:", "prefix:", "document:", "padding:")
_DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8_e4m3")
_MODES = ("fwd", "bwd", "fwd_bwd")
_DEVICES = ("cpu", "cpu:threads=1", "cpu:isa=avx2", "cuda:0")
_BACKENDS = (
    "auto",
    "all",
    "naive",
    "sdpa",
    "sdpa:math",
    "sdpa:flash",
    "sdpa:efficient",
    "sdpa:cudnn",
    "flex",
    "flex:eager",
    "xformers",
    "flash-attn:2",
    "flash-attn:3",
    "flash-attn:4",
    "triton",
    "triton:portable",
    "triton:descriptors",
    "triton:hopper",
)


def _offer(names: Sequence[str]) -> object:
    def complete(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        return [done + comma + name for name in names if name.startswith(last)]

    return complete


def _option(*names: str, panel: str, help: str, offer: Sequence[str] = (), metavar: str = "") -> object:  # noqa: A002
    return typer.Option(
        *names,
        rich_help_panel=panel,
        help=help,
        autocompletion=_offer(offer) if offer else None,  # type: ignore[arg-type]
        metavar=metavar or None,
    )


Suites = Annotated[
    list[str] | None, typer.Argument(metavar="[SUITE]...", help="Shipped suites or paths; see `attnbench list suites`.")
]
Suite = Annotated[
    list[str] | None, _option("--suite", panel=PROBLEM, help="The same as the argument.", metavar="SUITE")
]
Seq = Annotated[
    str | None, _option("--seq", panel=PROBLEM, help="Lengths of self-attention: 512..16384, 1k,4k.", metavar="LIST")
]
SeqQ = Annotated[str | None, _option("--seq-q", panel=PROBLEM, help="Query lengths.", metavar="LIST")]
SeqKv = Annotated[str | None, _option("--seq-kv", panel=PROBLEM, help="Key lengths.", metavar="LIST")]
Batch = Annotated[str | None, _option("--batch", panel=PROBLEM, help="Sequences in a batch.", metavar="LIST")]
Tokens = Annotated[
    str | None, _option("--tokens", panel=PROBLEM, help="Constant batch x seq instead of --batch.", metavar="N")
]
Heads = Annotated[str | None, _option("--heads", panel=PROBLEM, help="Query heads.", metavar="LIST")]
KvHeads = Annotated[str | None, _option("--kv-heads", panel=PROBLEM, help="Key and value heads (GQA).", metavar="LIST")]
HeadDim = Annotated[str | None, _option("--head-dim", panel=PROBLEM, help="Width of a head.", metavar="LIST")]
HeadDimV = Annotated[str | None, _option("--head-dim-v", panel=PROBLEM, help="Width of a value head.", metavar="LIST")]
Dtype = Annotated[
    str | None, _option("--dtype", panel=PROBLEM, help=", ".join(_DTYPES) + ".", offer=_DTYPES, metavar="LIST")
]
Mask = Annotated[
    str | None,
    _option("--mask", panel=PROBLEM, help="none, causal, causal+window:512 ...", offer=_MASKS, metavar="LIST"),
]
Score = Annotated[
    str | None,
    _option("--score", panel=PROBLEM, help="dot:softcap=30, cosine, additive, file.py:fn ...", metavar="LIST"),
]
Bias = Annotated[
    str | None,
    _option("--bias", panel=PROBLEM, help="none, alibi, t5, xl, shaw:16 ...", offer=_BIASES, metavar="LIST"),
]
ModeOption = Annotated[
    str | None, _option("--mode", panel=PROBLEM, help="fwd, bwd, fwd_bwd.", offer=_MODES, metavar="LIST")
]
Set = Annotated[
    list[str] | None,
    _option("--set", panel=PROBLEM, help="Any other suite key: weighting=hard:topk=32.", metavar="KEY=VALUES"),
]
BackendOption = Annotated[
    str | None,
    _option(
        "--backend",
        "-b",
        panel=ARMS,
        help="auto, all, names, my_kernel.py:attend. A name given twice is two arms.",
        offer=_BACKENDS,
        metavar="LIST",
    ),
]
Reference = Annotated[
    str, _option("--reference", panel=ARMS, help="Backend that speed-ups are against.", offer=_BACKENDS, metavar="NAME")
]
DeviceOption = Annotated[
    str | None,
    _option(
        "--device", panel=ARMS, help="cpu, cpu:threads=1, cpu:isa=avx2, cuda:0 ...", offer=_DEVICES, metavar="LIST"
    ),
]

_METRICS = ("memory", "roofline", "energy", "timers", "errors", "once")
Metrics = Annotated[
    str,
    _option(
        "--metrics",
        panel=OUTPUT,
        help="Columns after the table: memory, roofline, energy, timers, errors, once, or any of `list metrics`.",
        offer=_METRICS,
        metavar="LIST",
    ),
]
_INPUTS = ("normal", "uniform", "outlier", "large", "sink", "zeros", "peaked", "file:")
Inputs = Annotated[
    str,
    _option(
        "--inputs",
        panel=MEASURING,
        help="Distribution: normal, uniform, outlier, large, sink, zeros, file:x.safetensors.",
        offer=_INPUTS,
        metavar="NAME",
    ),
]


def axes(set_: Sequence[str] | None = None, **given: str | None) -> dict[str, str]:
    """The problem options that were given, by suite key; `--set` adds any other key."""
    flags = {name: value for name, value in given.items() if value is not None}
    return flags | {key.replace("-", "_"): value for key, value in pairs(set_, "--set").items()}


def pairs(items: Sequence[str] | None, option: str) -> dict[str, str]:
    """KEY=VALUE of a repeatable option."""
    found = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key.strip() or not value:
            raise UsageError(f"{option}: not KEY=VALUE: {item!r}")
        found[key.strip()] = value
    return found
