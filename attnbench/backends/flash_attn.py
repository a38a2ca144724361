"""FlashAttention 2, 3 and 4, from their packages.

Their options have the same meaning as ours: causal is aligned to the last query and key (since 2.1), `window_size`
counts the keys beyond the diagonal one, heads may share keys. Requests and documents are packed already, so they cost
no copy. Keys in pages are read through a table: by flash_attn_varlen_func of flash_attn/flash_attn_interface.py (2) and
flash_attn/cute/interface.py (4), and by flash_attn_with_kvcache of hopper/flash_attn_interface.py (3).
https://github.com/Dao-AILab/flash-attention
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from attnbench.attention import logits
from attnbench.attention.biases import Alibi
from attnbench.attention.choices import Mode, Returns
from attnbench.attention.layouts import is_packed, page_table, paged, segments, unflattened, waits_beside_decodes
from attnbench.attention.problem import Problem
from attnbench.backends import HALVES, Backend, Keywords, Layout, Limits, Output, Prepared, failure, planned, tables_on
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor


class PackageApi(NamedTuple):
    """What differs between the packages."""

    module: str  # holds flash_attn_func, flash_attn_varlen_func and the function that reads pages
    lse_flag: str  # requests the lse in addition to the output
    paged: str = "flash_attn_varlen_func"  # the function that reads keys in pages
    paged_lse_flag: str = ""  # its flag, if it is another one
    table: str = "page_table"
    used: str = "seqused_k"  # keys of each sequence in pages
    page_multiple: int = 1  # tokens


PACKAGES = {
    "flash-attn:2": PackageApi(
        "flash_attn.flash_attn_interface", "return_attn_probs", table="block_table", used="", page_multiple=256
    ),
    "flash-attn:3": PackageApi(
        "flash_attn_interface",
        "return_attn_probs",
        "flash_attn_with_kvcache",
        "return_softmax_lse",
        used="cache_seqlens",
    ),
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


def tables(package: PackageApi, problem: Problem) -> Keywords:
    """Where sequences start, and where their pages are, in the keywords of the package."""
    batch = segments(problem)
    starts_kv = np.array(batch.starts_kv, np.int32)
    of_q: Keywords = {"cu_seqlens_q": np.array(batch.starts_q, np.int32), "max_seqlen_q": batch.longest_q}
    if not problem.page_size:
        return of_q | {"cu_seqlens_k": starts_kv, "max_seqlen_k": batch.longest_kv}
    options = of_q | {package.table: page_table(problem)}
    if package.paged == "flash_attn_varlen_func":
        options["max_seqlen_k"] = batch.longest_kv
    if package.used:
        return options | {package.used: np.array(batch.lengths_kv, np.int32)}
    return options | {"cu_seqlens_k": starts_kv}


def prepare(case: Case, device: str) -> Prepared:
    """The call, and for a packed batch the positions of its sequences on the device."""
    package, problem = PACKAGES[case.backend], case.problem
    module = import_module(package.module)
    options = arguments(problem) | _optional_arguments(problem, device)
    if problem.returns is Returns.LSE:
        options[(package.paged_lse_flag if problem.page_size else "") or package.lse_flag] = True
    seconds: dict[str, float] = {}
    if is_packed(problem):
        moved, seconds = planned(partial(tables, package, problem), partial(tables_on, device), device)
        name = package.paged if problem.page_size else "flash_attn_varlen_func"
        attend = _packed(getattr(module, name), problem, options | moved)
    else:
        attend = _dense(module.flash_attn_func, options)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        out, lse = attend(q, k, v)
        return (out, lse) if problem.returns is Returns.LSE else out

    return Prepared(
        call=call,
        seconds=seconds if problem.requests else {},
        stored=partial(paged, problem) if problem.page_size else None,
    )


PackageOutput: TypeAlias = "Tensor | tuple[Tensor, ...]"
Attend = Callable[["Tensor", "Tensor", "Tensor"], tuple["Tensor", "Tensor | None"]]


def _dense(function: Callable[..., PackageOutput], options: Keywords) -> Attend:
    return lambda q, k, v: _out_and_lse(function(q, k, v, **options))


def _packed(function: Callable[..., PackageOutput], problem: Problem, options: Keywords) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
        keys = (k, v) if problem.page_size else (k.flatten(0, 1), v.flatten(0, 1))
        out, lse = _out_and_lse(function(q.flatten(0, 1), *keys, **options))
        return unflattened(q.shape[0], q.shape[1], out, lse)

    return attend


def _out_and_lse(result: PackageOutput) -> tuple[Tensor, Tensor | None]:
    """Depending on package and flags the packages give out, (out, lse) or (out, lse, more)."""
    return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


def scratch_bytes(case: Case) -> int:
    """The lse, copies of odd head dims, and backward float32 sums of dq and dk, dv of every query head."""
    problem = case.problem
    rows, keys = math.prod(problem.shape_q), math.prod(problem.shape_kv) * (problem.heads // problem.kv_heads)
    width, size = problem.head_dim + problem.head_dim_v, problem.dtype.bytes
    copies = 0
    if problem.head_dim % 8:
        copies = size * width * (rows + keys * problem.kv_heads // problem.heads)
    if case.mode is Mode.FWD:
        return 4 * rows + copies
    shared = size * width * keys if problem.kv_heads < problem.heads else 0
    return 8 * rows + 2 * copies + 4 * rows * problem.head_dim + shared


def probe(device: str, name: str) -> str | None:
    """Run it on 64 tokens."""

    def run() -> None:
        import torch

        attend = _dense(import_module(PACKAGES[name].module).flash_attn_func, {})
        tokens = torch.zeros(1, 64, 1, 64, dtype=torch.float16, device=device)
        attend(tokens, tokens, tokens)

    return failure(run)


def _refuses(case: Case) -> list[str]:
    """Page sizes that a package does not read, and what flash-attn:2 takes for other shapes."""
    size, multiple, reasons = case.problem.page_size, PACKAGES[case.backend].page_multiple, []
    if size % multiple:
        reasons.append(f"page_size={size} is not a multiple of {multiple}: use page_size={multiple}, or flash-attn:3")
    if case.backend == "flash-attn:2" and waits_beside_decodes(case.problem):
        reasons.append("a request without queries beside decodes of grouped heads unsupported")
    return reasons


_MASKS = frozenset({"causal", "window", "document", "blind_rows"})
FEATURES = _MASKS | {"requests", "empty", "paged", "gqa", "cross", "scale", "softcap", "lse"}
# A document of a request would need both meanings of a sequence at once.
COMBINATIONS = tuple(frozenset({"document", word}) for word in ("requests", "paged"))


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
        refuses=_refuses,
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
