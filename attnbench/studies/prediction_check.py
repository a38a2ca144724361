"""How right the predictions from a run are: every measured shape is hidden once and predicted from the others."""

import random
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from attnbench.analysis.rows import Row, problem_of
from attnbench.analysis.workload import kind_of
from attnbench.studies.predict import Predictor
from attnbench.suite import Cell

_FOLDS = 10
_SHAPE = ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "head_dim_v", "requests")


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """The errors of hidden cases of one arm, dtype, mode and kind of problem, or of all."""

    arm: str
    device: str
    what: str
    cases: int  # hidden inside the range of the others
    outside: int  # hidden at its edge
    unpredicted: int  # too few others
    median_error: float | None  # relative
    coverage: float | None  # share of the cases inside their interval
    interval: float | None  # median of its half-width, relative


class _Hidden(msgspec.Struct):
    errors: list[float] = []
    widths: list[float] = []
    covered: int = 0
    outside: int = 0
    unpredicted: int = 0


def check(rows: Sequence[Row]) -> list[HeldOut]:
    """One entry for each arm, dtype, mode and kind of problem, and one for all of them last."""
    hidden: dict[tuple[str, str, str], _Hidden] = {}
    total = _Hidden()
    for row, others in _folds([row for row in rows if row.time_s and not row.impossible]):
        problem = problem_of(row)
        what = f"{row.dtype} {row.mode.value} {kind_of(problem)}"
        entry = hidden.setdefault((row.arm_name, row.device, what), _Hidden())
        prediction = others.predict(Cell(problem, row.mode), row, extrapolate=True)
        for each in (entry, total):
            if prediction.time is None:
                each.unpredicted += 1
            elif prediction.octaves_outside:
                each.outside += 1
            else:
                each.errors.append(abs(prediction.time.value / row.seconds - 1))
                each.widths.append(prediction.time.high / prediction.time.value - 1)
                each.covered += prediction.time.low <= row.seconds <= prediction.time.high
    return [*(_held_out(*key, entry) for key, entry in hidden.items()), _held_out("all", "", "", total)]


def _folds(rows: Sequence[Row]) -> Iterator[tuple[Row, Predictor]]:
    """Each row with a predictor from the rows of other shapes; what was measured of one shape is hidden together."""
    shapes = sorted({_shape(row) for row in rows})
    random.Random(0).shuffle(shapes)
    fold = {shape: number % _FOLDS for number, shape in enumerate(shapes)}
    for number in range(min(_FOLDS, len(shapes))):
        others = Predictor(row for row in rows if fold[_shape(row)] != number)
        for row in rows:
            if fold[_shape(row)] == number:
                yield row, others


def _shape(row: Row) -> tuple[str, ...]:
    return tuple(str(row.value(name)) for name in _SHAPE)


def _held_out(arm: str, device: str, what: str, hidden: _Hidden) -> HeldOut:
    count = len(hidden.errors)
    return HeldOut(
        arm=arm,
        device=device,
        what=what,
        cases=count,
        outside=hidden.outside,
        unpredicted=hidden.unpredicted,
        median_error=float(np.median(hidden.errors)) if count else None,
        coverage=hidden.covered / count if count else None,
        interval=float(np.median(hidden.widths)) if count else None,
    )
