"""How much slower each node is than the others of its hardware, over the cases that they share.

The logarithm of a time is that of its case plus that of its node. Both are fitted by medians and trimmed means, so that
neither a slow node nor an unusual case moves the others.
"""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from attnbench.analysis.readings import Floats
from attnbench.analysis.stats import CONFIDENCE, t_quantile

TRIMMED = 0.2  # share of the cases that is left out at either end
MIN_CASES = 5  # with fewer there is no interval
STEPS = 20  # of the fit

Times = Mapping[str, Mapping[str, Mapping[str, float]]]  # node -> case -> restart -> seconds


class NodeEffect(NamedTuple):
    """The logarithm of a node's times over those of the others, with an interval that holds for all nodes at once."""

    log: float
    low: float
    high: float
    cases: int
    restarts: int


def node_effects(times: Times) -> dict[str, NodeEffect]:
    """The effect of each node that shares cases with another: relative to the median node, of two to the other one.

    The interval covers how far cases differ and, where there are several restarts, how far these do.
    """
    shared = _shared(times)
    nodes = list(shared)
    if len(nodes) < 2:
        return {}
    cases = sorted({case for of_node in shared.values() for case in of_node})
    logs = np.array([[_mean_log(shared[node].get(case)) for case in cases] for node in nodes])
    levels, effects = _fitted(logs)
    between, freedom = _restart_variance(shared, dict(zip(cases, levels.tolist(), strict=True)))
    two = len(nodes) == 2
    confidence = 1 - (1 - CONFIDENCE) / (1 if two else len(nodes))
    result = {}
    for number, node in enumerate(nodes):
        others = np.delete(logs - (0.0 if two else effects[:, None]), number, axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a case that no other node has is left out below
            differences = logs[number] - np.nanmedian(others, axis=0)
        values = differences[np.isfinite(differences)]
        restarts = _restarts(shared[node])
        counted = nodes if two else [node]  # the difference of two nodes has the restarts of both
        of_restarts = between * sum(1 / len(_restarts(shared[each])) for each in counted)
        # The median of many nodes varies as well, by pi / 2 n of the variance of one.
        factor = 1.0 if two else 1 + math.pi / 2 / len(nodes)
        low, high = _interval(values, factor, of_restarts, freedom, confidence)
        result[node] = NodeEffect(trimmed_mean(values), low, high, len(values), len(restarts))
    return result


def trimmed_mean(values: Floats) -> float:
    """The mean without the lowest and the highest fifth."""
    cut = int(TRIMMED * len(values))
    return float(np.mean(np.sort(values)[cut : len(values) - cut]))


def _shared(times: Times) -> dict[str, dict[str, Mapping[str, float]]]:
    """The cases that at least two nodes have, by node; nodes without any are left out."""
    counts: dict[str, int] = {}
    for of_node in times.values():
        for case in of_node:
            counts[case] = counts.get(case, 0) + 1
    shared = {
        node: {case: restarts for case, restarts in of_node.items() if counts[case] > 1}
        for node, of_node in times.items()
    }
    return {node: of_node for node, of_node in shared.items() if of_node}


def _restarts(of_node: Mapping[str, Mapping[str, float]]) -> list[str]:
    return sorted({restart for of_case in of_node.values() for restart in of_case})


def _mean_log(restarts: Mapping[str, float] | None) -> float:
    return sum(math.log(seconds) for seconds in restarts.values()) / len(restarts) if restarts else math.nan


def _fitted(logs: Floats) -> tuple[Floats, Floats]:
    """The level of each case, the median over nodes without their effects; and the effect of each node, median 0."""
    effects, levels = np.zeros(len(logs)), np.zeros(logs.shape[1])
    for _ in range(STEPS):
        levels = np.nanmedian(logs - effects[:, None], axis=0)
        effects = np.array([trimmed_mean(row[np.isfinite(row)]) for row in logs - levels])
        effects -= np.median(effects)
    return levels, effects


def _winsorised_variance(values: Floats) -> tuple[float, int]:
    """The variance of the trimmed mean of the values, and its degrees of freedom (Tukey and McLaughlin)."""
    count, cut = len(values), int(TRIMMED * len(values))
    ordered = np.sort(values)
    pulled = np.clip(values, ordered[cut], ordered[count - cut - 1])
    return float(np.var(pulled, ddof=1)) / ((1 - 2 * TRIMMED) ** 2 * count), count - 2 * cut - 1


def _restart_variance(times: Times, levels: Mapping[str, float]) -> tuple[float, int]:
    """The variance of the restarts of a node, pooled over nodes, and its degrees of freedom; 0 without a second one."""
    squares, freedom = 0.0, 0
    for of_node in times.values():
        means = []
        for restart in _restarts(of_node):
            rest = [math.log(each[restart]) - levels[case] for case, each in of_node.items() if restart in each]
            means += [trimmed_mean(np.array(rest))] if len(rest) >= MIN_CASES else []
        if len(means) > 1:
            squares += float(np.var(means)) * len(means)
            freedom += len(means) - 1
    return (squares / freedom, freedom) if freedom else (0.0, 0)


def _interval(
    values: Floats, factor: float, of_restarts: float, freedom: int, confidence: float
) -> tuple[float, float]:
    """The ends of the interval of the trimmed mean; infinite for too few cases."""
    if len(values) < MIN_CASES:
        return -math.inf, math.inf
    middle = trimmed_mean(values)
    of_cases, freedom_of_cases = _winsorised_variance(values)
    total = of_cases + of_restarts
    if not total:
        return middle, middle
    # Welch and Satterthwaite: the degrees of freedom of a sum of two variances.
    parts = of_cases**2 / freedom_of_cases + (of_restarts**2 / freedom if freedom else 0.0)
    half = t_quantile(total**2 / parts, confidence) * math.sqrt(factor * total)
    return middle - half, middle + half
