"""The ranking of backends for a shape, from the measured problems that are nearest to it.

Distances are in octaves: a factor of two in one of batch, heads, query heads per key head, lengths and head dims is 1.
Between measured problems the logarithms of relative times are averaged by inverse squared distance, so that the choice
changes where two backends are equally fast, and not half-way between two measurements.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.studies.dispatch_table import Choice

MAX_OCTAVES = 4.0  # a farther problem says nothing about a shape
REACH = 1.5  # problems up to this multiple of the least distance count
SHAPE = ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "head_dim_v")


class CallKind(NamedTuple):
    """What a measured problem must share with a call."""

    device: str  # as the table has it
    dtype: str
    mask: str
    mode: str


class MeasuredProblem(NamedTuple):
    """One problem of a table."""

    problem: str  # as text
    place: tuple[float, ...]  # in octaves
    ranking: dict[str, float]  # the time of each backend over the fastest


class Ranking(NamedTuple):
    """The backends for a shape, the fastest first, with their expected times over it."""

    backends: dict[str, float]
    nearest: str  # the nearest measured problem
    octaves: float  # to it


Index = dict[CallKind, list[MeasuredProblem]]


def index(choices: Iterable[Choice]) -> Index:
    """The problems of a table that are calls of q, k and v alone."""
    measured: Index = {}
    for choice in choices:
        if choice.ranking and (problem := plain(choice.axes)):
            kind = CallKind(choice.device, problem.dtype, problem.mask, choice.mode)
            ranking = {each.backend: each.over for each in choice.ranking}
            measured.setdefault(kind, []).append(MeasuredProblem(choice.problem, _place(problem), ranking))
    return measured


def plain(problem: Problem) -> Problem | None:
    """The problem if it is dense or causal and nothing else, else None; a single causal query sees every key."""
    shape = {name: getattr(problem, name) for name in SHAPE}
    call = Problem(**shape, dtype=problem.dtype, mask=problem.mask, score=Score(scale=problem.score.scale))
    if call != problem or problem.mask not in ("none", "causal"):
        return None
    return replace(problem, mask="none") if problem.seq_q == 1 else problem


def _place(problem: Problem) -> tuple[float, ...]:
    shared = problem.heads // problem.kv_heads
    sizes = (problem.batch, problem.heads, shared, problem.seq_q, problem.seq_kv, problem.head_dim, problem.head_dim_v)
    return tuple(map(math.log2, sizes))


def rank(measured: Sequence[MeasuredProblem], problem: Problem) -> Ranking | None:
    """The ranking for a problem of the same kind; None if no measured one is near."""
    here = _place(problem)
    distances = [math.dist(here, each.place) for each in measured]
    least = min(distances, default=math.inf)
    if least > MAX_OCTAVES:
        return None
    near = [(each, octaves) for each, octaves in zip(measured, distances, strict=True) if octaves <= REACH * least]
    nearest = measured[distances.index(least)]
    # A backend that is missing beside one of them was refused or failed there: it might be here.
    shared = set(nearest.ranking).intersection(*(each.ranking for each, _ in near))
    if not shared:
        near, shared = [(nearest, least)], set(nearest.ranking)
    weights = [octaves**-2 if octaves else 1.0 for _, octaves in near]
    logs = {name: _mean([math.log(each.ranking[name]) for each, _ in near], weights) for name in shared}
    fastest = min(logs.values())
    ordered = sorted(logs, key=lambda name: (logs[name], name))
    return Ranking({name: math.exp(logs[name] - fastest) for name in ordered}, nearest.problem, least)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)
