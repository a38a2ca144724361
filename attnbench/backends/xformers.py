"""xformers' memory_efficient_attention: its own choice of kernel, and each of its kernels alone.

A mask is expressed by one of the classes of `xformers.ops.fmha.attn_bias` if the kernel takes it, else by a tensor that
is added to the logits. The class of each kernel lists what it takes; the tables below are those of xformers 0.0.35.
Requests, and keys in pages, need a class: their masks say where sequences start, and hold the table of pages. Pages are
concatenated, [1, pages * page_size, heads, head_dim]. xformers/ops/fmha/attn_bias.py, flash.py, flash3.py,
triton_splitk.py of https://github.com/facebookresearch/xformers
https://facebookresearch.github.io/xformers/components/ops.html
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention.biases import Constant
from attnbench.attention.choices import Mode
from attnbench.attention.layouts import page_table, paged, segments
from attnbench.attention.masks.document import Document
from attnbench.attention.masks.padding import Padding
from attnbench.attention.masks.window import Window
from attnbench.attention.problem import FEATURES, Problem
from attnbench.backends import FLOATS, HALVES, Backend, Keywords, Layout, Limits, Prepared, failure, planned, tables_on
from attnbench.records.case import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from xformers.ops import AttentionBias, AttentionOp


class AttnBias(StrEnum):
    """How a mask is expressed: by a class of attn_bias, or by a tensor."""

    NONE = "none"
    CAUSAL = "LowerTriangularFromBottomRightMask"
    CAUSAL_WINDOW = "LowerTriangularFromBottomRightLocalAttentionMask"
    WINDOW = "LocalAttentionFromBottomRightMask"
    BLOCKS = "BlockDiagonalMask"
    CAUSAL_BLOCKS = "BlockDiagonalCausalMask"
    CAUSAL_WINDOW_BLOCKS = "BlockDiagonalCausalLocalAttentionMask"
    PADDED = "BlockDiagonalPaddedKeysMask"
    CAUSAL_REQUESTS = "BlockDiagonalCausalFromBottomRightMask"
    CAUSAL_WINDOW_REQUESTS = "BlockDiagonalCausalLocalAttentionFromBottomRightMask"
    GAPPY = "BlockDiagonalGappyKeysMask"
    CAUSAL_GAPPY = "BlockDiagonalCausalWithOffsetGappyKeysMask"
    PAGED = "PagedBlockDiagonalPaddedKeysMask"
    CAUSAL_PAGED = "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask"
    TENSOR = "Tensor"

    @property
    def folded(self) -> bool:
        """Whether the sequences of the batch are concatenated into one."""
        return "BlockDiagonal" in self


# The class that expresses a mask of these words, for any kernel.
NATURAL = {
    frozenset[str](): AttnBias.NONE,
    frozenset({"causal"}): AttnBias.CAUSAL,
    frozenset({"causal", "window"}): AttnBias.CAUSAL_WINDOW,
    frozenset({"window"}): AttnBias.WINDOW,
    frozenset({"document"}): AttnBias.BLOCKS,
    frozenset({"document", "causal"}): AttnBias.CAUSAL_BLOCKS,
    frozenset({"document", "causal", "window"}): AttnBias.CAUSAL_WINDOW_BLOCKS,
    frozenset({"padding"}): AttnBias.PADDED,
}
# The classes for requests, by the mask of each; split-K takes the second. The third is for keys in pages.
OF_REQUESTS = {
    frozenset[str](): (AttnBias.BLOCKS, AttnBias.GAPPY, AttnBias.PAGED),
    frozenset({"causal"}): (AttnBias.CAUSAL_REQUESTS, AttnBias.CAUSAL_GAPPY, AttnBias.CAUSAL_PAGED),
    frozenset({"causal", "window"}): (AttnBias.CAUSAL_WINDOW_REQUESTS, None, None),
}
_BLOCKS = frozenset({AttnBias.BLOCKS, AttnBias.CAUSAL_BLOCKS, AttnBias.CAUSAL_WINDOW_BLOCKS, AttnBias.CAUSAL_REQUESTS})
_PAGES = frozenset({AttnBias.PAGED, AttnBias.CAUSAL_PAGED})
_FLASH = _BLOCKS | {AttnBias.CAUSAL, AttnBias.CAUSAL_WINDOW, AttnBias.WINDOW, AttnBias.CAUSAL_WINDOW_REQUESTS} | _PAGES
_CUTLASS_BACKWARD = _BLOCKS | {AttnBias.CAUSAL}
TAKEN = {
    "cutlass": _CUTLASS_BACKWARD | {AttnBias.CAUSAL_WINDOW, AttnBias.CAUSAL_WINDOW_REQUESTS},
    "fa2": _FLASH,
    "fa3": _FLASH,
    "splitk": _PAGES | {AttnBias.PADDED, AttnBias.GAPPY, AttnBias.CAUSAL_GAPPY},
}
PAGE_MULTIPLES = {"": 64, "fa2": 256, "fa3": 1, "splitk": 64}  # tokens
MOST_CAUSAL_QUERIES = 16  # of a request, in split-K, where all requests must have as many

# The module of each kernel in xformers.ops.fmha, which holds FwOp and, but for split-K, BwOp.
MODULES = {"cutlass": "cutlass", "fa2": "flash", "fa3": "flash3", "splitk": "triton_splitk"}
TENSOR_ALIGNMENT = 8  # rows of a bias tensor start at multiples of 16 bytes


def attn_bias_of(case: Case) -> AttnBias:
    """How the mask of a case is expressed for its kernel."""
    problem = case.problem
    if _of_requests(problem):
        kind = _class_of_requests(case)
        assert kind, problem
        return kind
    if problem.bias is not None:
        return AttnBias.TENSOR
    if problem.masking.pairs(problem.grid) == problem.batch * problem.seq_q * problem.seq_kv:
        return AttnBias.NONE  # for example a causal mask over one query
    natural = NATURAL.get(problem.masking.words, AttnBias.TENSOR)
    return natural if natural in _taken(case) else AttnBias.TENSOR


def _of_requests(problem: Problem) -> bool:
    return bool(problem.requests or problem.page_size)


def _class_of_requests(case: Case) -> AttnBias | None:
    """The class for requests or keys in pages that the kernel takes; None if there is none."""
    problem = case.problem
    parts = dict.fromkeys(problem.parts)
    all_visible = all(part.masking.pairs(part.grid) == part.seq_q * part.seq_kv * part.batch for part in parts)
    classes = OF_REQUESTS.get(frozenset() if all_visible else problem.masking.words, ())
    usable = classes[2:] if problem.page_size else classes[:2]
    return next((kind for kind in usable if kind in _taken(case)), None)


def _taken(case: Case) -> frozenset[AttnBias]:
    kernel = case.backend.partition(":")[2]
    if not kernel and case.problem.page_size:  # without its own flash kernels, as built for torch >= 2.10
        kernel = "splitk"
    if not kernel:  # xformers takes a flash kernel wherever one can serve
        problem = case.problem
        fits = problem.head_dim == problem.head_dim_v <= 256 and problem.head_dim % 8 == 0
        kernel = "fa2" if fits and problem.dtype in HALVES else "cutlass"
    if kernel == "cutlass" and case.mode.needs_grad:
        return _CUTLASS_BACKWARD
    return TAKEN[kernel]


def lengths(kind: AttnBias, problem: Problem) -> Keywords:
    """The sequences of a batch, in the keywords of from_seqlens of that class."""
    queries, keys = (list(counts) for counts in zip(*problem.sizes, strict=True))
    options: Keywords = {"q_seqlen": queries, "kv_seqlen": keys}
    if kind in (AttnBias.GAPPY, AttnBias.CAUSAL_GAPPY):
        options["kv_seqstarts"] = list(segments(problem).starts_kv)
    if kind in _PAGES:
        options |= {"block_tables": page_table(problem), "page_size": problem.page_size}
    return options


def build_for_requests(kind: AttnBias, problem: Problem) -> AttentionBias:
    """The attn_bias argument for requests or keys in pages, on the host."""
    import torch
    from xformers.ops.fmha import attn_bias

    options = tables_on("cpu", lengths(kind, problem)) | {"device": torch.device("cpu")}
    if kind is AttnBias.CAUSAL_REQUESTS:
        return attn_bias.BlockDiagonalMask.from_seqlens(**options).make_causal_from_bottomright()
    if kind is AttnBias.CAUSAL_WINDOW_REQUESTS:
        left = problem.masking.term(Window).left
        return attn_bias.BlockDiagonalMask.from_seqlens(**options).make_local_attention_from_bottomright(left + 1)
    return getattr(attn_bias, kind.value).from_seqlens(**options)


def build(kind: AttnBias, problem: Problem, device: str, dtype: torch.dtype) -> AttentionBias | Tensor | None:
    """The attn_bias argument; a tensor is [batch, heads, seq_q, seq_kv], its rows aligned, its heads sharing memory."""
    if kind is AttnBias.NONE:
        return None
    if kind is AttnBias.TENSOR:
        return _tensor(problem, device, dtype)
    import torch
    from xformers.ops.fmha import attn_bias

    mask_class = getattr(attn_bias, kind.value)
    if kind is AttnBias.CAUSAL:
        return mask_class()
    if kind is AttnBias.CAUSAL_WINDOW:
        return mask_class(problem.masking.term(Window).left + 1)  # counts the diagonal key too
    if kind is AttnBias.WINDOW:
        window = problem.masking.term(Window)
        return mask_class(window_left=window.left, window_right=window.right)
    if kind is AttnBias.PADDED:
        lengths = problem.masking.term(Padding).key_lengths(problem.grid).tolist()
        rows = [problem.seq_q] * problem.batch
        return mask_class.from_seqlens(rows, problem.seq_kv, lengths, device=torch.device(device))
    spans = problem.masking.term(Document).spans(problem.grid).tolist()
    lengths = [end - start for start, end in itertools.pairwise(spans)] * problem.batch
    blocks = attn_bias.BlockDiagonalMask.from_seqlens(lengths, device=torch.device(device))
    if kind is AttnBias.CAUSAL_WINDOW_BLOCKS:
        return blocks.make_local_attention(problem.masking.term(Window).left + 1)
    return blocks.make_causal() if kind is AttnBias.CAUSAL_BLOCKS else blocks


def _tensor(problem: Problem, device: str, dtype: torch.dtype) -> Tensor:
    import torch

    visible = torch.from_numpy(problem.masking.dense(problem.grid)).to(device)[:, None]
    aligned = -(-problem.seq_kv // TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
    values = problem.bias.dense_tensor(problem) if isinstance(problem.bias, Constant) else torch.zeros(1, 1, 1)
    padded = torch.zeros(len(visible), len(values), problem.seq_q, aligned, dtype=dtype, device=device)
    added = padded[..., : problem.seq_kv].copy_(values).masked_fill_(~visible, float("-inf"))
    return added.expand(problem.batch, problem.heads, problem.seq_q, problem.seq_kv)


def arrange(problem: Problem, kind: AttnBias, grouped: bool, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """q, k and v as xformers takes them, from [batch, seq, heads, head_dim].

    Heads that share keys: [batch, seq, kv_heads, group, head_dim] with keys expanded in place where `grouped`, which
    only forward passes take; else keys are repeated, a copy that xformers leaves to its users.
    """
    tensors = [tensor.flatten(0, 1)[None] if kind.folded else tensor for tensor in (q, k, v)]
    group = problem.heads // problem.kv_heads
    if group == 1:
        return tensors
    q, *shared = tensors
    if not grouped:
        return [q, *(tensor.repeat_interleave(group, dim=2) for tensor in shared)]
    q = q.view(*q.shape[:2], problem.kv_heads, group, q.shape[3])
    return [q, *(tensor[:, :, :, None].expand(-1, -1, -1, group, -1) for tensor in shared)]


def prepare(case: Case, device: str) -> Prepared:
    """Build the mask, untimed; sharing heads is part of the call."""
    import torch
    from xformers.ops import fmha

    from attnbench.attention.inputs import torch_dtype

    problem, kind = case.problem, attn_bias_of(case)
    started = time.perf_counter()
    if _of_requests(problem):
        plan, place = partial(build_for_requests, kind, problem), torch.device(device)
        attn_bias, seconds = planned(plan, lambda bias: bias.to(place), device)
    else:
        attn_bias = build(kind, problem, device, torch_dtype(problem.dtype))
        seconds = {"mask_build": time.perf_counter() - started} if attn_bias is not None else {}
    grouped = problem.heads > problem.kv_heads and not case.mode.needs_grad
    if grouped and kind is AttnBias.TENSOR:
        attn_bias = attn_bias.unflatten(1, (problem.kv_heads, -1))
    operators = _operators(case.backend.partition(":")[2])

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, seq = q.shape[:2]
        arranged = arrange(problem, kind, grouped, q, k, v)
        options = {"p": problem.dropout, "scale": problem.scale, "op": operators}
        out: Tensor = fmha.memory_efficient_attention(*arranged, attn_bias, **options)
        return out.reshape(batch, seq, problem.heads, problem.head_dim_v)

    shared = "none" if problem.heads == problem.kv_heads else "grouped" if grouped else "expanded in the call"
    stored = partial(paged, problem) if problem.page_size else None
    facts = {"attn_bias": kind.value, "shared_heads": shared}
    return Prepared(call=call, seconds=seconds, facts=facts, stored=stored)


def _operators(kernel: str) -> AttentionOp | None:
    """The pair of a forward and a backward operator; None leaves the choice to xformers."""
    from xformers.ops import fmha

    if not kernel:
        return None
    module = getattr(fmha, MODULES[kernel])
    return module.FwOp, getattr(module, "BwOp", None)


def scratch_bytes(case: Case) -> int:
    """The lse, the bias tensor, repeated keys, and backward a float32 sum of dq."""
    problem = case.problem
    rows = math.prod(problem.shape_q)
    total = 4 * rows
    if not _of_requests(problem) and attn_bias_of(case) is AttnBias.TENSOR:
        sequences = problem.batch if "padding" in problem.features else 1
        sequences *= problem.heads if problem.bias is not None else 1
        # The boolean mask exists beside it only while it is built, before the call.
        total += sequences * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    if not case.mode.needs_grad:
        return total
    repeated = 0
    if problem.heads > problem.kv_heads:
        heads_kv = math.prod(problem.shape_kv) * (problem.heads // problem.kv_heads)
        numbers = heads_kv * (problem.head_dim + problem.head_dim_v)
        repeated = 2 * numbers * problem.dtype.bytes  # keys and values, and their gradients
    return total + 4 * rows + 4 * rows * problem.head_dim + repeated


def probe(device: str, kernel: str) -> str | None:
    """Run it on 64 tokens: xformers lists kernels as available that this GPU or build lacks."""

    def run() -> None:
        import torch
        from xformers.ops import fmha

        tokens = torch.zeros(1, 64, 1, 64, dtype=torch.float16, device=device)
        fmha.memory_efficient_attention(tokens, tokens, tokens, op=_operators(kernel))

    return failure(run)


def _is_built_with(kernel: str, kind: AttnBias) -> bool:
    """Whether the kernel takes that class in the build that a worker has imported."""
    fmha = sys.modules.get("xformers.ops.fmha")
    if fmha is None or not kernel:
        return True
    operator = getattr(fmha, MODULES[kernel]).FwOp
    return getattr(fmha.attn_bias, kind.value) in operator.SUPPORTED_ATTN_BIAS_TYPES


def _refuses(case: Case) -> list[str]:
    """What the classes for requests and pages cannot express, and pages that a kernel does not read."""
    problem, kernel = case.problem, case.backend.partition(":")[2]
    if not _of_requests(problem) or (problem.page_size and "paged" not in LIMITS[kernel].features):
        return []
    what = "keys in pages" if problem.page_size else "requests"
    words = problem.features & LIMITS[kernel].features - _WITH_REQUESTS  # Limits name the others
    reasons = [f"{FEATURES[word]} with {what} unsupported" for word in sorted(words)]
    if reasons:
        return reasons
    multiple = PAGE_MULTIPLES.get(kernel, 1)
    if problem.page_size % multiple:
        other = f"page_size={problem.page_size} is not a multiple of {multiple}"
        reasons.append(f"{other}: use page_size={multiple}, or xformers:fa3")
    kind = _class_of_requests(case)
    if kind is None:
        mode = " backward" if case.mode.needs_grad else ""
        reasons.append(f"mask {problem.mask} with {what} unsupported{mode}: use causal or none, or flash-attn")
    elif not _is_built_with(kernel, kind):
        reasons.append(f"this build of xformers has {what} in other kernels only: use xformers:fa3 or xformers:splitk")
    elif kind in (AttnBias.CAUSAL_GAPPY, AttnBias.CAUSAL_PAGED) and kernel in ("", "splitk"):
        queries = {size.queries for size in problem.sizes}
        if len(queries) > 1 or max(queries) > MOST_CAUSAL_QUERIES:
            limit = f"different numbers of queries, or more than {MOST_CAUSAL_QUERIES}, with a causal mask unsupported"
            reasons.append(f"{limit}: use xformers:fa2 or xformers:fa3")
    return reasons


_SHAPES = frozenset({"gqa", "cross", "scale"})
_WITH_REQUESTS = _SHAPES | {"causal", "window", "requests", "paged", "head_dim_v", "dropout"}
_ANY_MASK = frozenset({"causal", "window", "prefix", "document", "padding"})
_ADDED = frozenset({"alibi", "t5", "span", "edge", "dense_bias", "dropout"})  # biases by a tensor
_FLASH_LIMITS: Keywords = {
    "dtypes": HALVES,
    "features": _SHAPES | {"causal", "window", "document", "requests", "paged"},
    "head_dim_most": 256,
    # attn_bias has only causal windows for documents.
    "combinations": (frozenset({"document", "window"}),),
}
_WIDEST = Limits(
    dtypes=FLOATS,
    features=_SHAPES | _ANY_MASK | _ADDED | {"head_dim_v", "requests"},
    head_dim_multiple=8,
    capability=(8, 0),
)
LIMITS = {
    "": replace(_WIDEST, features=_WIDEST.features | {"paged"}),
    "cutlass": replace(_WIDEST, capability_below=(9, 1)),
    "fa2": Limits(**_FLASH_LIMITS, head_dim_multiple=8, capability=(8, 0)),
    # Forward from head_dim 32, backward from 64: what both have.
    "fa3": Limits(**_FLASH_LIMITS, head_dim_multiple=64, capability=(9, 0), capability_below=(9, 1)),
    # It takes powers of two from 16 to 512; a multiple and a bound can express 64 and 128.
    "splitk": Limits(
        dtypes=HALVES,
        features=(_SHAPES | _ANY_MASK | {"requests", "paged"}) - {"document"},
        modes=frozenset({Mode.FWD}),
        head_dim_most=128,
        head_dim_multiple=64,
        capability=(8, 0),
    ),
}
SUMMARIES = {
    "": "xformers, the kernel that xformers picks",
    "cutlass": "xformers, the CUTLASS kernel alone",
    "fa2": "xformers, FlashAttention-2 alone",
    "fa3": "xformers, FlashAttention-3 alone (Hopper)",
    "splitk": "xformers, the Triton split-K kernel alone, forward",
}


def _backend(kernel: str) -> Backend:
    return Backend(
        name=f"xformers:{kernel}" if kernel else "xformers",
        summary=SUMMARIES[kernel],
        limits={"cuda": LIMITS[kernel]},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("xformers", "xformers.ops"),
        install="pip install 'xformers>=0.0.35'",
        layout=Layout.BSHD,
        probe=partial(probe, kernel=kernel),
        refuses=_refuses,
    )


BACKENDS = {backend.name: backend for backend in map(_backend, LIMITS)}
