"""What stands round any backend within the timed call: q and k turned first, by positions, cosine or bilinear scores.

A backend is given the core problem (`Problem.core`), and says yes or no to that alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from attnbench.attention import formula
from attnbench.attention.problem import Problem
from attnbench.backends import Backend, Layout, Prepared
from attnbench.case import Case

if TYPE_CHECKING:
    from torch import Tensor


def prepare(backend: Backend, case: Case, device: str) -> Prepared:
    """The backend made ready for the core, and the call that holds what stands round it."""
    problem, core = case.problem, case.problem.core
    prepared = backend.prepare(replace(case, problem=core), device)
    if core == problem:
        return prepared
    inner, heads_last = prepared.call, backend.layout is Layout.BSHD

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k = formula.turned(problem, q, k, heads_last=heads_last)
        return inner(q, k, v)

    return replace(prepared, call=call, facts={**prepared.facts, "turned": _turned(problem)})


def _turned(problem: Problem) -> str:
    words = [problem.positions.value, problem.score.similarity.value]
    return ", ".join(word for word in words if word not in ("none", "dot"))
