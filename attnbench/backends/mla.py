"""Attention over a latent cache on torch's SDPA: absorbed, or with keys and values expanded for every token.

Both compute one problem, and all products with the cache are inside the call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from attnbench.attention import cost, latent, layouts
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, Backend, Limits, Prepared, torch_sdpa
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_ABSORBED = "mla:absorbed"
_FEATURES = torch_sdpa.MASKS | {"gqa", "cross", "scale", "head_dim_v", "latent", "paged"}


def prepare(case: Case, device: str) -> Prepared:
    """Prepare SDPA for the problem inside; the call computes the products with the matrices around it."""
    import torch

    problem = case.problem
    inner = torch_sdpa.prepare(_inner(case), device)
    weights = latent.Matrices(*(matrix.to(device) for matrix in latent.matrices(problem)))
    rank = weights.of_values.shape[1]
    rows = _inner(case).problem.shape_q

    def absorbed(q: Tensor, cache: Tensor, _: Tensor) -> Tensor:
        # All heads share the keys: as queries of one head they need no copies of them.
        out = inner.call(latent.absorb(weights, q).reshape(*rows, -1), cache, cache[..., :rank])
        return latent.project(weights, out.reshape(*problem.shape_q, rank))

    def expanded(q: Tensor, cache: Tensor, _: Tensor) -> Tensor:
        out: Tensor = inner.call(q, *latent.expand(weights, cache))
        return out

    call = absorbed if case.backend == _ABSORBED else expanded
    prepared = replace(inner, call=call, facts={**inner.facts, "executed_flops": executed_flops(case)})
    if not problem.page_size:
        return prepared
    where = torch.from_numpy(layouts.page_table(problem).astype(np.int64)).to(device)

    def read(q: Tensor, pages: Tensor, v: Tensor) -> Tensor:
        return call(q, layouts.gathered(problem, pages, where), v)

    return replace(prepared, call=read, stored=partial(layouts.paged, problem))


def executed_flops(case: Case) -> int:
    """FLOPs of the products that are computed: those of attention inside, and those with the matrices."""
    problem, inner = case.problem, _inner(case).problem
    tokens = problem.tokens_q if case.backend == _ABSORBED else problem.tokens_kv
    return cost.flops(inner, Mode.FWD) + latent.product_flops(problem, tokens)


def _inner(case: Case) -> Case:
    """The problem that SDPA solves, from keys without pages."""
    problem = replace(case.problem, page_size=0)
    return Case(problem=_shared(problem) if case.backend == _ABSORBED else latent.expanded(problem), backend="sdpa")


def _shared(problem: Problem) -> Problem:
    """The absorbed problem; where every query sees all keys, with all heads as the queries of one."""
    inner = latent.absorbed(problem)
    if inner.mask == "none" or (inner.mask == "causal" and inner.seq_q == 1):
        return replace(inner, heads=1, seq_q=inner.heads * inner.seq_q, mask="none")
    return inner


def scratch_bytes(case: Case) -> int:
    """What SDPA needs, the matrices, and q and out in the latent space or the expanded keys and values.

    Keys and values of different widths are left to the unfused kernel on a CPU.
    """
    problem, inner = case.problem, replace(_inner(case), backend="sdpa:math")
    around = cost.input_bytes(inner.problem) + cost.output_bytes(inner.problem, Mode.FWD)
    pages = cost.input_bytes(problem) if problem.page_size else 0
    return torch_sdpa.scratch_bytes(inner) + latent.matrix_bytes(problem) + 2 * around + pages


def _backend(name: str, summary: str) -> Backend:
    limits = Limits(dtypes=FLOATS, features=_FEATURES, modes=frozenset({Mode.FWD}))
    return Backend(
        name=name,
        summary=summary,
        limits=dict.fromkeys(("cpu", "cuda"), limits),
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        by_request=True,
        refuses=lambda case: [] if case.problem.kv else ["only a latent cache: use sdpa"],
    )


SUMMARIES = {
    _ABSORBED: "latent cache read as it is by torch SDPA, W_UK and W_UV applied to q and out",
    "mla:expanded": "keys and values of a latent cache expanded for every token, then torch SDPA",
}
BACKENDS = {name: _backend(name, summary) for name, summary in SUMMARIES.items()}
