"""Positions, normalisation, projections and batches of requests around a backend, within the timed call.

A backend gets the core problem (`Problem.core`), and its objections concern that alone.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from attnbench.attention import layouts, logits, scopes
from attnbench.attention.choices import Autocast, KvDtype, Returns
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, Layout, Output, Prepared
from attnbench.records.case import Case

if TYPE_CHECKING:
    from torch import Tensor


def prepare(backend: Backend, case: Case, device: str) -> Prepared:
    """Prepare the backend for the core problem, and the call that applies everything else around it."""
    import torch

    positioned = _positioned(backend, case, device)
    problem = case.problem
    if problem.scope == "core":
        return positioned
    dtype, flip = torch_dtype(problem.dtype), backend.layout is Layout.BSHD
    matrices = {name: matrix.to(device, dtype) for name, matrix in scopes.matrices(problem)}
    if case.mode.needs_grad:
        matrices = {name: matrix.requires_grad_() for name, matrix in matrices.items()}
    inner = scopes.self_attention(problem)
    second = None if inner is None else _positioned(backend, replace(case, problem=inner), device)
    core = _heads_first(positioned, flip)
    self_attend = None if second is None else _heads_first(second, flip)

    def apply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if flip:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = scopes.apply(problem, matrices, core, self_attend, q, k, v)
        return out.transpose(1, 2) if flip else out

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if problem.autocast is Autocast.NONE:
            return apply(q, k, v)
        with torch.autocast(torch.device(device).type, torch_dtype(problem.working_dtype)):
            return apply(q, k, v).to(q.dtype)

    return replace(positioned, call=call, weights=tuple(matrices.values()))


def _heads_first(prepared: Prepared, flip: bool) -> scopes.Attend:
    """The call with [batch, heads, seq, width] in and out, whatever the backend's layout."""
    if not flip:
        return prepared.call
    return lambda *qkv: prepared.call(*(tensor.transpose(1, 2) for tensor in qkv)).transpose(1, 2)


def _positioned(backend: Backend, case: Case, device: str) -> Prepared:
    problem = case.problem
    core = replace(case, problem=problem.core)
    one_by_one = problem.requests and backend.by_request
    prepared = _by_request(backend, core, device) if one_by_one else backend.prepare(core, device)
    if problem.kv_dtype is not KvDtype.SAME:
        fact = f"{problem.kv_dtype} simulated: read back as {problem.working_dtype} before the call"
        prepared = replace(prepared, facts={**prepared.facts, "kv": fact})
    if prepared.stored and (problem.scope != "core" or _steps(problem)):  # k and v are results of the same call
        prepared = _storing(prepared, backend.layout is Layout.BSHD)
    if not (steps := _steps(problem)):
        return prepared
    inner, heads_last = prepared.call, backend.layout is Layout.BSHD

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        q, k = logits.positioned(problem, q, k, heads_last=heads_last)
        output: Output = inner(q, k, v)
        return output

    return replace(prepared, call=call, facts={**prepared.facts, "turned": steps})


def _storing(prepared: Prepared, heads_last: bool) -> Prepared:
    """The call that also writes k and v in the form in which the backend reads them."""
    store_k = prepared.stored
    store_v = prepared.stored_v or store_k
    assert store_k
    assert store_v

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        if heads_last:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        output: Output = prepared.call(q, store_k(k), store_v(v))
        return output

    return replace(prepared, call=call, stored=None, stored_v=None, library_cache=False)


def _by_request(backend: Backend, case: Case, device: str) -> Prepared:
    """A batch of requests computed one by one, each as a problem of its own: a loop in Python.

    The backend is prepared for every size of request; a call splits the packed tokens, or gathers keys from pages.
    """
    import torch

    problem = case.problem
    parts = [replace(part, page_size=0) for part in problem.parts]
    of_part = {part: backend.prepare(replace(case, problem=part), device) for part in dict.fromkeys(parts)}
    calls = [of_part[part].call for part in parts]
    rows, keys = map(list, zip(*problem.sizes, strict=True))
    where = torch.from_numpy(layouts.slots(problem)).to(device).split(keys) if problem.page_size else None

    def split(tensor: Tensor) -> Iterable[Tensor]:
        """k or v of each request with queries: gathered when its turn comes, so that those of one are in memory."""
        of_each = compress(tensor.split(keys, 2) if where is None else where, rows)
        return of_each if where is None else (layouts.packed_keys(tensor, places) for places in of_each)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Output:
        # Slices in place of a split would each have a gradient of the size of the whole tensor.
        outputs = list(map(operator.call, calls, compress(q.split(rows, 2), rows), split(k), split(v)))
        if not isinstance(outputs[0], tuple):
            return torch.cat(outputs, dim=2)
        outs, others = map(list, zip(*outputs, strict=True))
        if problem.returns is Returns.WEIGHTS:  # in one tensor: zero beyond the keys of a shorter request
            others = [torch.nn.functional.pad(each, (0, problem.seq_kv - each.shape[3])) for each in others]
        return torch.cat(outs, dim=2), torch.cat(others, dim=2)

    mask_build_s = sum(prepared.seconds.get("mask_build", 0.0) for prepared in of_part.values())
    return Prepared(
        call=call,
        seconds={"plan": mask_build_s} if mask_build_s else {},
        facts={"requests": "one by one", "calls_inside": len(calls)},
        stored=partial(layouts.paged, problem) if problem.page_size else None,
    )


def _steps(problem: Problem) -> str:
    """The names of the positions and the normalisation applied to q and k; empty: none."""
    similarity = problem.score.similarity
    steps = [problem.positions.value, "" if similarity is problem.core.score.similarity else similarity.value]
    return ", ".join(step for step in steps if step not in ("none", ""))
