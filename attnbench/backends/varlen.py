"""torch's varlen_attn: FlashAttention over packed sequences, without a separate package.

Documents and full batches are packed already; a batch of ragged lengths is packed and unpacked inside the timed call.
"""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, Any

from attnbench.attention.layouts import packed, padded, segments
from attnbench.attention.problem import Mode, Problem, Returns
from attnbench.backends import HALVES, Backend, Keywords, Layout, Limits, Output, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

DOCS = "https://docs.pytorch.org/docs/stable/nn.attention.varlen.html"


def arguments(problem: Problem, known: frozenset[str]) -> Keywords:
    """The problem in the keywords of varlen_attn; older versions have a flag for causal and no window."""
    left, right = problem.window or (-1, 0 if problem.causal else -1)
    if "window_size" in known:
        options: dict[str, object] = {"window_size": (left, right)}
    elif problem.window:
        raise ValueError("this torch has no windows in varlen_attn: it needs 2.12 or newer")
    else:
        options = {"is_causal": right == 0}
    if "scale" in known:
        options["scale"] = problem.scale
    elif problem.scale != problem.head_dim**-0.5:
        raise ValueError("this torch has no scale in varlen_attn")
    if "enable_gqa" in known:
        options["enable_gqa"] = problem.heads > problem.kv_heads
    return options


def prepare(case: Case, device: str) -> Prepared:
    """The call, and where sequences start, on the device."""
    import torch
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    problem = case.problem
    attend: Any = varlen_attn
    options = arguments(problem, frozenset(inspect.signature(attend).parameters))
    if wants_lse := problem.returns is Returns.LSE:
        options["return_aux"] = AuxRequest(lse=True)
    ragged = segments(problem)
    tokens = None
    if ragged is None:
        of_q, of_k = ([b * n for b in range(problem.batch + 1)] for n in (problem.seq_q, problem.seq_kv))
        longest = problem.seq_q, problem.seq_kv
    else:
        of_q = of_k = list(ragged.starts)
        longest = ragged.longest, ragged.longest
        tokens = None if ragged.tokens is None else torch.tensor(ragged.tokens, device=device)
    assert all(a < b for a, b in itertools.pairwise(of_q))
    starts = [torch.tensor(offsets, dtype=torch.int32, device=device) for offsets in (of_q, of_k)]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        result = attend(*packed(tokens, q, k, v), *starts, *longest, **options)
        out, lse = result if isinstance(result, tuple) else (result, None)
        out, lse = padded(tokens, q.shape[0], q.shape[1], out, lse)
        return (out, lse) if wants_lse else out

    packing = "none" if ragged is None else "free" if ragged.tokens is None else "inside the call"
    return Prepared(call=call, facts={"packing": packing})


def scratch_bytes(case: Case) -> int:
    """The lse, copies of what is packed, and backward float32 sums of dq."""
    problem = case.problem
    rows, keys = problem.batch * problem.heads * problem.seq_q, problem.batch * problem.kv_heads * problem.seq_kv
    copies = problem.dtype.bytes * 2 * problem.head_dim * (rows + keys) if problem.lengths else 0
    return 4 * rows + copies if case.mode is Mode.FWD else 8 * rows + 2 * copies + 4 * rows * problem.head_dim


def probe(device: str) -> str | None:
    """Run it on 64 tokens."""
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn

        tokens = torch.zeros(64, 1, 64, dtype=torch.float16, device=device)
        starts = torch.tensor([0, 64], dtype=torch.int32, device=device)
        varlen_attn(tokens, tokens, tokens, starts, starts, 64, 64)
    except Exception as error:  # a build of torch without the kernel may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


BACKENDS = {
    "varlen": Backend(
        name="varlen",
        summary="torch varlen_attn: FlashAttention over ragged batches (CUDA)",
        limits={
            "cuda": Limits(
                dtypes=HALVES,
                features=frozenset({"causal", "window", "document", "varlen", "gqa", "cross", "scale", "lse"}),
                head_dim_most=256,
                head_dim_multiple=8,
                capability=(8, 0),
                # A document of a ragged batch would need both meanings of a sequence at once.
                combinations=(frozenset({"document", "varlen"}),),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", "torch.nn.attention.varlen"),
        install="pip install 'torch>=2.10'",
        layout=Layout.BSHD,
        probe=probe,
    )
}
