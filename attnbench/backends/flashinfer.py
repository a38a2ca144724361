"""flashinfer's batch prefill over packed keys or pages, which computes decodes too: planned once, then run.

Planning is the sample `plan`. It moves the tables from the host to the GPU itself, and picks FlashAttention-2 or 3. The
first one also compiles or loads the kernels, which is the sample `compile`. A window has no bound on the right. The
log-sum-exp is to base 2, and is converted inside the timed call.
flashinfer/prefill.py of https://github.com/flashinfer-ai/flashinfer
"""

from __future__ import annotations

import itertools
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.layouts import padded, page_table, paged, segments
from attnbench.attention.problem import Problem
from attnbench.backends import HALVES, Backend, Keywords, Layout, Limits, Output, Prepared, failure, tables_on
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

WORKSPACE_BYTES = 128 * 1024**2  # what flashinfer recommends
PLAN_BYTES = 8 * 1024**2  # of the wrapper itself
HEAD_DIMS = (64, 128, 256)
_DTYPES = {Dtype.FP16: "float16", Dtype.BF16: "bfloat16"}


def arguments(problem: Problem) -> Keywords:
    """The problem in the keywords of plan."""
    left, right = problem.window or (-1, -1)
    options: Keywords = {
        "num_qo_heads": problem.heads,
        "num_kv_heads": problem.kv_heads,
        "head_dim_qk": problem.head_dim,
        "causal": problem.causal or right == 0,
        "sm_scale": problem.scale,
        "window_left": left,
        "logits_soft_cap": problem.softcap,
        "q_data_type": _DTYPES[problem.dtype],
    }
    return options | {"page_size": problem.page_size} if problem.page_size else options


def tables(problem: Problem) -> Keywords:
    """Where sequences start, and where their pages are, in the keywords of plan."""
    batch = segments(problem)
    starts_q = np.array(batch.starts_q, np.int32)
    if not problem.page_size:
        return {"qo_indptr": starts_q, "kv_indptr": np.array(batch.starts_kv, np.int32)}
    keys = np.array(batch.lengths_kv, np.int32)
    counts = -(-keys // problem.page_size)
    rows = zip(page_table(problem), counts, strict=True)
    return {
        "qo_indptr": starts_q,
        "paged_kv_indptr": np.array([0, *itertools.accumulate(counts)], np.int32),
        "paged_kv_indices": np.concatenate([row[:count] for row, count in rows]),
        "paged_kv_last_page_len": (keys - 1) % problem.page_size + 1,
    }


def prepare(case: Case, device: str) -> Prepared:
    """Plan twice: the first time compiles, the second is the sample `plan`."""
    import flashinfer
    import torch

    problem = case.problem
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    names = "BatchPrefillWithRaggedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"
    wrapper: Any = getattr(flashinfer, names[problem.page_size > 0])(workspace, "NHD")

    def plan() -> float:
        started = time.perf_counter()
        wrapper.plan(**tables_on("cpu", tables(problem)), **arguments(problem))
        if workspace.is_cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    first_s, plan_s = plan(), plan()
    wants_lse = problem.returns is Returns.LSE

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        keys = ((k, v),) if problem.page_size else (k.flatten(0, 1), v.flatten(0, 1))
        result = wrapper.run(q.flatten(0, 1), *keys, return_lse=wants_lse)
        packed, lse = (result[0], result[1].mT * math.log(2)) if wants_lse else (result, None)
        out, lse = padded(None, q.shape[0], q.shape[1], packed, lse)
        return (out, lse) if wants_lse else out

    return Prepared(
        call=call,
        seconds={"compile": max(first_s - plan_s, 0.0), "plan": plan_s},
        facts={"wrapper": names[problem.page_size > 0]},
        stored=partial(paged, problem) if problem.page_size else None,
    )


def scratch_bytes(case: Case) -> int:
    """The workspace, the tables of the plan, and the lse to base 2 and e."""
    return WORKSPACE_BYTES + PLAN_BYTES + 8 * math.prod(case.problem.shape_q)


def _refuses(case: Case) -> list[str]:
    problem, reasons = case.problem, []
    if problem.head_dim not in HEAD_DIMS:
        reasons.append(f"head_dim {problem.head_dim} unsupported: use {', '.join(map(str, HEAD_DIMS))}")
    if problem.window and problem.window[1] and not problem.causal:
        reasons.append(f"mask {problem.mask} unsupported: a window needs causal, as causal+window:{problem.window[0]}")
    return reasons


def probe(device: str) -> str | None:
    """Plan and run 64 tokens."""

    def run() -> None:
        import torch

        case = Case(problem=Problem(seq_q=64, heads=1, dtype=Dtype.FP16), backend="flashinfer")
        tokens = torch.zeros(1, 64, 1, 64, dtype=torch.float16, device=device)
        prepare(case, device).call(tokens, tokens, tokens)

    return failure(run)


BACKENDS = {
    "flashinfer": Backend(
        name="flashinfer",
        summary="flashinfer, batch prefill over packed keys or pages, forward",
        limits={
            "cuda": Limits(
                dtypes=HALVES,
                features=frozenset(
                    {"causal", "window", "requests", "paged", "gqa", "cross", "scale", "softcap", "lse"}
                ),
                modes=frozenset({Mode.FWD}),
                capability=(8, 0),
            )
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("flashinfer",),
        install="pip install flashinfer-python",
        layout=Layout.BSHD,
        probe=probe,
        refuses=_refuses,
    )
}
