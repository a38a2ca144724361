"""flashinfer over packed keys or pages: planned once for all layers, then run.

Planning is the sample `plan`. It moves the tables from the host to the GPU itself, and picks FlashAttention-2 or 3. The
first one also compiles or loads the kernels, which is the sample `compile`. A window has no bound on the right. The
log-sum-exp is to base 2, and is converted inside the timed call.
flashinfer/{prefill,decode,cascade}.py and mla/_core.py of https://github.com/flashinfer-ai/flashinfer, version 0.6.18
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from attnbench.attention import cost, latent
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.layouts import page_table, paged, prefix_starts, segments, unflattened
from attnbench.attention.problem import Problem
from attnbench.backends import HALVES, Backend, Keywords, Layout, Limits, Output, Prepared, failure, tables_on
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor

WORKSPACE_BYTES = 128 * 1024**2  # what flashinfer recommends
PLAN_BYTES = 8 * 1024**2  # of the wrapper itself, and of each of a cascade
HEAD_DIMS = (64, 128, 256)
LATENT = (512, 64)  # rank and rope that its kernels are built for
MIN_TENSOR_CORE_GROUP = 4  # as sglang: srt/layers/attention/flashinfer_backend.py, should_use_tensor_core
_DTYPES = {Dtype.FP16: "float16", Dtype.BF16: "bfloat16"}


class _Plan(NamedTuple):
    """A wrapper of flashinfer, and what its `plan` is given."""

    wrapper: str
    arguments: Keywords
    levels: tuple[int, ...] = ()  # of a cascade
    options: Keywords = {}  # of the wrapper


class _Part(NamedTuple):
    """Requests that one wrapper computes."""

    plan: _Plan
    rows: NDArray[np.intp] | None = None  # of the packed queries; None: all


class _Pages(NamedTuple):
    """Pages of some requests, as flashinfer lists them."""

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    last_page_len: NDArray[np.int32]


def arguments(problem: Problem) -> Keywords:
    """The problem in the keywords of every plan but that of a latent cache."""
    return {
        "num_qo_heads": problem.heads,
        "num_kv_heads": problem.kv_heads,
        "sm_scale": problem.scale,
        "window_left": (problem.window or (-1, -1))[0],
        "logits_soft_cap": problem.softcap,
        "q_data_type": _DTYPES[problem.dtype],
    } | ({"page_size": problem.page_size} if problem.page_size else {})


def parts_of(problem: Problem) -> list[_Part]:
    """Packed keys as prefills; of keys in pages, requests with one query as decodes and the others as prefills.

    vLLM splits a step that has both in the same way: v1/attention/backends/flashinfer.py, split_decodes_and_prefills.
    """
    starts_q, starts_kv = _starts(problem)
    if not problem.page_size:
        places: Keywords = {"qo_indptr": starts_q, "kv_indptr": starts_kv}
        return [_Part(_Plan("BatchPrefillWithRaggedKVCacheWrapper", places | _of_prefill(problem)))]
    queries, parts = np.diff(starts_q), []
    for members, plan in ((queries == 1, _decodes), (queries > 1, _prefills)):
        if members.any():
            pages = _pages(page_table(problem)[members], np.diff(starts_kv)[members], problem.page_size)
            parts.append(_Part(plan(problem, queries[members], pages), np.repeat(members, queries).nonzero()[0]))
    return parts if len(parts) > 1 else [parts[0]._replace(rows=None)]


def _decodes(problem: Problem, _: NDArray[np.int32], pages: _Pages) -> _Plan:
    places = pages._asdict() | {"head_dim": problem.head_dim}
    options = {"use_tensor_cores": problem.heads // problem.kv_heads >= MIN_TENSOR_CORE_GROUP}
    return _Plan("BatchDecodeWithPagedKVCacheWrapper", places | arguments(problem), options=options)


def _prefills(problem: Problem, queries: NDArray[np.int32], pages: _Pages) -> _Plan:
    starts = np.array([0, *itertools.accumulate(queries)], np.int32)
    places = {"qo_indptr": starts, **{f"paged_kv_{name}": value for name, value in pages._asdict().items()}}
    return _Plan("BatchPrefillWithPagedKVCacheWrapper", places | _of_prefill(problem))


def cascade_plan(problem: Problem) -> _Plan:
    """Two levels: the queries of a group over the pages of its prefix, then each request over its other pages."""
    starts_q, starts_kv = _starts(problem)
    table, size = page_table(problem), problem.page_size
    keys, groups = problem.prefix_groups[0].keys, np.array(prefix_starts(problem))
    shared = _pages(table[groups[:-1]], np.full(len(groups) - 1, keys), size)
    alone = _pages(table[:, keys // size :], np.diff(starts_kv) - keys, size)
    lists = {
        "qo_indptr_arr": [starts_q[groups], starts_q],
        "paged_kv_indptr_arr": [shared.indptr, alone.indptr],
        "paged_kv_indices_arr": [shared.indices, alone.indices],
        "paged_kv_last_page_len": [shared.last_page_len, alone.last_page_len],
    }
    of_mask = {"causal": problem.causal, "head_dim": problem.head_dim}
    return _Plan("MultiLevelCascadeAttentionWrapper", {**lists, **of_mask, **arguments(problem)}, levels=(2,))


def latent_plan(problem: Problem) -> _Plan:
    """Of absorbed queries, all heads over one latent cache; keys without pages are pages of one token."""
    inner, (_, starts_kv), (with_queries, starts_q) = latent.absorbed(problem), _starts(problem), _with_queries(problem)
    keys, size = np.diff(starts_kv)[with_queries], problem.page_size or 1
    of_tokens = starts_kv[:-1, None] + np.arange(max(keys), dtype=np.int32)
    pages = _pages((page_table(problem) if problem.page_size else of_tokens)[with_queries], keys, size)
    places: Keywords = {
        "qo_indptr": starts_q, "kv_indptr": pages.indptr, "kv_indices": pages.indices, "kv_len_arr": keys,
        "num_heads": problem.heads, "head_dim_ckv": inner.head_dim_v,
        "head_dim_kpe": inner.head_dim - inner.head_dim_v,
        "page_size": size, "causal": problem.causal, "sm_scale": inner.scale,
    }  # fmt: skip
    types = dict.fromkeys(("q_data_type", "kv_data_type"), torch_dtype(problem.dtype))
    return _Plan("BatchMLAPagedAttentionWrapper", {**places, **types})


def _of_prefill(problem: Problem) -> Keywords:
    closed = problem.window is not None and problem.window[1] == 0
    return {"head_dim_qk": problem.head_dim, "causal": problem.causal or closed, **arguments(problem)}


def _starts(problem: Problem) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    batch = segments(problem)
    return np.array(batch.starts_q, np.int32), np.array(batch.starts_kv, np.int32)


def _with_queries(problem: Problem) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    """Which requests have queries, and where these start: others have no place in a plan, where each has a page."""
    queries = np.array([size.queries for size in problem.sizes], np.int32)
    with_queries = queries > 0
    return with_queries, np.concatenate([[0], np.cumsum(queries[with_queries])]).astype(np.int32)


def _pages(table: NDArray[np.int32], keys: NDArray[np.integer], size: int) -> _Pages:
    """The pages of each row of a table that hold its first keys."""
    counts = -(-keys // size)
    indptr = np.array([0, *itertools.accumulate(counts)], np.int32)
    indices = np.concatenate([row[:count] for row, count in zip(table, counts, strict=True)])
    return _Pages(indptr, indices, ((keys - 1) % size + 1).astype(np.int32))


def _workspace(device: str) -> Tensor:
    """The memory of all wrappers of a case, which run one after the other."""
    import torch

    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _planned(plan: _Plan, workspace: Tensor) -> Prepared:
    """The call of the wrapper after two plans, the first of which compiles, and their times and facts."""
    import flashinfer
    import torch

    # That of a latent cache has no such choice: its cache has one head.
    layout = {} if plan.wrapper == "BatchMLAPagedAttentionWrapper" else {"kv_layout": "NHD"}
    wrapper = getattr(flashinfer, plan.wrapper)(*plan.levels, workspace, **layout, **plan.options)

    def run() -> float:
        started = time.perf_counter()
        wrapper.plan(**_on_host(plan.arguments))
        if workspace.is_cuda:
            torch.cuda.synchronize(workspace.device)
        return time.perf_counter() - started

    first_s, plan_s = run(), run()
    seconds = {"compile": max(first_s - plan_s, 0.0), "plan": plan_s}
    return Prepared(call=wrapper.run, seconds=seconds, facts={"wrapper": plan.wrapper, **plan.options})


def _on_host(arguments: Keywords) -> Keywords:
    import torch

    several = {
        name: [torch.from_numpy(table) for table in value] for name, value in arguments.items() if type(value) is list
    }
    return tables_on("cpu", arguments) | several


def prepare(case: Case, device: str) -> Prepared:
    """Plan, and call `run` over packed tokens."""
    problem = case.problem
    is_cascade = case.backend == "flashinfer:cascade"
    prepared = _run_parts([_Part(cascade_plan(problem))] if is_cascade else parts_of(problem), device)
    wants_lse = problem.returns is Returns.LSE
    options: Keywords = {} if is_cascade else {"return_lse": wants_lse}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        keys = ((k, v),) if problem.page_size else (k.flatten(0, 1), v.flatten(0, 1))
        result = prepared.call(q.flatten(0, 1), *keys, **options)
        packed, lse = (result[0], result[1].mT * math.log(2)) if wants_lse else (result[0], None)
        out, lse = unflattened(q.shape[0], q.shape[1], packed, lse)
        return (out, lse) if wants_lse else out

    groups = {"groups": len(problem.prefix_groups), "merge_bytes": cost.merge_bytes(problem)} if is_cascade else {}
    stored = partial(paged, problem) if problem.page_size else None
    return replace(prepared, call=call, facts=prepared.facts | groups, stored=stored)


def _run_parts(parts: list[_Part], device: str) -> Prepared:
    """The call of all parts, whose results are [tokens, ...], the sums of their times, and their facts."""
    workspace = _workspace(device)
    planned = [_planned(part.plan, workspace) for part in parts]
    places = [None if part.rows is None else _place(part.rows, device) for part in parts]

    def run(q: Tensor, *keys: object, **options: object) -> list[Tensor]:
        whole: list[Tensor] = []
        for part, place in zip(planned, places, strict=True):
            result = part.call(q if place is None else q[place], *keys, **options)
            several = list(result) if isinstance(result, tuple) else [result]
            if place is None:
                return several
            whole = whole or [each.new_empty(len(q), *each.shape[1:]) for each in several]
            for to, each in zip(whole, several, strict=True):
                to[place] = each
        return whole

    seconds = {name: sum(prepared.seconds[name] for prepared in planned) for name in ("compile", "plan")}
    facts = {name: value for prepared in planned for name, value in prepared.facts.items()}
    names = " and ".join(part.plan.wrapper for part in parts)
    return Prepared(call=run, seconds=seconds, facts=facts | {"wrapper": names})


def _place(rows: NDArray[np.intp], device: str) -> slice | Tensor:
    """Rows that follow each other are a view, others are gathered."""
    import torch

    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows).to(device)


def prepare_latent(case: Case, device: str) -> Prepared:
    """Plan, and call `run` with the products of q and out with the matrices around it."""
    problem = case.problem
    prepared = _planned(latent_plan(problem), _workspace(device))
    weights = latent.Matrices(*(matrix.to(device) for matrix in latent.matrices(problem)))
    rank = weights.of_values.shape[1]

    def call(q: Tensor, cache: Tensor, _: Tensor) -> Tensor:
        pages = cache[:, :, 0] if problem.page_size else cache.flatten(0, 1)
        rows = latent.absorb(weights, q.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        out = prepared.call(rows[..., :rank], rows[..., rank:], pages[..., :rank], pages[..., rank:])
        return latent.project(weights, out.view(*q.shape[:3], rank).transpose(1, 2)).transpose(1, 2)

    flops = cost.flops(latent.absorbed(problem), Mode.FWD) + latent.product_flops(problem, problem.tokens_q)
    stored = partial(paged, problem) if problem.page_size else None
    return replace(prepared, call=call, facts=prepared.facts | {"executed_flops": flops}, stored=stored)


def scratch_bytes(case: Case) -> int:
    """The workspace, the tables of the plans, two lse; out of the second level; q and out in the latent space."""
    problem = case.problem
    total = WORKSPACE_BYTES + 2 * PLAN_BYTES + 8 * problem.heads * problem.tokens_q
    if problem.kv:
        inner = latent.absorbed(problem)
        width = 2 * inner.head_dim + inner.head_dim_v
        return total + problem.tokens_q * problem.heads * width * problem.dtype.bytes + latent.matrix_bytes(problem)
    mixed = problem.page_size and problem.seq_q > 1 and any(size.queries == 1 for size in problem.sizes)
    parts = case.backend == "flashinfer:cascade" or mixed  # outputs of one part beside those of all
    return total + (cost.output_bytes(problem, Mode.FWD) if parts else 0)


def _refuses(case: Case) -> list[str]:
    problem, reasons = case.problem, []
    if problem.head_dim not in HEAD_DIMS:
        reasons.append(f"head_dim {problem.head_dim} unsupported: use {', '.join(map(str, HEAD_DIMS))}")
    if problem.window and problem.window[1] and not problem.causal:
        reasons.append(f"mask {problem.mask} unsupported: a window needs causal, as causal+window:{problem.window[0]}")
    return reasons


def _refuses_in_cascade(case: Case) -> list[str]:
    problem = case.problem
    if not problem.shared_prefix:
        return ["no shared prefix: use --requests and --set shared_prefix=2k:8"]
    reasons = _refuses(case)
    if not problem.page_size:
        reasons.append("it reads a prefix from pages: use --set page_size=16")
    elif not prefix_starts(problem):
        reasons.append(
            "a request without the prefix, or groups with gaps or unlike prefixes, unsupported: use sdpa:cascade"
        )
    return reasons


def _refuses_latent(case: Case) -> list[str]:
    cache = case.problem.latent
    if not cache:
        return ["only a latent cache: use flashinfer"]
    return [] if cache == LATENT else [f"kv={case.problem.kv} unsupported: use kv=latent:{LATENT[0]}+{LATENT[1]}"]


def probe(device: str) -> str | None:
    """Plan and run 64 tokens."""

    def run() -> None:
        import torch

        case = Case(problem=Problem(seq_q=64, heads=1, dtype=Dtype.FP16), backend="flashinfer")
        tokens = torch.zeros(1, 64, 1, 64, dtype=torch.float16, device=device)
        prepare(case, device).call(tokens, tokens, tokens)

    return failure(run)


_SHAPES = frozenset({"causal", "requests", "paged", "gqa", "cross", "scale"})


def _backend(
    name: str, summary: str, features: frozenset[str], prepare: Callable[[Case, str], Prepared],
    refuses: Callable[[Case], list[str]],
) -> Backend:  # fmt: skip
    limits = Limits(dtypes=HALVES, features=_SHAPES | features, modes=frozenset({Mode.FWD}), capability=(8, 0))
    return Backend(
        name=name,
        summary=summary,
        limits={"cuda": limits},
        prepare=prepare,
        scratch_bytes=scratch_bytes,
        requires=("flashinfer",),
        install="pip install flashinfer-python",
        layout=Layout.BSHD,
        probe=probe,
        refuses=refuses,
    )


_ALL = (
    _backend(
        "flashinfer", "flashinfer, batch prefill or decode over packed keys or pages, forward",
        frozenset({"window", "softcap", "lse", "empty"}), prepare, _refuses,
    ),
    _backend(
        "flashinfer:mla", "flashinfer, absorbed queries over a latent cache, forward",
        frozenset({"latent", "head_dim_v", "empty"}), prepare_latent, _refuses_latent,
    ),
    _backend(
        "flashinfer:cascade", "flashinfer, a shared prefix once for all its requests, forward",
        frozenset({"softcap"}), prepare, _refuses_in_cascade,
    ),
)  # fmt: skip
BACKENDS = {backend.name: backend for backend in _ALL}
