"""torch's varlen_attn: FlashAttention over packed sequences, without a separate package.

Requests, documents and full batches are packed already. Keys in pages are read through `block_table`, which torch has
since 2.13. Its FlashAttention-2 takes pages of a multiple of 256, and in several splits it left rows out
(https://github.com/pytorch/pytorch/issues/194167), so they are read in one. torch/nn/attention/varlen.py, https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
"""

from __future__ import annotations

import inspect
import math
import sys
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from attnbench.attention.choices import Mode, Returns
from attnbench.attention.layouts import page_table, paged, segments, unflattened, waits_beside_decodes
from attnbench.attention.problem import Problem
from attnbench.backends import HALVES, Backend, Keywords, Layout, Limits, Output, Prepared, failure, planned, tables_on
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

PAGE_MULTIPLE = 256  # tokens
_MODULE = "torch.nn.attention.varlen"


def arguments(problem: Problem, known: frozenset[str]) -> Keywords:
    """The problem in the keywords of varlen_attn; older versions have a flag for causal, and `lacks` says what not."""
    left, right = problem.window or (-1, 0 if problem.causal else -1)
    options: Keywords = {"window_size": (left, right)} if "window_size" in known else {"is_causal": right == 0}
    if "scale" in known:
        options["scale"] = problem.scale
    if "enable_gqa" in known:
        options["enable_gqa"] = problem.heads > problem.kv_heads
    return options


def tables(problem: Problem) -> Keywords:
    """Where sequences start, and where their pages are, in the keywords of varlen_attn."""
    batch = segments(problem)
    starts: Keywords = {
        "cu_seq_q": np.array(batch.starts_q, np.int32),
        "cu_seq_k": np.array(batch.starts_kv, np.int32),
        "max_q": batch.longest_q,
        "max_k": batch.longest_kv,
    }
    if not problem.page_size:
        return starts
    used = np.array(batch.lengths_kv, np.int32)
    return starts | {"seqused_k": used, "block_table": page_table(problem), "num_splits": 1}


def lacks(problem: Problem, known: frozenset[str]) -> list[str]:
    """What a version of varlen_attn with these parameters cannot do."""
    reasons = []
    if problem.page_size and "block_table" not in known:
        reasons.append("this torch has no pages in varlen_attn: use torch 2.13 or newer, or page_size=0")
    if problem.window and "window_size" not in known:
        reasons.append("this torch has no windows in varlen_attn: use torch 2.12 or newer")
    if problem.scale != problem.head_dim**-0.5 and "scale" not in known:
        reasons.append("this torch has no scale in varlen_attn: use a newer one, or the default scale")
    return reasons


def _refuses(case: Case) -> list[str]:
    """Page sizes; and in a worker, which has imported torch, what this version lacks."""
    problem, reasons = case.problem, []
    if problem.page_size % PAGE_MULTIPLE:
        reasons.append(
            f"page_size={problem.page_size} is not a multiple of {PAGE_MULTIPLE}: use page_size={PAGE_MULTIPLE}"
        )
    if waits_beside_decodes(problem):
        reasons.append("a request without queries beside decodes of grouped heads unsupported")
    if module := sys.modules.get(_MODULE):
        reasons += lacks(problem, frozenset(inspect.signature(module.varlen_attn).parameters))
    return reasons


def prepare(case: Case, device: str) -> Prepared:
    """The call, and where sequences start, on the device."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    problem = case.problem
    options = arguments(problem, frozenset(inspect.signature(varlen_attn).parameters))
    if wants_lse := problem.returns is Returns.LSE:
        options["return_aux"] = AuxRequest(lse=True)
    moved, seconds = planned(partial(tables, problem), partial(tables_on, device), device)
    options |= moved

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        keys = (k, v) if problem.page_size else (k.flatten(0, 1), v.flatten(0, 1))
        result = varlen_attn(q.flatten(0, 1), *keys, **options)
        out, lse = result if isinstance(result, tuple) else (result, None)
        out, lse = unflattened(q.shape[0], q.shape[1], out, lse)
        return (out, lse) if wants_lse else out

    return Prepared(
        call=call,
        seconds=seconds if problem.requests else {},
        stored=partial(paged, problem) if problem.page_size else None,
    )


def scratch_bytes(case: Case) -> int:
    """The lse, and backward float32 sums of dq."""
    rows = math.prod(case.problem.shape_q)
    return 4 * rows if case.mode is Mode.FWD else 8 * rows + 4 * rows * case.problem.head_dim


def probe(device: str) -> str | None:
    """Run it on 64 tokens."""

    def run() -> None:
        import torch
        from torch.nn.attention.varlen import varlen_attn

        tokens = torch.zeros(64, 1, 64, dtype=torch.float16, device=device)
        starts = torch.tensor([0, 64], dtype=torch.int32, device=device)
        varlen_attn(tokens, tokens, tokens, starts, starts, 64, 64)

    return failure(run)


BACKENDS = {
    "varlen": Backend(
        name="varlen",
        summary="torch varlen_attn: FlashAttention over ragged batches (CUDA)",
        limits={
            "cuda": Limits(
                dtypes=HALVES,
                features=frozenset(
                    {"causal", "window", "document", "requests", "empty", "paged", "gqa", "cross", "scale", "lse"}
                ),
                head_dim_most=256,
                head_dim_multiple=8,
                capability=(8, 0),
                # A document of a request would need both meanings of a sequence at once.
                combinations=tuple(frozenset({"document", word}) for word in ("requests", "paged")),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch", _MODULE),
        install="pip install 'torch>=2.10'",
        layout=Layout.BSHD,
        probe=probe,
        refuses=_refuses,
    )
}
