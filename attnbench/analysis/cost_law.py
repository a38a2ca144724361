"""A law of time or memory, fitted to measured cases of one kind: a sum of work terms, corrected by shape.

The sum is fitted by non-negative least squares of the relative errors. What it leaves, in logarithms, is interpolated
over the logarithms of the sizes by radial basis functions with smoothing (Wahba, Spline Models for Observational Data,
1990). The form with the least leave-one-out error is taken; these errors follow from one matrix inverse (Rippa,
https://doi.org/10.1023/A:1018975909870). Their quantile is the interval: the jackknife of conformal prediction
(Barber et al., https://arxiv.org/abs/1905.02928).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from attnbench.analysis.workload import Workload

MIN_CASES = 5
CONFIDENCE = 0.9
MIN_MARGIN = 1.01  # no time repeats more exactly
TILES = (1, 16, 64, 128)  # lengths that a kernel may round up to
SMOOTHING = (1e-6, 0.03, 0.3, 3.0)  # squared noise over the squared change of an octave
_MANY = 16  # cases from which tiles are tried: the best of many forms fits a few cases by chance
_FOLDS = 10  # for which the sum of terms is fitted again
_CHUNK = 4096
_ON_THE_HULL = 0.05  # octaves; the visible share of a mask curves by less between measured lengths
_VISIBLE = -1  # the coordinate of the visible share
_BEYOND = 1.0  # octaves outside the measured sizes up to which the correction is continued

Floats = NDArray[np.float64]


class WorkSum(NamedTuple):
    """The physical part of a law: proportional to FLOPs if it has no factors, else a sum of terms."""

    tile: int
    factors: Floats  # empty: dense FLOPs

    def log(self, sizes: Floats) -> Floats:
        """The logarithm of the value at these workloads, one in a row."""
        if not len(self.factors):
            return np.log(sizes[:, Workload._fields.index("dense_flops")])
        logs: Floats = np.log(_terms(sizes, self.tile) @ self.factors)
        return logs


def coordinates(sizes: Floats) -> Floats:
    """Octaves of the sizes of workloads: sequences, heads of a key head, queries, keys, widths, visible share."""
    of = dict(zip(Workload._fields, sizes.T, strict=True))
    columns = (
        of["sequences"], of["sequences"] / of["kv_sequences"], of["queries"], of["keys"], of["head_dim"],
        of["head_dim_v"], np.maximum(of["flops"], 1) / of["dense_flops"],
    )  # fmt: skip
    octaves: Floats = np.log2(np.column_stack(columns))
    return octaves


def _terms(sizes: Floats, tile: int) -> Floats:
    """What the time is a sum of: a call, sequences, rows, bytes, pairs and FLOPs, dense and visible."""
    of = dict(zip(Workload._fields, sizes.T, strict=True))
    rows, columns = (np.ceil(of[name] / tile) * tile for name in ("queries", "keys"))
    padding = rows * columns / (of["queries"] * of["keys"])
    return np.column_stack((
        np.ones(len(sizes)), of["sequences"], of["sequences"] * rows, of["bytes"], of["pairs"] * padding,
        of["dense_flops"] * padding, of["pairs"] * of["flops"] / of["dense_flops"], of["flops"],
    ))  # fmt: skip


class _Shape:
    """The smooth correction over the sizes: radial basis functions -r, and a plane over those that vary."""

    def __init__(self, points: Floats, degree: int) -> None:
        self.low, self.high, self.centre = points.min(axis=0), points.max(axis=0), points.mean(axis=0)
        self.points = points
        _, spread, directions = np.linalg.svd(points - self.centre, full_matrices=False)
        self._plane = directions[spread > 1e-6 * max(spread[0], 1.0)].T if degree else np.zeros((points.shape[1], 0))

    @property
    def free(self) -> int:
        return 1 + self._plane.shape[1]

    def _tail(self, points: Floats) -> Floats:
        return np.column_stack((np.ones(len(points)), (points - self.centre) @ self._plane))

    def inverse(self, smoothing: float) -> Floats:
        """The inverse of the system whose solution are the weights of the functions and of the plane."""
        count, tail = len(self.points), self._tail(self.points)
        system = np.zeros((count + self.free, count + self.free))
        system[:count, :count] = smoothing * np.eye(count) - _distances(self.points, self.points)
        system[:count, count:], system[count:, :count] = tail, tail.T
        inverse: Floats = np.linalg.inv(system).astype(np.float64)
        return inverse

    def at(self, points: Floats, weights: Floats) -> Floats:
        """The correction at points; beyond an octave outside the measured sizes it stays as it is there."""
        inside = np.clip(points, self.low - _BEYOND, self.high + _BEYOND)
        count = len(self.points)
        values: Floats = self._tail(inside) @ weights[count:] - _distances(inside, self.points) @ weights[:count]
        return values


def _distances(points: Floats, others: Floats) -> Floats:
    from scipy.spatial.distance import cdist

    distances: Floats = cdist(points, others)
    return distances


class CostLaw:
    """A law fitted to measured cases; `sizes` has a row of Workload for each of `values`, which are above 0."""

    def __init__(self, sizes: Floats, values: Floats) -> None:
        fits = [fit for fit in _candidates(sizes, np.log(values)) if np.isfinite(fit[3]).all()]
        self._base, self._shape, self._weights, errors = min(fits, key=lambda fit: float(np.abs(fit[3]).mean()))
        self.errors: Floats = np.sort(np.abs(errors))  # of logarithms, each case predicted from the others

    def at(self, sizes: Floats) -> Floats:
        """The predicted values at workloads, one in a row."""
        parts = [sizes[start : start + _CHUNK] for start in range(0, len(sizes), _CHUNK)]
        logs = [self._base.log(part) + self._shape.at(coordinates(part), self._weights) for part in parts]
        return np.exp(np.concatenate(logs)) if logs else np.empty(0)

    def octaves_outside(self, workload: Workload) -> float:
        """How far a workload is from the convex hull of the measured ones: octaves of its farthest size, 0 inside.

        The visible share of a mask bends where a window begins to cut: it may lie beside the hull, between those of the
        nearest measured cases.
        """
        points, point = self._shape.points, coordinates(rows_of([workload]))[0]
        distance = _distance_to_hull(points, point)
        if distance <= _ON_THE_HULL or _between_neighbours(points, point):
            return 0.0
        return distance

    def covers(self, sizes: Floats) -> NDArray[np.bool_]:
        """Whether no size of a workload is more than an octave outside the measured ones."""
        points = coordinates(sizes)
        inside = (points >= self._shape.low - _BEYOND) & (points <= self._shape.high + _BEYOND)
        covered: NDArray[np.bool_] = inside.all(axis=1)
        return covered

    @property
    def margin(self) -> float:
        """The factor that bounds the interval of a new case from both sides."""
        count = len(self.errors)
        rank = min(math.ceil((count + 1) * CONFIDENCE), count)
        return max(math.exp(float(self.errors[rank - 1])), MIN_MARGIN)

    @property
    def confidence(self) -> float:
        """Of the interval: less than 90 % where fewer than nine cases were measured."""
        return min(CONFIDENCE, len(self.errors) / (len(self.errors) + 1))


def _distance_to_hull(points: Floats, point: Floats) -> float:
    """Octaves of the farthest size between a point and the convex hull of the others."""
    from scipy.optimize import linprog

    count, width = points.shape
    bounds = np.hstack((np.vstack((points.T, -points.T)), -np.ones((2 * width, 1))))
    solved = linprog(
        np.append(np.zeros(count), 1.0), A_ub=bounds, b_ub=np.concatenate((point, -point)),
        A_eq=np.append(np.ones(count), 0.0)[None, :], b_eq=[1.0],
    )  # fmt: skip
    return float(solved.fun)


def _between_neighbours(points: Floats, point: Floats) -> bool:
    """Whether the visible share is between those of the nearest points that surround the other sizes."""
    from scipy.optimize import linprog

    sizes, size = points[:, :_VISIBLE], point[:_VISIBLE]
    # The mean that makes up the point with the least squared distances has its neighbours alone: a Delaunay simplex.
    solved = linprog(
        np.square(sizes - size).sum(axis=1), A_ub=np.vstack((sizes.T, -sizes.T)),
        b_ub=np.concatenate((size, -size)) + _ON_THE_HULL, A_eq=np.ones((1, len(points))), b_eq=[1.0],
    )  # fmt: skip
    if solved.x is None:
        return False
    shares = points[solved.x > 1e-9, _VISIBLE]
    return bool(shares.min() - _ON_THE_HULL <= point[_VISIBLE] <= shares.max() + _ON_THE_HULL)


Fit = tuple[WorkSum, _Shape, Floats, Floats]  # and the leave-one-out errors


def _candidates(sizes: Floats, logs: Floats) -> Iterator[Fit]:
    points = coordinates(sizes)
    shapes = [shape for degree in (0, 1) if (shape := _Shape(points, degree)).free + 2 <= len(logs) or not degree]
    inverses = [(shape, shape.inverse(smoothing)) for shape in shapes for smoothing in SMOOTHING]
    for base, left in _bases(sizes, logs):
        residual = logs - base.log(sizes)
        for shape, inverse in inverses:
            square = inverse[: len(logs), : len(logs)]
            with np.errstate(divide="ignore", invalid="ignore"):  # a case without which the plane is undetermined
                errors = (square * left).sum(axis=1) / np.diag(square)
            yield base, shape, inverse[:, : len(logs)] @ residual, errors


def _bases(sizes: Floats, logs: Floats) -> Iterator[tuple[WorkSum, Floats]]:
    """Each base with what it leaves; a row has the logarithms left by the base that was fitted without that case."""
    count = len(logs)
    proportional = WorkSum(1, np.empty(0))
    yield proportional, np.tile(logs - proportional.log(sizes), (count, 1))
    folds = np.arange(count) % min(_FOLDS, count)
    for tile in TILES if count >= _MANY else TILES[:1]:
        left = np.empty((count, count))
        for fold in range(folds.max() + 1):
            others = folds != fold
            left[~others] = logs - _summed(sizes[others], logs[others], tile).log(sizes)
        yield _summed(sizes, logs, tile), left


def _summed(sizes: Floats, logs: Floats, tile: int) -> WorkSum:
    """The sum of terms with the least relative errors, no term below zero."""
    from scipy.optimize import nnls

    relative = _terms(sizes, tile) * np.exp(-logs)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    factors, _ = nnls(relative / scale, np.ones(len(logs)))
    return WorkSum(tile, factors / scale)


def rows_of(workloads: Sequence[Workload]) -> Floats:
    """Workloads as an array, one in a row."""
    numbers = np.fromiter(itertools.chain.from_iterable(workloads), np.float64)
    return numbers.reshape(len(workloads), len(Workload._fields))
