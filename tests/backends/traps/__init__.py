"""Traps of CPU libraries: marks of their tests, and the backends on inputs of the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attnbench.attention.problem import Problem
from attnbench.backends import Layout, load
from attnbench.engine import interpreters
from attnbench.records.case import Case
from tests import oracle

TESTED: set[tuple[str, str]] = set()
Test = Callable[..., None]
CROSS = Problem(seq_q=20, seq_kv=50, heads=2, mask="causal")
SQUARE = Problem(seq_q=64, heads=2)
DECODE = Problem(seq_q=1, seq_kv=77, heads=4, kv_heads=2, batch=2, mask="causal")


def trap(name: str, start: str) -> Callable[[Test], Test]:
    """Marks the test of the trap of that backend whose text starts so."""
    [text] = [text for text in load(name).traps if text.startswith(start)]
    TESTED.add((name, text))
    reason = missing(name)
    return pytest.mark.skipif(bool(reason), reason=reason)


def missing(name: str) -> str:
    """Why that backend cannot be tested here; empty if it can."""
    absent = interpreters.missing(load(name))
    return f"{', '.join(absent)} not installed: make venv-cpu" if absent else ""


def computed(name: str, problem: Problem, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """out [batch, heads, seq_q, width] of a backend and of the oracle; inputs are not changed."""
    for module in load(name).requires:
        __import__(module)
    prepared = load(name).prepare(Case(problem=problem, backend=name), "cpu")
    drawn = [tensor.to(dtype) for tensor in oracle.drawn(problem)[0]]
    flip = load(name).layout is Layout.BSHD
    placed = [tensor.transpose(1, 2).contiguous() if flip else tensor.clone() for tensor in drawn]
    for place, store in ((1, prepared.stored), (2, prepared.stored_v or prepared.stored)):
        if store:
            placed[place] = store(drawn[place])
    before = [tensor.clone() for tensor in placed]
    out = prepared.call(*placed)
    assert all(map(torch.equal, placed, before))
    return (out.transpose(1, 2) if flip else out), oracle.attend(problem, *drawn)[0]


def off(name: str, problem: Problem) -> float:
    """The largest error of a backend."""
    out, expected = computed(name, problem)
    return float((out.double() - expected).abs().max())


def difference(out: torch.Tensor, problem: Problem) -> float:
    return float((out.double() - oracle.attend(problem, *oracle.drawn(problem)[0])[0]).abs().max())
