"""torch's FlexAttention: compiled (`flex`) and eager (`flex:eager`), never one in place of the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attnbench.attention import cost
from attnbench.attention.bands import Causal, Document, Padding, Prefix, Window
from attnbench.attention.patterns import Blocks, Dilated, Graph, Longformer, Strided
from attnbench.attention.problem import FEATURES, Dtype, Mode, Problem, Returns
from attnbench.attention.terms import Term
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_FEATURES = frozenset(FEATURES) - {"varlen", "dense"}
_DTYPES = frozenset({Dtype.FP32, Dtype.FP16, Dtype.BF16})
BLOCK = 128  # of a BlockMask, torch's default


def prepare(case: Case, device: str) -> Prepared:
    """Build the block mask, and for `flex` set up the compile, which the first call then does."""
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    problem = case.problem
    compiled = case.backend == "flex"
    if compiled:
        torch._dynamo.reset()  # another case's graphs would count against the limit of recompiles
        torch._dynamo.config.suppress_errors = False  # a compile that fails must not become eager in silence
    function: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True) if compiled else flex_attention
    started = time.perf_counter()
    block_mask = None
    if predicate := mask_mod(problem, device):
        batch = problem.batch if "padding" in problem.features else None
        block_mask = create_block_mask(predicate, batch, None, problem.seq_q, problem.seq_kv, device=device)
    mask_build_s = time.perf_counter() - started
    arguments: dict[str, Any] = {
        "block_mask": block_mask,
        "score_mod": score_mod(problem),
        "scale": problem.scale,
        "enable_gqa": problem.heads > problem.kv_heads,
    }
    if problem.returns is Returns.LSE:
        arguments["return_aux"] = AuxRequest(lse=True)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        given = function(q, k, v, **arguments)
        return (given[0], given[1].lse) if problem.returns is Returns.LSE else given

    seconds = {"mask_build": mask_build_s} if block_mask is not None else {}
    facts = {"block_sparsity": float(block_mask.sparsity())} if block_mask is not None else {}
    clock = _CompileClock() if compiled else None
    return Prepared(call=call, seconds=seconds, facts=facts, late_facts=clock.facts if clock else None)


class _CompileClock:
    """Seconds that dynamo and inductor spent since it was made, by their own counters."""

    def __init__(self) -> None:
        self._before = self._total()

    def facts(self) -> dict[str, Any]:
        """compile_s, or nothing where torch keeps no such counter."""
        total = self._total()
        return {} if total is None or self._before is None else {"compile_s": total - self._before}

    @staticmethod
    def _total() -> float | None:
        from torch._dynamo import utils

        metrics = getattr(utils, "compilation_time_metrics", None)
        if metrics is None:
            return None
        return float(sum(metrics.get("_compile.compile_inner", [])))


def mask_mod(problem: Problem, device: str) -> Callable[..., Tensor] | None:
    """The mask as flex wants it: a predicate of (batch, head, query index, key index) as tensors; None for no mask."""
    parts = [_predicate(term, problem, device) for term in problem.masking.terms]
    if not parts:
        return None

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen: Any = parts[0](b, h, i, j)
        for part in parts[1:]:
            seen = seen & part(b, h, i, j)
        return seen  # type: ignore[no-any-return]

    return visible


def _predicate(term: Term, problem: Problem, device: str) -> Callable[..., Any]:
    """One term. Tables that are looked up by index must be tensors on the device."""
    import torch

    grid, offset = problem.grid, problem.grid.offset
    if isinstance(term, Document):
        owner = torch.from_numpy(term.owner(grid)).to(device)
        return lambda b, h, i, j: owner[i] == owner[j]
    if isinstance(term, Padding):
        lengths = torch.from_numpy(term.key_lengths(grid)).to(device)
        return lambda b, h, i, j: j < lengths[b]
    if isinstance(term, Window):
        left, right = term.left, term.right
        return lambda b, h, i, j: (j >= i + offset - left) & (j <= i + offset + right)
    if isinstance(term, Prefix):
        count = term.count
        return lambda b, h, i, j: (j < count) | (j <= i + offset)
    if isinstance(term, Dilated):
        step = term.step
        return lambda b, h, i, j: (i + offset - j) % step == 0
    if isinstance(term, Strided):
        stride = term.stride
        return lambda b, h, i, j: (j <= i + offset) & ((i + offset - j < stride) | ((i + offset - j) % stride == 0))
    if isinstance(term, Longformer):
        half, first = term.width // 2, term.global_
        return lambda b, h, i, j: ((i - j).abs() <= half) | (i < first) | (j < first)
    if isinstance(term, Blocks):
        kept, size = torch.from_numpy(term.kept(grid)).to(device), term.size
        return lambda b, h, i, j: kept[i // size, j // size]
    if isinstance(term, Graph):
        neighbours = torch.from_numpy(term.adjacency(grid)).to(device)
        return lambda b, h, i, j: neighbours[i, j]
    assert isinstance(term, Causal)
    return lambda b, h, i, j: j <= i + offset


def score_mod(problem: Problem) -> Callable[..., Tensor] | None:
    """The soft cap as flex wants it; the scale is an argument of its own."""
    import torch

    cap = problem.softcap
    if cap is None:
        return None
    return lambda score, b, h, i, j: cap * torch.tanh(score / cap)


def scratch_bytes(case: Case) -> int:
    """Compiled: row sums, block lists and copies of the inputs. Eager: the scores, three times in float32."""
    problem = case.problem
    blocks = -(-problem.seq_q // BLOCK) * -(-problem.seq_kv // BLOCK)
    small = problem.batch * problem.heads * problem.seq_q * 8 + blocks * 16 * problem.batch + cost.input_bytes(problem)
    pairs = problem.seq_q * problem.seq_kv
    # The block mask is built from the whole mask as booleans.
    mask = pairs * (problem.batch if "padding" in problem.features else 1) if problem.mask != "none" else 0
    if case.backend == "flex":
        return small + mask
    return small + mask + 3 * problem.batch * problem.heads * pairs * 4


def _backend(name: str, summary: str, compiles: bool) -> Backend:
    modes = frozenset(Mode)
    return Backend(
        name=name,
        summary=summary,
        limits={
            # torch has no backward of flex_attention on a CPU ("NotImplementedError" in 2.13).
            "cpu": Limits(dtypes=_DTYPES, features=_FEATURES, modes=frozenset({Mode.FWD})),
            "cuda": Limits(dtypes=_DTYPES, features=_FEATURES, modes=modes, capability=(8, 0)),
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        compiles=compiles,
    )


BACKENDS = {
    "flex": _backend("flex", "torch FlexAttention, compiled", compiles=True),
    "flex:eager": _backend("flex:eager", "torch FlexAttention without compiling", compiles=False),
}
