"""The ranking of backends for a shape, from the measured problems that are nearest to it.

Distances are in octaves: a factor of two in one of batch, heads, query heads per key head, lengths and head dims is 1.
Between measured problems the logarithms of relative times follow a linear law of the logarithms of the sizes, fitted to
the problems around the shape: the choice changes where two backends are equally fast, and not half-way between two
measurements. The constants were chosen by `python -m tools.dispatch_check`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from attnbench.analysis.readings import Floats
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.studies.dispatch_table import Choice

MAX_OCTAVES = 4.0  # a farther problem says nothing about a shape
REACH = 1.5  # a backend must have run in all problems up to this multiple of the least distance
NEIGHBOURS = 7  # problems to which the law is fitted, and those that are as near as the last of them
MIN_OCTAVES = 0.3  # a nearer problem weighs no more
RIDGE = 0.03  # on the slopes, which few problems do not determine
MAX_BEYOND = 1.0  # octaves beyond the measured sizes to which the law is extrapolated
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
    nearest = measured[distances.index(least)]
    around = [each for each, octaves in zip(measured, distances, strict=True) if octaves <= REACH * least]
    # A backend that is missing beside one of them was refused or failed there: it might be here.
    shared = set(nearest.ranking).intersection(*(each.ranking for each in around)) or set(nearest.ranking)
    names = sorted(shared)
    logs = dict(zip(names, _expected(measured, here, names) if least else _mean(around, names), strict=True))
    fastest = min(logs.values())
    ordered = sorted(logs, key=lambda name: (logs[name], name))
    return Ranking({name: math.exp(logs[name] - fastest) for name in ordered}, nearest.problem, least)


def _logs(problems: Sequence[MeasuredProblem], names: Sequence[str]) -> Floats:
    """The logarithms of the times of these backends over the fastest, [problems, backends]."""
    return np.log([[each.ranking[name] for name in names] for each in problems])


def _mean(problems: Sequence[MeasuredProblem], names: Sequence[str]) -> Floats:
    """Of problems of one place, of which those count that have every backend."""
    mean: Floats = _logs([each for each in problems if each.ranking.keys() >= set(names)], names).mean(axis=0)
    return mean


def _expected(measured: Sequence[MeasuredProblem], here: Sequence[float], names: Sequence[str]) -> Floats:
    """The logarithms at a place, by ridge regression over the nearest problems that have every backend."""
    problems = [each for each in measured if each.ranking.keys() >= set(names)]
    places = np.array([each.place for each in problems])
    place = np.clip(here, places.min(axis=0) - MAX_BEYOND, places.max(axis=0) + MAX_BEYOND)
    octaves = np.linalg.norm(places - place, axis=1)
    near = octaves <= np.sort(octaves)[min(NEIGHBOURS, len(octaves)) - 1] * (1 + 1e-9)
    weights = np.maximum(octaves[near], MIN_OCTAVES) ** -2.0
    design = np.column_stack([np.ones(near.sum()), places[near] - place])
    weighted = design.T * weights
    ridge = RIDGE * np.diag([0.0, *np.ones(len(place))])
    logs = _logs([each for each, taken in zip(problems, near, strict=True) if taken], names)
    at_place: Floats = np.linalg.solve(weighted @ design + ridge, weighted @ logs)[0]
    return at_place
