"""AXES: one record for each axis of a problem; options, suite keys, filters and documentation follow from them.

`attnbench --help` imports this module: no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from operator import attrgetter
from types import UnionType
from typing import TYPE_CHECKING

import msgspec

from attnbench.errors import UnknownNameError, UsageError
from attnbench.suite import readers
from attnbench.suite.readers import Reader, Values, integers, member, problem_enum

if TYPE_CHECKING:
    from attnbench.attention.problem import Problem

# The types of a value in a suite file.
Integers = int | str | tuple[int | str, ...]
Numbers = int | float | str | tuple[int | float | str, ...]
Words = str | tuple[str, ...]
Switches = bool | tuple[bool, ...] | str


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One axis of a problem."""

    name: str  # the suite key; the option is the same with hyphens
    summary: str  # the help of the option
    read: Reader
    written: UnionType | type = Integers  # the type of a value in a suite file
    option: bool = False  # it has a separate option; the others are set by `--set NAME=VALUES`
    metavar: str = "LIST"
    usual: str = ""  # the values of a table that lacks the key; only for axes that are a field of Problem
    follows: str = ""  # the axis whose value is taken by a table that lacks the key
    replaces: tuple[str, ...] = ()  # keys of a suite that an option for this axis removes
    names: Callable[[], Iterable[str]] | None = None  # values that completion offers
    values: str = ""  # the values, as the documentation describes them
    default: str = ""  # the default, where neither `usual` nor `follows` says it
    value: Callable[[Problem], object] | None = None  # of a problem, for filters; None: the field of the same name

    @property
    def row(self) -> str:
        """The row of the documentation: `tools/axes.py` prints them."""
        default = self.default or (f"`{self.usual or self.follows}`" if self.usual or self.follows else "")
        return f"| `{self.name}` | {self.values} | {default}".rstrip() + " |"

    def of(self, problem: Problem) -> object:
        """The value of a problem on this axis."""
        return self.value(problem) if self.value else attrgetter(self.name)(problem)


def _longest(problem: Problem) -> int:
    return max(problem.seq_q, problem.seq_kv)


def _requests(problem: Problem) -> str:
    """The batch of requests, also of a run stored when ragged batches had lengths; empty for equal sequences."""
    return (
        readers.requests("_".join(f"q{length}" for length in problem.lengths)) if problem.lengths else problem.requests
    )


# In this order the values of a table are combined: the first axis varies slowest.
_AXES = (
    Axis(
        name="seq", summary="Sequence lengths of self-attention: 512,1k or 512..16384.", read=integers, option=True,
        replaces=("seq_q", "seq_kv", "lengths", "requests"), value=_longest,
        values=(
            "integers: the lengths of self-attention, both `seq_q` and `seq_kv`; if one of these two is given too, "
            "the other one"
        ),
        default="one of `seq`, `seq_q`, `lengths`, `requests` is needed",
    ),
    Axis(
        name="seq_q", summary="Query lengths.", read=integers, option=True, replaces=("lengths", "requests"),
        values="integers: query lengths; with `seq_kv`, every pair",
    ),
    Axis(
        name="seq_kv", summary="Key and value lengths.", read=integers, option=True, replaces=("lengths", "requests"),
        values="integers: key and value lengths",
        default="`seq_q`",
    ),
    Axis(
        name="batch", summary="Batch sizes.", read=integers, option=True, replaces=("tokens",),
        values="integers: batch sizes",
        default="1",
    ),
    Axis(
        name="tokens", summary="Tokens per batch; the batch size is this number divided by the length.",
        read=integers, option=True, metavar="N", replaces=("batch",),
        value=lambda problem: problem.batch * _longest(problem),
        values=(
            "integers, instead of `batch`: the batch is this number divided by the longer of `seq_q` and "
            "`seq_kv`, rounded down, and at least 1"
        ),
    ),
    Axis(
        name="dtype", summary="Data types: fp32, tf32, fp16, bf16 or fp8_e4m3.", read=member("Dtype", "dtype"),
        written=Words, option=True, usual="fp32", names=lambda: problem_enum("Dtype"),
        values="words: `fp32`, `tf32`, `fp16`, `bf16`, `fp8_e4m3`",
        default="`fp32` on a CPU, `bf16` on a GPU",
    ),
    Axis(
        name="heads", summary="Number of query heads.", read=integers, option=True, usual="8",
        values="integers: query heads",
    ),
    Axis(
        name="kv_heads", summary="Number of key and value heads; fewer than query heads for GQA.",
        read=integers, option=True, follows="heads",
        values="integers: key and value heads",
    ),
    Axis(
        name="head_dim", summary="Head dimensions.", read=integers, option=True, usual="64",
        values="integers: head dimensions",
    ),
    Axis(
        name="head_dim_v", summary="Head dimensions of values, if they differ.",
        read=integers, option=True, follows="head_dim",
        values="integers: head dimensions of values",
    ),
    Axis(
        name="mask", summary="Masks: none, causal, causal+window:512, natten:7 and others; see `attnbench list masks`.",
        read=readers.grammar("masks"), written=Words, option=True, usual="none,causal",
        names=readers.examples("masks", "PRIMITIVES", "none"),
        values=(
            "words: `none`, or terms joined by `+`: `causal`, `window:LEFT` or `window:LEFT:RIGHT`, `prefix:N`, "
            "`document:N` or `document:300-200`, `padding:SHARE`, one of `dilated:STEP`, `strided:N`, "
            "`blocksparse:DENSITY:BLOCK`, `longformer:WIDTH:GLOBAL`, `bigbird`, `graph:DENSITY`, `tree:PARENTS`, "
            "`blockdiffusion:BLOCK`, `natten:KERNEL:STRIDE:DILATION:shape=32x32`, `sta:WINDOW:TILE:shape=64x64`, and "
            "`dense` (docs/mechanisms.md)"
        ),
        default="`none` and `causal`",
    ),
    Axis(
        name="score", summary="Scores: dot:softcap=30, cosine, additive, file.py:function and others.",
        read=readers.texts(readers.score), written=Words, option=True, usual="dot", names=readers.score_names,
        value=lambda problem: readers.spell_score(problem.score),
        values=(
            "words: `dot`, `cosine`, `bilinear`, `additive`, or `file.py:function`, each with optional keys: "
            "`dot:softcap=30`, `dot:scale=1:softcap=30`, `dot:temperature=2`"
        ),
    ),
    *(
        Axis(
            name=name, summary=summary, read=readers.numbers(name), written=Numbers, value=attrgetter(f"score.{name}"),
            values="numbers, or `none`: the same as in `score`, as a separate axis", default=default,
        )
        for name, summary, default in (
            ("scale", "Factors on q.k, or none.", "1 / sqrt(`head_dim`), 10 for `cosine`, 1 for `additive` and files"),
            ("softcap", "Soft caps on logits, or none.", "no cap"),
            ("temperature", "Divisors of logits, or none.", "1"),
        )
    ),
    Axis(
        name="bias", summary="Biases: none, alibi, t5, xl, shaw:16 and others; see `attnbench list biases`.",
        read=readers.grammar("biases"), written=Words, option=True,
        names=readers.examples("biases", "BIASES", "none"), value=attrgetter("score.bias"),
        values=(
            "words: `none`, `alibi`, `t5`, `xl`, `shaw:CLIP`, `span:SIZE:RAMP`, `edge:TYPES`; the suffix `:dense` "
            "passes the bias as a tensor"
        ),
        default="`none`",
    ),
    Axis(
        name="returns", summary="Return values: out, lse, weights.", read=member("Returns", "return value"),
        written=Words, usual="out", names=lambda: problem_enum("Returns"),
        values="words: `out`, `lse` (also the log-sum-exp), `weights` (also all weights)",
    ),
    Axis(
        name="weighting", summary="Weightings of values: softmax, hard:topk=32, topp:0.9 ...",
        read=readers.grammar("weightings"), written=Words, usual="softmax",
        names=readers.examples("weightings", "WEIGHTINGS"),
        values=(
            "words: `softmax`, `hard:argmax`, `hard:topk=K`, `hard:sample`, `topp:SHARE`, `raw`, `sparsemax`, "
            "`sigmoid`"
        ),
    ),
    Axis(
        name="sinks", summary="Whether each head has a sink logit: true, false.", read=readers.switches,
        written=Switches, usual="false", names=lambda: ("true", "false"),
        values="`true`: each head has an extra logit in the softmax that has no value",
    ),
    Axis(
        name="dropout", summary="Dropout probabilities.", read=readers.shares, written=Numbers, usual="0",
        values="numbers from 0 to below 1: the share of weights that a call drops",
    ),
    Axis(
        name="positions", summary="Position encodings: none, sinusoidal, rope.",
        read=member("Positions", "kind of positions"), written=Words, usual="none",
        names=lambda: problem_enum("Positions"),
        values="words: `none`, `sinusoidal`, `rope`: applied to q and k within the call",
    ),
    Axis(
        name="scope", summary="What is measured: core, block, layer:N.", read=readers.texts(readers.scope),
        written=Words, usual="core", names=lambda: ("core", "block", "layer:"),
        values=(
            "words: `core`; `block`, with the projections of q, k, v and out; `layer:N`, N layers deep with norms "
            "and feed-forward"
        ),
    ),
    Axis(
        name="kv_dtype", summary="Formats of the KV cache: same, int8, fp8_e4m3, int8:tensor, fp8_e4m3:tensor, nvfp4.",
        read=member("KvDtype", "format of keys and values"), written=Words, usual="same",
        names=lambda: problem_enum("KvDtype"),
        values=(
            "words, the format of the cache of k and v: `same` as q; `int8`, `fp8_e4m3`, with one scale for each token "
            "and head; `int8:tensor`, `fp8_e4m3:tensor`, with one for k and one for v; `nvfp4`, 4 bits with a scale "
            "for 16 numbers. Simulated: the call gets values that were quantised and dequantised"
        ),
    ),
    Axis(
        name="kv", summary="Kinds of KV cache: none for separate k and v, latent:512+64.",
        read=readers.texts(readers.kv), written=Words, usual="none", names=lambda: ("none", "latent:512+64"),
        values=(
            "words: `none`, separate k and v; `latent:512+64`, one vector for each token: 512 numbers from which the "
            "keys and values of all heads are computed, and 64 that are the part of every key with RoPE"
        ),
    ),
    Axis(
        name="autocast", summary="Autocast of a block or layers: none, bf16, fp16.",
        read=member("Autocast", "autocast"), written=Words, usual="none", names=lambda: problem_enum("Autocast"),
        values="words: `none`, `bf16`, `fp16`: the dtype of matrix products in a block or layers of fp32",
    ),
    Axis(
        name="page_size", summary="Tokens per page of the KV cache; 0 for none.", read=readers.page_sizes, usual="0",
        values="integers, powers of two: tokens per page of a paged k and v; 0 for no pages",
    ),
    Axis(
        name="tp", summary="Ranks of tensor parallelism.", read=integers, value=lambda _: None,
        values="integers: ranks of tensor parallelism; `heads` and `kv_heads` are those of one rank",
        default="1",
    ),
    Axis(
        name="lengths", summary="Lengths of one ragged batch: 300-200-12, lognormal:mean=1k:cv=1:n=64 or file:PATH.",
        read=readers.ragged, written=Words, value=_requests,
        replaces=("seq", "seq_q", "seq_kv", "batch", "tokens", "requests"),
        values=(
            'words, the lengths of one ragged batch: `"300-200-12"`; `lognormal:mean=1k:cv=1:n=64`; '
            "`file:lengths.txt`, with one in each line. They are `requests` with as many queries as keys; the default "
            "of `mask` stays"
        ),
        default="no ragged batch",
    ),
    Axis(
        name="requests", summary="Batches of requests, as servers have them: 2q2k_32q1s1k.",
        read=readers.texts(readers.requests), written=Words, option=True, value=_requests,
        replaces=("seq", "seq_q", "seq_kv", "batch", "tokens", "lengths"),
        values=(
            "words, batches of requests: segments joined by `_`, each with an optional number of requests, `q` with "
            "their queries, and `s` with their keys, if these are not as many: `2q2k_32q1s1k`; `k` is 1024 "
            "(docs/serving.md). The default of `mask` is `causal`"
        ),
        default="no requests",
    ),
    Axis(
        name="shared_prefix", summary="First keys that requests share: 2k:8.",
        read=readers.texts(readers.shared_prefix), written=Words, usual="none",
        values=(
            "words: `none`; `2k:8`: every 8 consecutive `requests` with 2048 keys before their queries have these keys "
            "in common; `2k:8_0:2_512:3`: the groups one by one. With `page_size` they share whole pages "
            "(docs/serving.md)"
        ),
    ),
    Axis(
        name="mode", summary="Passes: fwd, bwd or fwd_bwd.", read=member("Mode", "mode"), written=Words, option=True,
        names=lambda: problem_enum("Mode"), value=lambda _: None,
        values="words: `fwd`, `bwd`, `fwd_bwd`",
        default="`fwd`",
    ),
)  # fmt: skip

AXES: dict[str, Axis] = {axis.name: axis for axis in _AXES}

# Options that name one problem give these axes always, and others where they differ from the default.
_ALWAYS = frozenset({"batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "dtype", "mask", "mode"})
_IMPLIED = frozenset({"seq", "tokens", "tp", "lengths", "scale", "softcap", "temperature"})  # by other axes
_OF_SIZES = frozenset({"batch", "seq_q", "seq_kv"})  # implied by requests


def options_of(problem: Problem, mode: str) -> list[str]:
    """The options that make this problem and no other: `--batch 1 ... --set sinks=true`."""
    options: list[str] = []
    for axis in AXES.values():
        text = (mode if axis.name == "mode" else readers.spell(axis.of(problem))) or "none"
        if axis.name in _IMPLIED or (_requests(problem) and axis.name in _OF_SIZES):
            continue
        if axis.name == "head_dim_v" and problem.head_dim_v == problem.head_dim:
            continue
        if axis.name in _ALWAYS or text not in (axis.usual, "none"):
            options += flag(axis.name, text).split(" ", 1)
    return options


def exclusive(keys: Iterable[str]) -> tuple[str, str] | None:
    """The key of a batch of requests, and one that it decides, if both are given; lengths may repeat the batch."""
    decided = {"requests": set(AXES["requests"].replaces), "lengths": {*AXES["lengths"].replaces} - {"batch"}}
    pairs = ((name, other) for name in decided for other in sorted(decided[name].intersection(keys)) if name in keys)
    return next(pairs, None)


def read_flags(flags: Mapping[str, str]) -> dict[str, Values]:
    """Values of axes as typed on the command line."""
    values = {}
    for key, text in flags.items():
        if key not in AXES:
            raise UnknownNameError("suite key", key, tuple(AXES), where="--set")
        values[key] = AXES[key].read(text, flag(key, ""))
    if pair := exclusive(values):
        name, other = (flag(key, flags[key]) for key in pair)
        raise UsageError(f"{name} beside {other}: the {pair[0]} give {pair[1]}; leave {flag(pair[1], '')} out")
    return values


def flag(key: str, value: str) -> str:
    """An axis with its value as on the command line; without a value, its option alone."""
    option, between = (f"--{key.replace('_', '-')}", " ") if AXES[key].option else (f"--set {key}", "=")
    return f"{option}{between}{value}" if value else option


def with_flag(reason: str, typed: Container[str]) -> str:
    """Why a problem is impossible, with the field that it begins with as an option if it was typed as one."""
    match = re.match(r"(\w+)(?:=(\S+?)(?=:? |:?$)| '(\S+)')", reason)
    if not match or match[1] not in typed:
        return reason
    return flag(match[1], match[2] or match[3]) + reason[match.end() :]
