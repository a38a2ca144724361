"""torch's FlexAttention: compiled (`flex`) and eager (`flex:eager`); neither falls back to the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from attnbench.attention import cost, layouts, logits
from attnbench.attention.biases import Alibi, ByDistance, Constant, Relative
from attnbench.attention.choices import Mode, Returns
from attnbench.attention.problem import FEATURES, Problem
from attnbench.attention.terms import Grid
from attnbench.backends import FLOATS, Backend, CompileClock, Keywords, Limits, Output, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

# No score_mod expresses these.
_BEYOND = {"latent", "dense", "weights", "additive", "file", "dropout"}
_FEATURES = frozenset(FEATURES) - _BEYOND - {"argmax", "topk", "sample", "topp", "raw", "sparsemax", "sigmoid"}
_OF_REQUESTS = frozenset(
    {"requests", "empty", "paged", "causal", "window", "gqa", "cross", "head_dim_v", "scale", "softcap", "lse"}
)
BLOCK = 128  # of a BlockMask, torch's default


def prepare(case: Case, device: str) -> Prepared:
    """Build the block mask and, for `flex`, set up the compilation, which the first call runs."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask

    problem = case.problem
    compiled = case.backend == "flex"
    if compiled:
        torch._dynamo.reset()  # graphs of other cases would count against the recompile limit
        torch._dynamo.config.suppress_errors = False  # a failed compilation must not fall back to eager silently
    started = time.perf_counter()
    block_mask = None
    if predicate := mask_mod(problem, device):
        batch = problem.batch if "padding" in problem.features else None
        lengths = problem.shape_q[2], problem.shape_kv[2]
        block_mask = create_block_mask(predicate, batch, None, *lengths, device=device)
    mask_build_s = time.perf_counter() - started
    relative = problem.bias if isinstance(problem.bias, Relative) else None
    attend = _attend(problem, device, block_mask)
    run: Callable[..., Output] = torch.compile(attend, dynamic=False, fullgraph=True) if compiled else attend

    where = torch.from_numpy(layouts.slots(problem)).to(device) if problem.page_size else None

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if where is not None:
            k, v = (layouts.packed_keys(pages, where) for pages in (k, v))
        return run(q, k, v) if relative is None else run(q, k, v, *_products(problem, relative, q, k))

    seconds = {"plan" if problem.requests else "mask_build": mask_build_s} if block_mask is not None else {}
    facts = {"block_sparsity": _sparsity(block_mask)} if block_mask is not None else {}
    clock = CompileClock() if compiled else None
    stored = partial(layouts.paged, problem) if problem.page_size else None
    return Prepared(call=call, seconds=seconds, facts=facts, stored=stored, late_facts=clock.facts if clock else None)


def _sparsity(block_mask: BlockMask) -> float:
    """Percent of the blocks that are not computed; torch's own figure is below 0 where a block exceeds the lengths."""
    partial, full = block_mask.kv_num_blocks, block_mask.full_kv_num_blocks
    computed = int(partial.sum()) + (0 if full is None else int(full.sum()))
    return 100 * (1 - computed / (partial.numel() * block_mask.kv_indices.shape[-1]))


def _attend(problem: Problem, device: str, block_mask: BlockMask | None) -> Callable[..., Output]:
    """The function to compile, of q, k, v and the tensors of `_products`."""
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    returns_lse = problem.returns is Returns.LSE
    wants_lse = returns_lse or problem.sinks
    grouped = problem.heads > problem.kv_heads
    arguments: Keywords = {"block_mask": block_mask, "scale": problem.scale, "enable_gqa": grouped}
    if wants_lse:
        arguments["return_aux"] = AuxRequest(lse=True)
    sinks = logits.sink_logits(problem).float().to(device)[:, None] if problem.sinks else None
    modify = score_mod(problem, device)

    # The compiled function closes over plain values only: dynamo cannot trace records.
    def attend(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Any:
        result: Any = flex_attention(q, k, v, score_mod=modify(*tables) if modify else None, **arguments)
        if not wants_lse:
            return result
        out, lse = result[0], result[1].lse
        if sinks is not None:  # a sink scales the weights of all keys equally
            out = (out * (lse - sinks).sigmoid()[..., None]).to(out.dtype)
            lse = torch.logaddexp(lse, sinks)
        return (out, lse) if returns_lse else out

    return attend


def mask_mod(problem: Problem, device: str) -> Callable[..., Tensor] | None:
    """The mask as a predicate of (batch, head, query index, key index) as tensors; None for no mask."""
    import torch

    def on_device(table: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(table).to(device)

    if problem.requests:
        return _mask_of_requests(problem, on_device)
    parts = [term.predicate(problem.grid, on_device) for term in problem.masking.terms]
    if not parts:
        return None

    def visible(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen: Tensor = parts[0](b, i, j)
        for part in parts[1:]:
            seen = seen & part(b, i, j)
        return seen

    return visible


def _mask_of_requests(problem: Problem, on_device: Callable[[NDArray[np.generic]], Tensor]) -> Callable[..., Tensor]:
    """The mask over packed tokens: the same request, and the terms on rows and keys counted from the last ones.

    Counted so, all requests have the diagonal of the longest, and causal masks and windows depend on that alone.
    """
    parts = [term.predicate(Grid(1, problem.seq_q, problem.seq_kv), on_device) for term in problem.masking.terms]
    sizes = np.array(problem.sizes)
    requests, places = [], []
    for column, longest in enumerate((problem.seq_q, problem.seq_kv)):
        counts = sizes[:, column]
        requests.append(on_device(np.repeat(np.arange(problem.batch), counts)))
        places.append(on_device(np.concatenate([np.arange(longest - count, longest) for count in counts])))

    def visible(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen: Tensor = requests[0][i] == requests[1][j]
        for part in parts:
            seen = seen & part(b, places[0][i], places[1][j])
        return seen

    return visible


Added = Callable[..., "Tensor"]  # of (batch, head, query index, key index), as tensors


def score_mod(problem: Problem, device: str) -> Callable[..., Callable[..., Tensor]] | None:
    """Soft cap and bias as a score_mod; the scale is a separate argument. None where there is neither.

    Returns a function of the tensors of `_products`, which are none unless the bias is relative.
    """
    import torch

    cap, bias = problem.softcap, _bias(problem, device)
    if bias is None:
        return None if cap is None else lambda: lambda score, b, h, i, j: cap * torch.tanh(score / cap)

    def modify(*looked_up: Tensor) -> Callable[..., Tensor]:
        added = bias(*looked_up)
        if cap is None:
            return lambda score, b, h, i, j: score + added(b, h, i, j)
        return lambda score, b, h, i, j: cap * torch.tanh(score / cap) + added(b, h, i, j)

    return modify


def _bias(problem: Problem, device: str) -> Callable[..., Added] | None:
    """The bias, from tables on the device in float32."""
    if (bias := problem.bias) is None:
        return None
    offset, last = problem.grid.offset, problem.seq_kv - 1
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
    places = bias.table_row(problem, torch.arange(problem.seq_q + last) - last).to(device)

    def picked(products: Tensor, *of_keys: Tensor) -> Added:
        if not of_keys:
            return lambda b, h, i, j: products[b, h, i, places[j - i - offset + last]]
        keys = of_keys[0]
        return lambda b, h, i, j: products[b, h, i, places[j - i - offset + last]] + keys[b, h, 0, j]

    return picked


def _products(problem: Problem, bias: Relative, q: Tensor, k: Tensor) -> list[Tensor]:
    every = slice(0, problem.heads)
    k = k.repeat_interleave(problem.heads // problem.kv_heads, dim=1)
    tensors = [bias.products(problem, every, q), bias.of_keys(problem, every, k)]
    return [tensor for tensor in tensors if tensor is not None]


def scratch_bytes(case: Case) -> int:
    """Compiled: row sums, block lists and copies of the inputs. Eager: three scores in float32, and booleans.

    Keys in pages are gathered first, and eager attention repeats those of grouped heads.
    """
    problem = case.problem
    (batch, _, rows), (_, _, keys) = problem.shape_q, problem.shape_kv
    blocks = -(-rows // BLOCK) * -(-keys // BLOCK)
    small = batch * problem.heads * rows * 8 + blocks * 16 * batch + cost.input_bytes(problem)
    pairs = rows * keys
    # The block mask is built from the complete boolean mask.
    mask = (
        pairs * (problem.batch if "padding" in problem.features else 1)
        if problem.mask != "none" or problem.requests
        else 0
    )
    if isinstance(problem.bias, Relative):
        places = problem.bias.table_rows(problem)
        mask += 2 * problem.batch * problem.heads * problem.seq_q * places * problem.dtype.bytes
    elif problem.bias and (problem.bias.dense or not isinstance(problem.bias, ByDistance)):
        mask += problem.heads * pairs * 4
    if problem.sinks:
        small += problem.batch * problem.heads * problem.seq_q * problem.head_dim_v * problem.dtype.bytes
    packed = cost.kv_bytes(replace(problem, page_size=0) if problem.page_size else problem)
    gathered = packed if problem.page_size else 0
    if case.backend == "flex":
        return small + mask + gathered
    repeated = problem.heads // problem.kv_heads * packed if problem.heads > problem.kv_heads else 0
    return small + mask + gathered + repeated + batch * problem.heads * pairs * (3 * 4 + 1)


def _refuses(case: Case) -> list[str]:
    problem = case.problem
    if not problem.requests:
        return [f"{FEATURES['paged']} unsupported but in a batch of requests"] if problem.page_size else []
    return [f"{FEATURES[word]} with requests unsupported" for word in sorted(problem.features - _OF_REQUESTS)]


def _backend(name: str, summary: str, compiles: bool) -> Backend:
    return Backend(
        name=name,
        summary=summary,
        limits={
            # torch has no backward of flex_attention on a CPU, and no lse of the compiled one ("NotImplementedError"
            # in 2.13); sinks are applied with the lse.
            "cpu": Limits(
                dtypes=FLOATS,
                features=_FEATURES - ({"lse", "sinks"} if compiles else frozenset()),
                modes=frozenset({Mode.FWD}),
            ),
            "cuda": Limits(dtypes=FLOATS, features=_FEATURES, capability=(8, 0)),
        },
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("torch",),
        install="pip install torch",
        compiles=compiles,
        refuses=_refuses,
    )


BACKENDS = {
    "flex": _backend("flex", "torch FlexAttention, compiled", compiles=True),
    "flex:eager": _backend("flex:eager", "torch FlexAttention without compiling", compiles=False),
}
