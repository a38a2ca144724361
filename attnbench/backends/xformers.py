"""xformers' memory_efficient_attention: its own choice of kernel, and each of its kernels alone.

A mask is expressed by one of the classes of `xformers.ops.fmha.attn_bias` if the kernel takes it, else by a tensor that
is added to the logits. The class of each kernel lists what it takes; the tables below are those of xformers 0.0.35.
https://facebookresearch.github.io/xformers/components/ops.html
"""

from __future__ import annotations

import itertools
import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from attnbench.attention.biases import Constant
from attnbench.attention.masks.document import Document
from attnbench.attention.masks.padding import Padding
from attnbench.attention.masks.window import Window
from attnbench.attention.problem import Mode, Problem
from attnbench.backends import FLOATS, HALVES, Backend, Keywords, Layout, Limits, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    TENSOR = "Tensor"

    @property
    def folded(self) -> bool:
        """Whether the sequences of the batch are concatenated into one."""
        return self.startswith("BlockDiagonal")


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
_BLOCKS = frozenset({AttnBias.BLOCKS, AttnBias.CAUSAL_BLOCKS, AttnBias.CAUSAL_WINDOW_BLOCKS})
_FLASH = _BLOCKS | {AttnBias.CAUSAL, AttnBias.CAUSAL_WINDOW, AttnBias.WINDOW}
_CUTLASS_BACKWARD = _BLOCKS | {AttnBias.CAUSAL}
TAKEN = {
    "cutlass": _CUTLASS_BACKWARD | {AttnBias.CAUSAL_WINDOW},
    "fa2": _FLASH,
    "fa3": _FLASH,
    "splitk": frozenset({AttnBias.PADDED}),
}

# The module of each kernel in xformers.ops.fmha, which holds FwOp and, but for split-K, BwOp.
MODULES = {"cutlass": "cutlass", "fa2": "flash", "fa3": "flash3", "splitk": "triton_splitk"}
TENSOR_ALIGNMENT = 8  # rows of a bias tensor start at multiples of 16 bytes


def attn_bias_of(case: Case) -> AttnBias:
    """How the mask of a case is expressed for its kernel."""
    problem = case.problem
    if problem.bias is not None:
        return AttnBias.TENSOR
    if problem.masking.pairs(problem.grid) == problem.batch * problem.seq_q * problem.seq_kv:
        return AttnBias.NONE  # for example a causal mask over one query
    natural = NATURAL.get(problem.masking.words, AttnBias.TENSOR)
    return natural if natural in _taken(case) else AttnBias.TENSOR


def _taken(case: Case) -> frozenset[AttnBias]:
    kernel = case.backend.partition(":")[2]
    if not kernel:  # xformers takes a flash kernel wherever one can serve
        problem = case.problem
        fits = problem.head_dim == problem.head_dim_v <= 256 and problem.head_dim % 8 == 0
        kernel = "fa2" if fits and problem.dtype in HALVES else "cutlass"
    if kernel == "cutlass" and case.mode.needs_grad:
        return _CUTLASS_BACKWARD
    return TAKEN[kernel]


def build(kind: AttnBias, problem: Problem, device: str, dtype: torch.dtype) -> Any:
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
    from xformers.ops import fmha

    from attnbench.attention.inputs import torch_dtype

    problem, kind = case.problem, attn_bias_of(case)
    started = time.perf_counter()
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
    return Prepared(call=call, seconds=seconds, facts={"attn_bias": kind.value, "shared_heads": shared})


def _operators(kernel: str) -> Any:
    """The pair of a forward and a backward operator; None leaves the choice to xformers."""
    from xformers.ops import fmha

    if not kernel:
        return None
    module = getattr(fmha, MODULES[kernel])
    return module.FwOp, getattr(module, "BwOp", None)


def scratch_bytes(case: Case) -> int:
    """The lse, the bias tensor, repeated keys, and backward a float32 sum of dq."""
    problem = case.problem
    rows = problem.batch * problem.heads * problem.seq_q
    total = 4 * rows
    if attn_bias_of(case) is AttnBias.TENSOR:
        sequences = problem.batch if "padding" in problem.features else 1
        sequences *= problem.heads if problem.bias is not None else 1
        # The boolean mask exists beside it only while it is built, before the call.
        total += sequences * problem.seq_q * problem.seq_kv * problem.dtype.bytes
    if not case.mode.needs_grad:
        return total
    repeated = 0
    if problem.heads > problem.kv_heads:
        numbers = problem.batch * problem.heads * problem.seq_kv * (problem.head_dim + problem.head_dim_v)
        repeated = 2 * numbers * problem.dtype.bytes  # keys and values, and their gradients
    return total + 4 * rows + 4 * rows * problem.head_dim + repeated


def probe(device: str, kernel: str) -> str | None:
    """Run it on 64 tokens: xformers lists kernels as available that this GPU or build lacks."""
    import torch

    try:
        from xformers.ops import fmha

        tokens = torch.zeros(1, 64, 1, 64, dtype=torch.float16, device=device)
        fmha.memory_efficient_attention(tokens, tokens, tokens, op=_operators(kernel))
    except Exception as error:  # a package that does not fit this torch, driver or GPU may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


_SHAPES = frozenset({"gqa", "cross", "scale"})
_ANY_MASK = frozenset({"causal", "window", "prefix", "document", "padding"})
_ADDED = frozenset({"alibi", "t5", "span", "edge", "dense_bias", "dropout"})  # biases by a tensor
_FLASH_LIMITS: Keywords = {
    "dtypes": HALVES,
    "features": _SHAPES | {"causal", "window", "document"},
    "head_dim_most": 256,
    # attn_bias has only causal windows for documents.
    "combinations": (frozenset({"document", "window"}),),
}
_WIDEST = Limits(
    dtypes=FLOATS, features=_SHAPES | _ANY_MASK | _ADDED | {"head_dim_v"}, head_dim_multiple=8, capability=(8, 0)
)
LIMITS = {
    "": _WIDEST,
    "cutlass": replace(_WIDEST, capability_below=(9, 1)),
    "fa2": Limits(**_FLASH_LIMITS, head_dim_multiple=8, capability=(8, 0)),
    # Forward from head_dim 32, backward from 64: what both have.
    "fa3": Limits(**_FLASH_LIMITS, head_dim_multiple=64, capability=(9, 0), capability_below=(9, 1)),
    # It takes powers of two from 16 to 512; a multiple and a bound can express 64 and 128.
    "splitk": Limits(
        dtypes=HALVES,
        features=_SHAPES | _ANY_MASK - {"document"},
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
    )


BACKENDS = {backend.name: backend for backend in map(_backend, LIMITS)}
