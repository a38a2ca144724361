"""FlashAttention 2, 3 and 4, from their packages.

Their options have the same meaning as ours: causal is aligned to the last query and key (since 2.1), `window_size`
counts the keys beyond the diagonal one, heads may share keys. Documents are a ragged batch that is packed already, so
they cost no copy. A batch of ragged lengths is padded, and is packed and unpacked inside the timed call.
https://github.com/Dao-AILab/flash-attention
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from attnbench.attention import logits
from attnbench.attention.biases import Alibi
from attnbench.attention.layouts import Segments, packed, padded, segments
from attnbench.attention.problem import Mode, Problem, Returns
from attnbench.backends import HALVES, Backend, Keywords, Layout, Limits, Output, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor


class PackageApi(NamedTuple):
    """What differs between the packages."""

    module: str  # holds flash_attn_func and flash_attn_varlen_func
    lse_flag: str  # requests the lse in addition to the output


PACKAGES = {
    "flash-attn:2": PackageApi("flash_attn.flash_attn_interface", "return_attn_probs"),
    "flash-attn:3": PackageApi("flash_attn_interface", "return_attn_probs"),
    "flash-attn:4": PackageApi("flash_attn.cute", "return_lse"),
}


def arguments(problem: Problem) -> Keywords:
    """The problem in the keywords of flash_attn_func."""
    return {
        "softmax_scale": problem.scale,
        "causal": problem.causal,
        "window_size": problem.window or (-1, -1),
        "softcap": problem.softcap or 0.0,
    }


def _optional_arguments(problem: Problem, device: str) -> Keywords:
    """The keywords of flash-attn:2 for ALiBi and dropout, and of flash-attn:4 for sinks."""
    import torch

    options: dict[str, object] = {"dropout_p": problem.dropout} if problem.dropout else {}
    if isinstance(problem.bias, Alibi):
        options["alibi_slopes"] = problem.bias.slopes(problem).to(device, torch.float32)
    if problem.sinks:
        options["learnable_sink"] = logits.sink_logits(problem).to(device, torch.bfloat16)
    return options


def prepare(case: Case, device: str) -> Prepared:
    """The call, and for a ragged batch the positions of its sequences on the device."""
    package, problem = PACKAGES[case.backend], case.problem
    module = import_module(package.module)
    options = arguments(problem) | _optional_arguments(problem, device)
    if problem.returns is Returns.LSE:
        options[package.lse_flag] = True
    ragged = segments(problem)
    if ragged is None:
        attend = _dense(module.flash_attn_func, options)
    else:
        attend = _ragged(module.flash_attn_varlen_func, options, ragged, device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        out, lse = attend(q, k, v)
        return (out, lse) if problem.returns is Returns.LSE else out

    packing = "none" if ragged is None else "free" if ragged.tokens is None else "inside the call"
    return Prepared(call=call, facts={"packing": packing})


PackageOutput: TypeAlias = "Tensor | tuple[Tensor, ...]"
Attend = Callable[["Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor | None"]]


def _dense(function: Callable[..., PackageOutput], options: Keywords) -> Attend:
    return lambda q, k, v: _out_and_lse(function(q, k, v, **options))


def _ragged(function: Callable[..., PackageOutput], options: Keywords, ragged: Segments, device: str) -> Attend:
    import torch

    starts = torch.tensor(ragged.starts, dtype=torch.int32, device=device)
    tokens = None if ragged.tokens is None else torch.tensor(ragged.tokens, device=device)
    options = options | dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), starts)
    options |= dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), ragged.longest)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        out, lse = _out_and_lse(function(*packed(tokens, q, k, v), **options))
        return padded(tokens, q.shape[0], q.shape[1], out, lse)

    return attend


def _out_and_lse(result: PackageOutput) -> tuple[Tensor, Tensor | None]:
    """Depending on package and flags the packages give out, (out, lse) or (out, lse, more)."""
    return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


def scratch_bytes(case: Case) -> int:
    """The lse, copies of what is packed or padded, and backward float32 sums of dq and dk, dv of every query head."""
    problem = case.problem
    rows, keys = problem.batch * problem.heads * problem.seq_q, problem.batch * problem.heads * problem.seq_kv
    width, size = problem.head_dim + problem.head_dim_v, problem.dtype.bytes
    copies = 0
    if problem.lengths or problem.head_dim % 8:
        copies = size * width * (rows + keys * problem.kv_heads // problem.heads)
    if case.mode is Mode.FWD:
        return 4 * rows + copies
    shared = size * width * keys if problem.kv_heads < problem.heads else 0
    return 8 * rows + 2 * copies + 4 * rows * problem.head_dim + shared


def probe(device: str, name: str) -> str | None:
    """Run it on 64 tokens."""
    import torch

    try:
        attend = _dense(import_module(PACKAGES[name].module).flash_attn_func, {})
        tokens = torch.zeros(1, 64, 1, 64, dtype=torch.float16, device=device)
        attend(tokens, tokens, tokens)
    except Exception as error:  # a package that does not fit this torch, driver or GPU may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


FEATURES = frozenset(
    {"causal", "window", "document", "varlen", "blind_rows", "gqa", "cross", "scale", "softcap", "lse"}
)
# A document of a ragged batch would need both meanings of a sequence at once.
COMBINATIONS = (frozenset({"document", "varlen"}),)


def _limits(**changes: object) -> Limits:
    base: Keywords = {"features": FEATURES, "combinations": COMBINATIONS, "head_dim_most": 256}
    return Limits(dtypes=HALVES, **{**base, **changes})


def _backend(name: str, summary: str, limits: Limits, requires: tuple[str, ...], install: str) -> Backend:
    return Backend(
        name=name,
        summary=summary,
        limits={"cuda": limits},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=requires,
        install=install,
        layout=Layout.BSHD,
        probe=partial(probe, name=name),
    )


BACKENDS = {
    "flash-attn:2": _backend(
        "flash-attn:2",
        "FlashAttention-2, CUDA kernels for Ampere and newer",
        # It pads odd head dims itself. A row that sees no key has +inf as lse there, ours has -inf.
        _limits(
            capability=(8, 0),
            features=FEATURES | {"alibi", "dropout"},
            combinations=(*COMBINATIONS, frozenset({"blind_rows", "lse"})),
        ),
        ("flash_attn", "flash_attn_2_cuda"),
        "pip install --no-build-isolation 'flash-attn>=2.8'",
    ),
    "flash-attn:3": _backend(
        "flash-attn:3",
        "FlashAttention-3, CUDA kernels for Hopper",
        _limits(capability=(9, 0), capability_below=(10, 0), head_dim_multiple=8),
        ("flash_attn_3", "flash_attn_interface"),
        "git clone --recursive https://github.com/Dao-AILab/flash-attention && "
        "pip install --no-build-isolation ./flash-attention/hopper",
    ),
    "flash-attn:4": _backend(
        "flash-attn:4",
        "FlashAttention-4, CuTe kernels for Hopper and Blackwell, compiled at the first call",
        # 12.x lacks parts of the backward pass. Blackwell takes head dims to 128, 192 with 128, and 256.
        # It does not document whether its lse includes the sink.
        _limits(
            capability=(9, 0),
            capability_below=(12, 0),
            head_dim_multiple=8,
            features=FEATURES | {"head_dim_v", "sinks"},
            combinations=(*COMBINATIONS, frozenset({"sinks", "lse"})),
        ),
        ("flash_attn.cute",),
        "pip install --pre flash-attn-4",
    ),
}
