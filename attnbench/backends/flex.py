"""torch's FlexAttention: compiled (`flex`) and eager (`flex:eager`), never one in place of the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attnbench.attention import cost, formula
from attnbench.attention.bands import Causal, Document, Padding, Prefix, Window
from attnbench.attention.biases import Alibi, ByDistance, Constant, Relative
from attnbench.attention.patterns import Blocks, Dilated, Graph, Longformer, Strided
from attnbench.attention.problem import FEATURES, Dtype, Mode, Problem, Returns
from attnbench.attention.terms import Term
from attnbench.backends import Backend, Limits, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor

_BEYOND = frozenset({"varlen", "dense", "weights", "additive", "file", "dropout", "paged"})  # no score_mod says these
_FEATURES = frozenset(FEATURES) - _BEYOND - {"argmax", "topk", "sample", "topp", "raw", "sparsemax", "sigmoid"}
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
    started = time.perf_counter()
    block_mask = None
    if predicate := mask_mod(problem, device):
        batch = problem.batch if "padding" in problem.features else None
        block_mask = create_block_mask(predicate, batch, None, problem.seq_q, problem.seq_kv, device=device)
    mask_build_s = time.perf_counter() - started
    wants_lse = problem.returns is Returns.LSE or problem.sinks
    arguments: dict[str, Any] = {
        "block_mask": block_mask,
        "scale": problem.scale,
        "enable_gqa": problem.heads > problem.kv_heads,
    }
    if wants_lse:
        arguments["return_aux"] = AuxRequest(lse=True)
    returns_lse = problem.returns is Returns.LSE
    sinks = formula.sinks(problem).float().to(device)[:, None] if problem.sinks else None
    modify = score_mod(problem, device)
    relative = problem.bias if isinstance(problem.bias, Relative) else None

    # What is compiled closes over plain values alone: dynamo cannot look into records.
    def attend(q: Tensor, k: Tensor, v: Tensor, *looked_up: Tensor) -> Any:
        given = flex_attention(q, k, v, score_mod=modify(*looked_up) if modify else None, **arguments)
        if not wants_lse:
            return given
        out, lse = given[0], given[1].lse
        if sinks is not None:  # a sink takes weight from every key alike
            out = (out * (lse - sinks).sigmoid()[..., None]).to(out.dtype)
            lse = torch.logaddexp(lse, sinks)
        return (out, lse) if returns_lse else out

    run: Any = torch.compile(attend, dynamic=False, fullgraph=True) if compiled else attend

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return run(q, k, v) if relative is None else run(q, k, v, *_products(problem, relative, q, k))

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


Added = Callable[..., Any]  # of (batch, head, query index, key index), as tensors


def score_mod(problem: Problem, device: str) -> Callable[..., Callable[..., Tensor]] | None:
    """Soft cap and bias as flex wants them; the scale is an argument of its own. None where there is neither.

    Gives a function of the tensors of `_products`, none of them unless the bias is relative.
    """
    import torch

    cap, bias = problem.softcap, _bias(problem, device)
    if bias is None:
        if cap is None:
            return None
        return lambda: lambda score, b, h, i, j: cap * torch.tanh(score / cap)

    def modify(*looked_up: Tensor) -> Callable[..., Tensor]:
        added = bias(*looked_up)
        if cap is None:
            return lambda score, b, h, i, j: score + added(b, h, i, j)
        return lambda score, b, h, i, j: cap * torch.tanh(score / cap) + added(b, h, i, j)

    return modify


def _bias(problem: Problem, device: str) -> Callable[..., Added] | None:
    """Tables that are looked up by index are tensors on the device, in float32."""
    bias, offset, last = problem.bias, problem.grid.offset, problem.seq_kv - 1
    if bias is None:
        return None
    if isinstance(bias, Relative):
        return _of_products(problem, bias, device)
    if isinstance(bias, Alibi) and not bias.dense:
        slopes = bias.slopes(problem).float().to(device)
        return lambda: lambda b, h, i, j: -slopes[h] * (j - i - offset).abs()
    by_distance = isinstance(bias, ByDistance) and not bias.dense
    assert isinstance(bias, Constant)
    table = bias.distances(problem) if by_distance and isinstance(bias, ByDistance) else bias.dense_tensor(problem)
    table = table.expand(problem.heads, *table.shape[1:]).float().contiguous().to(device)
    if by_distance:
        return lambda: lambda b, h, i, j: table[h, j - i - offset + last]
    return lambda: lambda b, h, i, j: table[h, i, j]


def _of_products(problem: Problem, bias: Relative, device: str) -> Callable[..., Added]:
    import torch

    offset, last = problem.grid.offset, problem.seq_kv - 1
    places = bias.place(problem, torch.arange(problem.seq_q + last) - last).to(device)

    def picked(products: Tensor, *of_keys: Tensor) -> Added:
        if not of_keys:
            return lambda b, h, i, j: products[b, h, i, places[j - i - offset + last]]
        keys = of_keys[0]
        return lambda b, h, i, j: products[b, h, i, places[j - i - offset + last]] + keys[b, h, 0, j]

    return picked


def _products(problem: Problem, bias: Relative, q: Tensor, k: Tensor) -> list[Tensor]:
    every = slice(0, problem.heads)
    k = k.repeat_interleave(problem.heads // problem.kv_heads, dim=1)
    found = [bias.products(problem, every, q), bias.of_keys(problem, every, k)]
    return [tensor for tensor in found if tensor is not None]


def scratch_bytes(case: Case) -> int:
    """Compiled: row sums, block lists and copies of the inputs. Eager: the scores, three times in float32."""
    problem = case.problem
    blocks = -(-problem.seq_q // BLOCK) * -(-problem.seq_kv // BLOCK)
    small = problem.batch * problem.heads * problem.seq_q * 8 + blocks * 16 * problem.batch + cost.input_bytes(problem)
    pairs = problem.seq_q * problem.seq_kv
    # The block mask is built from the whole mask as booleans.
    mask = pairs * (problem.batch if "padding" in problem.features else 1) if problem.mask != "none" else 0
    if isinstance(problem.bias, Relative):
        places = problem.bias.places(problem)
        mask += 2 * problem.batch * problem.heads * problem.seq_q * places * problem.dtype.bytes
    elif problem.bias and (problem.bias.dense or not isinstance(problem.bias, ByDistance)):
        mask += problem.heads * pairs * 4
    if problem.sinks:
        small += problem.batch * problem.heads * problem.seq_q * problem.head_dim_v * problem.dtype.bytes
    if case.backend == "flex":
        return small + mask
    return small + mask + 3 * problem.batch * problem.heads * pairs * 4


def _backend(name: str, summary: str, compiles: bool) -> Backend:
    modes = frozenset(Mode)
    return Backend(
        name=name,
        summary=summary,
        limits={
            # torch has no backward of flex_attention on a CPU, and no lse of the compiled one ("NotImplementedError"
            # in 2.13); sinks are made from the lse.
            "cpu": Limits(
                dtypes=_DTYPES,
                features=_FEATURES - ({"lse", "sinks"} if compiles else frozenset()),
                modes=frozenset({Mode.FWD}),
            ),
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
