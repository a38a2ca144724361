"""Time and memory of cases that were not measured, from laws fitted to a stored run, with 90 % intervals.

On a device without measurements only its ceilings are known: the time is that of its roofline bound at the share of the
bound that the backend reaches on the measured device.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache, cached_property

import msgspec
import numpy as np

from attnbench import backends
from attnbench.analysis.cost_law import MIN_CASES, CostLaw, coordinates, rows_of
from attnbench.analysis.roofline import roofline_bound
from attnbench.analysis.rows import Row, problem_of
from attnbench.analysis.workload import Workload, kind_of, of_backend
from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine.case_command import case_command
from attnbench.records.case import Case, problem_label
from attnbench.records.ceilings import Ceilings
from attnbench.suite import Cell
from attnbench.suite.keys import options_of
from attnbench.units import counted, figure, seconds

MAX_OCTAVES = 1.0  # outside the measured sizes, without --extrapolate
_ROUNDING = 1e-6
MAX_CASES = 500  # that a law is fitted to: of more, as many drawn
NEAREST = 3  # measured cases that are named
_SIMILAR = 20  # nearest cases whose shares of the roofline are transferred
_EXACT = 0.02  # of measured memory, within which the formula of the backend is taken as exact


class Source(StrEnum):
    """What a prediction is based on."""

    MEASURED = "measured"  # this very case
    LAW = "law"
    FORMULA = "formula"  # of the backend, exact in every measured case
    UNCHECKED = "formula, not checked"  # too few cases with measured memory
    ROOFLINE = "the roofline alone"
    NONE = ""


class PredictedValue(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted time or memory, with the interval of `confidence`, 0 where none is claimed."""

    value: float
    low: float
    high: float
    confidence: float
    source: Source
    cases: int = 0  # that the law is fitted to


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What is predicted of one case on one arm, or why nothing is."""

    case_id: str
    problem: str
    arm: str
    device: str
    mode: str
    time: PredictedValue | None = None
    memory: PredictedValue | None = None  # of a call beyond its inputs
    octaves_outside: float = 0.0  # of the measured sizes
    nearest: tuple[str, ...] = ()  # measured cases, the most similar first
    reason: str = ""  # why nothing is predicted
    measure: str = ""  # the command that measures it


class Family:
    """The measured cases of one arm, dtype, mode and kind of problem, and the laws fitted to them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.problems = [problem_of(row) for row in self.rows]
        pairs = zip(self.rows, self.problems, strict=True)
        self.sizes = [of_backend(problem, row.mode, row.backend) for row, problem in pairs]
        count = len(self.rows)
        self._fitted = sorted(random.Random(0).sample(range(count), min(count, MAX_CASES)))

    @cached_property
    def time(self) -> CostLaw:
        sizes = [self.sizes[place] for place in self._fitted]
        return CostLaw(rows_of(sizes), np.array([self.rows[place].seconds for place in self._fitted]))

    @cached_property
    def memory(self) -> CostLaw | Source:
        """The law of the memory; or that the formula of the backend is exact, or was not checked."""
        known = [place for place in self._fitted if self.rows[place].total_bytes]
        measured = np.array([self.rows[place].total_bytes for place in known])
        if len(known) < MIN_CASES:
            return Source.UNCHECKED
        if _has_formula(self.rows[0].backend):
            problems = ((self.problems[place], self.rows[place]) for place in known)
            formula = np.array([_formula_bytes(problem, row.mode, row.backend) for problem, row in problems])
            if np.all(np.abs(measured / np.maximum(formula, 1) - 1) <= _EXACT):
                return Source.FORMULA
        return CostLaw(rows_of([self.sizes[place] for place in known]), measured)

    def measured(self, problem: Problem) -> Row | None:
        """The measured case of this very problem."""
        return next((row for row, each in zip(self.rows, self.problems, strict=True) if each == problem), None)

    def nearest(self, sizes: Workload, count: int) -> list[Row]:
        """The measured cases of the most similar sizes, the most similar first."""
        points, point = coordinates(rows_of(self.sizes)), coordinates(rows_of([sizes]))
        order = np.abs(points - point).sum(axis=1).argsort(kind="stable")
        return [self.rows[place] for place in order[:count]]


class Predictor:
    """Predicts cases from the rows of a run; `ceilings` are those of its devices."""

    def __init__(self, rows: Iterable[Row], ceilings: Mapping[str, Ceilings] | None = None) -> None:
        self._ceilings = ceilings or {}
        groups: dict[tuple[str, str, Mode, str], list[Row]] = {}
        self.arms: dict[str, Row] = {}  # one row of each arm that was measured
        for row in rows:
            if row.time_s and not row.impossible:
                self.arms.setdefault(row.arm, row)
                groups.setdefault((row.arm, row.dtype, row.mode, kind_of(problem_of(row))), []).append(row)
        self.families = {key: Family(of_family) for key, of_family in groups.items()}

    def predict(self, cell: Cell, arm: Row, *, target: Ceilings | None = None, extrapolate: bool = False) -> Prediction:
        """One case on the arm of that row; `target`: on a device of which only the ceilings are known."""
        problem, mode = cell.problem, cell.mode
        case = Case(problem=problem, backend=arm.backend, mode=mode)
        device = target.device if target else arm.device
        empty = Prediction(
            case_id=case.id, problem=problem_label(problem, mode), arm=arm.arm_name, device=device, mode=mode.value
        )
        if objections := _objections(case, device):
            return msgspec.structs.replace(empty, reason=f"unsupported: {objections}")
        family = self.families.get((arm.arm, problem.dtype.value, mode, kind_of(problem)))
        measured = family.measured(problem) if family and not target else None
        if family and measured:
            return _shown(empty, family, case, measured)
        if reason := self._too_few(family, arm, problem, mode):
            return _refused(empty, cell, arm, reason)
        assert family is not None
        sizes = of_backend(problem, mode, arm.backend)
        octaves = family.time.octaves_outside(sizes)
        near = [_named(row) for row in family.nearest(sizes, NEAREST)]
        known = msgspec.structs.replace(empty, octaves_outside=octaves, nearest=tuple(near))
        if octaves > MAX_OCTAVES + _ROUNDING and not extrapolate:
            return _refused(known, cell, arm, _outside(family, sizes, octaves))
        if not target:
            time = _from_law(family.time, sizes, octaves)
        elif (transferred := self._transferred(family, cell, arm, sizes, target)) is None:
            here = f"attnbench calibrate --device {arm.device}"
            reason = f"the roofline needs the ceilings of {arm.device} ({here}) and of {target.device}"
            return msgspec.structs.replace(known, reason=reason)
        else:
            time = transferred
        return msgspec.structs.replace(known, time=time, memory=_memory(family, case, sizes, octaves))

    def _too_few(self, family: Family | None, arm: Row, problem: Problem, mode: Mode) -> str:
        """Why no law can be fitted for such a case; empty if one can."""
        if family and len(family.rows) >= MIN_CASES:
            return ""
        what = f"{problem.dtype.value} {mode.value} {kind_of(problem)}"
        if family:
            return f"{counted(len(family.rows), 'measured case')} of {what}: a law needs {MIN_CASES}"
        others = [f"{dtype} {mode} {kind}" for name, dtype, mode, kind in self.families if name == arm.arm]
        return f"no measured case of {what}: the run has {', '.join(others)}"

    def _transferred(
        self, family: Family, cell: Cell, arm: Row, sizes: Workload, target: Ceilings
    ) -> PredictedValue | None:
        """The bound on the other device over the shares of the bound that similar cases reach here."""
        here = self._ceilings.get(arm.device)
        least = roofline_bound(target, cell.problem, cell.mode)
        similar = family.nearest(sizes, _SIMILAR)
        bounds = [roofline_bound(here, problem_of(row), row.mode) for row in similar] if here else []
        shares = [bound.seconds / row.seconds for bound, row in zip(bounds, similar, strict=False) if bound]
        if not shares or least is None:
            return None
        value, high = least.seconds / float(np.median(shares)), least.seconds / min(shares)
        low = min(least.seconds, value)
        return PredictedValue(
            value=value, low=low, high=high, confidence=0.0, source=Source.ROOFLINE, cases=len(shares)
        )


def _shown(empty: Prediction, family: Family, case: Case, row: Row) -> Prediction:
    """A measured case with its own interval, which needs no law."""
    sizes = of_backend(case.problem, case.mode, case.backend)
    low, high = row.time_low_s or row.seconds, row.time_high_s or row.seconds
    time = PredictedValue(value=row.seconds, low=low, high=high, confidence=0.95, source=Source.MEASURED, cases=1)
    near = tuple(_named(each) for each in family.nearest(sizes, NEAREST))
    peak = float(row.total_bytes or 0)
    known = PredictedValue(value=peak, low=peak, high=peak, confidence=0.0, source=Source.MEASURED, cases=1)
    memory = known if peak else _memory(family, case, sizes, 0.0)
    return msgspec.structs.replace(empty, time=time, memory=memory, nearest=near)


def _from_law(law: CostLaw, sizes: Workload, octaves: float) -> PredictedValue:
    """The value of a law. Outside the measured sizes the interval widens with the distance, and none is claimed."""
    value, margin = float(law.at(rows_of([sizes]))[0]), law.margin ** (1 + octaves)
    confidence = 0.0 if octaves else law.confidence
    cases = len(law.errors)
    return PredictedValue(
        value=value, low=value / margin, high=value * margin, confidence=confidence, source=Source.LAW, cases=cases
    )


def _memory(family: Family, case: Case, sizes: Workload, octaves: float) -> PredictedValue | None:
    law = family.memory
    if isinstance(law, CostLaw):
        return _from_law(law, sizes, octaves)
    if not _has_formula(case.backend):
        return None
    exact = float(_formula_bytes(case.problem, case.mode, case.backend))
    confidence = 1.0 if law is Source.FORMULA else 0.0
    return PredictedValue(value=exact, low=exact, high=exact, confidence=confidence, source=law)


def _formula_bytes(problem: Problem, mode: Mode, backend: str) -> int:
    """Predicted bytes of a call beyond its inputs, by the formula of the backend."""
    case = Case(problem=problem, backend=backend, mode=mode)
    return backends.load(backend).peak_bytes(case) - cost.input_bytes(problem)


@cache
def _has_formula(backend: str) -> bool:
    """Whether it is installed here: not a user's file, nor one of the machine of the run."""
    return backend in backends.names()


def _objections(case: Case, device: str) -> str:
    kind = "cpu" if device.startswith("cpu") else "cuda"
    return "; ".join(backends.load(case.backend).objections(case, kind)) if _has_formula(case.backend) else ""


def _refused(empty: Prediction, cell: Cell, arm: Row, reason: str) -> Prediction:
    return msgspec.structs.replace(empty, reason=reason, measure=_measuring(cell, [arm]))


def _measuring(cell: Cell, arms: Sequence[Row], pythons: Iterable[str] = ()) -> str:
    """The command that measures a case on arms of one device."""
    names = list(dict.fromkeys(arm.backend for arm in arms))
    return case_command("run", options_of(cell.problem, cell.mode.value), names, arms[0].device, pythons)


def with_common_commands(
    cell: Cell, predictions: Sequence[tuple[Prediction, Row]], pythons: Iterable[str]
) -> Iterator[Prediction]:
    """The predictions of one case; those refused on one device for one reason have one command.

    `pythons`: NAME=PYTHON of the run.
    """
    for each, arm in predictions:
        alike = [
            row
            for other, row in predictions
            if (other.reason, row.device) == (each.reason, arm.device) and other.measure
        ]
        yield msgspec.structs.replace(each, measure=_measuring(cell, alike, pythons)) if each.measure else each


def _outside(family: Family, sizes: Workload, octaves: float) -> str:
    """Which sizes are outside, and what was measured of them."""
    names = ("sequences", "queries", "keys", "head_dim", "head_dim_v")
    texts = []
    for name in names:
        measured, value = [getattr(each, name) for each in family.sizes], getattr(sizes, name)
        if not min(measured) / 2 <= value <= 2 * max(measured):
            texts.append(f"{name.replace('_', ' ')} {figure_of(value)}, measured {_range(measured)}")
    combined = f"no measured case has sizes like these together ({octaves:.1f} octaves away)"
    return f"outside the measured range: {'; '.join(texts) or combined}; --extrapolate predicts it anyway"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return figure_of(low) if low == high else f"{figure_of(low)}..{figure_of(high)}"


def figure_of(value: float) -> str:
    """A size: whole, or as a mean over requests."""
    return f"{value:g}" if value == round(value) else figure(value)


def _named(row: Row) -> str:
    return f"{row.problem} {seconds(row.time_s)}"
