"""What stands round any backend within the timed call: projections and layers, and q and k turned beforehand.

A backend is given the core problem (`Problem.core`), and says yes or no to that alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from attnbench.attention import formula, scopes
from attnbench.attention.inputs import torch_dtype
from attnbench.attention.problem import Autocast, KvDtype, Problem
from attnbench.backends import Backend, Layout, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor


def prepare(backend: Backend, case: Case, device: str) -> Prepared:
    """The backend made ready for the core, and the call that holds what stands round it."""
    import torch

    turned = _turned(backend, case, device)
    problem = case.problem
    if problem.scope == "core":
        return turned
    dtype, flip = torch_dtype(problem.dtype), backend.layout is Layout.BSHD
    given = {name: matrix.to(device, dtype) for name, matrix in scopes.matrices(problem)}
    if case.mode.needs_grad:
        given = {name: matrix.requires_grad_() for name, matrix in given.items()}
    inner = scopes.self_attention(problem)
    second = None if inner is None else _turned(backend, replace(case, problem=inner), device)
    core = _seen_by_heads(turned, flip)
    own = None if second is None else _seen_by_heads(second, flip)

    def within(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if flip:
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        out = scopes.around(problem, given, core, own, q, k, v)
        return out.transpose(1, 2) if flip else out

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if problem.autocast is Autocast.NONE:
            return within(q, k, v)
        with torch.autocast(torch.device(device).type, torch_dtype(problem.working)):
            return within(q, k, v).to(q.dtype)

    return replace(turned, call=call, weights=tuple(given.values()))


def _seen_by_heads(prepared: Prepared, flip: bool) -> scopes.Attend:
    """The call with [batch, heads, seq, width] in and out, whatever the backend's layout."""
    if not flip:
        return prepared.call
    return lambda *qkv: prepared.call(*(tensor.transpose(1, 2) for tensor in qkv)).transpose(1, 2)


def _turned(backend: Backend, case: Case, device: str) -> Prepared:
    problem = case.problem
    prepared = backend.prepare(replace(case, problem=problem.core), device)
    if problem.kv_dtype is not KvDtype.SAME:
        said = f"{problem.kv_dtype} simulated: read back as {problem.working} before the call"
        prepared = replace(prepared, facts={**prepared.facts, "kv": said})
    if not (words := _words(problem)):
        return prepared
    inner, heads_last = prepared.call, backend.layout is Layout.BSHD

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k = formula.turned(problem, q, k, heads_last=heads_last)
        return inner(q, k, v)

    return replace(prepared, call=call, facts={**prepared.facts, "turned": words})


def _words(problem: Problem) -> str:
    """What turns q and k, for people; empty: nothing does."""
    similarity = problem.score.similarity
    words = [problem.positions.value, "" if similarity is problem.core.score.similarity else similarity.value]
    return ", ".join(word for word in words if word not in ("none", ""))
