"""torch.compile of the plain formula: rewritten to SDPA by inductor's patterns (`compile`), and as it is written.

Whether inductor rewrites it depends on the exact form of the formula: the division, the added mask and the softmax are
those of a pattern in torch/_inductor/fx_passes/fuse_attention.py. Its counter says what was done, unless the graph
comes from the cache of autograd's graphs, whose hits pass no pattern: that cache is off. Inductor's own is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from attnbench.attention import cost, dense_masks
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.backends import FLOATS, Backend, CaseRefusedError, CompileClock, Limits, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

FORMULA = "compile:formula"


def formula(problem: Problem) -> Callable[..., Tensor]:
    """The function to compile, of q, k, v and, where it is needed, numbers to be added to the logits."""
    divisor, group = 1 / problem.scale, problem.heads // problem.kv_heads

    def attend(q: Tensor, k: Tensor, v: Tensor, *added: Tensor) -> Tensor:
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        logits = q @ k.transpose(-2, -1) / divisor
        for mask in added:
            logits = logits + mask
        return logits.softmax(-1) @ v

    return attend


def prepare(case: Case, _device: str) -> Prepared:
    """Set up the compilation, which the first call runs."""
    import torch
    from torch._dynamo.utils import counters

    from attnbench.attention.inputs import torch_dtype

    problem, rewrites = case.problem, case.backend != FORMULA
    torch._dynamo.reset()  # graphs of other cases would count against the recompile limit
    torch._functorch.config.enable_autograd_cache = False
    torch._dynamo.config.suppress_errors = False  # a failed compilation must not fall back to eager silently
    counters.clear()
    run = torch.compile(formula(problem), dynamic=False, fullgraph=True, options={"pattern_matcher": rewrites})
    started = time.perf_counter()
    added: tuple[Tensor, ...] = ()
    if not (dense_masks.sees_all(problem) and problem.bias is None):
        added = (dense_masks.added(problem, torch_dtype(problem.dtype)),)
    seconds = {"mask_build": time.perf_counter() - started} if added else {}
    clock = CompileClock()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = run(q, k, v, *added)
        return out

    def late_facts() -> dict[str, object]:
        rewritten = counters["inductor"]["fuse_attention"] > 0
        if rewritten != rewrites:
            raise CaseRefusedError(_unexpected(rewritten))
        return {"rewritten": "to SDPA" if rewritten else "no", **clock.facts()}

    return Prepared(call=call, seconds=seconds, facts={"dense_mask": bool(added)}, late_facts=late_facts)


def _unexpected(rewritten: bool) -> str:
    if rewritten:
        return "inductor rewrites the formula to SDPA in spite of pattern_matcher=False: use compile"
    return f"inductor does not rewrite this formula to SDPA: use {FORMULA}"


def scratch_bytes(case: Case) -> int:
    """The formula: logits and weights in fp32, repeated keys, a mask; a backward pass keeps more of them."""
    problem = case.problem
    pairs = problem.batch * problem.heads * problem.seq_q * problem.seq_kv
    repeated = problem.heads // problem.kv_heads * cost.input_bytes(problem)
    return (5 if case.mode.needs_grad else 3) * 4 * pairs + 2 * repeated


_FEATURES = dense_masks.MASKS | dense_masks.BIASES | {"gqa", "cross", "scale", "head_dim_v"}


def _backend(name: str, summary: str) -> Backend:
    return Backend(
        name=name,
        summary=summary,
        limits={"cpu": Limits(dtypes=FLOATS, features=_FEATURES, modes=frozenset(Mode))},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        compiles=True,
        distributions=("torch",),
        traps=("inductor rewrites the formula to SDPA unless pattern_matcher=False: each way is a backend",),
    )


BACKENDS = {
    "compile": _backend("compile", "torch.compile of the plain formula, which inductor rewrites to SDPA"),
    FORMULA: _backend(FORMULA, "torch.compile of the plain formula as it is written"),
}
