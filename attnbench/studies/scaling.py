"""What `attnbench scaling` does: exponents of time and memory from a run, and what they say of the textbook's claims.

A single slope over all lengths misleads, since overhead bends the short end: local slopes are shown, and only the tail
is fitted. Memory has no noise: it comes first, and its interval is the range of its local slopes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from attnbench import stats
from attnbench.attention import cost
from attnbench.attention.problem import Mode, Problem
from attnbench.frame import AXES as COLUMNS
from attnbench.frame import Row
from attnbench.stats import Estimate

DEFAULT_SUITE = "scaling"
LEAST_POINTS = 4
WITHIN = 0.25  # of the prediction
NOISY = 1.0  # width of an interval that says nothing


class Verdict(StrEnum):
    """Of a prediction, by the interval of what was measured."""

    CONFIRMED = "confirmed"  # wholly within 0.25 of it
    REFUTED = "refuted"  # wholly outside
    INCONCLUSIVE = "inconclusive"
    DEPENDS = "it depends"  # backends or formats do not agree
    MEASURED = "measured"  # nothing to confirm or refute


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """What varies, while all else of the problem stays."""

    name: str
    of: Callable[[Row], float]
    varies: tuple[str, ...]  # columns that change with it
    fixed: Callable[[Row], Any] = lambda row: None  # what stays although its columns change
    time: float  # the exponent that the textbook predicts, of time
    memory: dict[bool, float]  # of the peak; by whether scores are written out


AXES = (
    Axis(
        name="seq",
        of=lambda row: row["seq_q"],
        varies=("seq_q", "seq_kv"),
        fixed=lambda row: row["seq_q"] == row["seq_kv"],
        time=2,
        memory={True: 2, False: 1},
    ),
    Axis(
        name="head_dim",
        of=lambda row: row["head_dim"],
        varies=("head_dim", "head_dim_v"),
        fixed=lambda row: row["head_dim"] == row["head_dim_v"],
        time=1,
        memory={True: 0, False: 1},
    ),
    Axis(
        name="heads",
        of=lambda row: row["heads"],
        varies=("heads", "kv_heads"),
        fixed=lambda row: row["heads"] / row["kv_heads"],
        time=1,
        memory={True: 1, False: 1},
    ),
    Axis(
        name="heads at d_model",
        of=lambda row: row["heads"],
        varies=("heads", "kv_heads", "head_dim", "head_dim_v"),
        fixed=lambda row: (
            row["heads"] * row["head_dim"],
            row["heads"] / row["kv_heads"],
            row["head_dim"] == row["head_dim_v"],
        ),
        time=0,
        memory={True: 1, False: 0},
    ),
    Axis(
        name="batch",
        of=lambda row: row["batch"],
        varies=("batch",),
        time=1,
        memory={True: 1, False: 1},
    ),
)
# Backends that write all scores to memory; the others keep a tile of them.
WRITES_SCORES = ("naive", "sdpa:math", "flex:eager")


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """One exponent: of time or of peak memory, for one backend, along one axis."""

    quantity: str  # time or peak
    arm: str
    backend: str
    axis: str
    problem: str  # what stays
    points: tuple[tuple[float, float], ...]  # x in the unit of the axis, y in s or B
    slopes: tuple[float, ...]  # between neighbours
    tail: int  # how many of the last points are fitted
    measured: Estimate
    predicted: float

    @property
    def verdict(self) -> Verdict:
        """Of the prediction."""
        return judge(self.measured, self.predicted)

    @property
    def why(self) -> str:
        """What keeps it from a verdict; empty if nothing does."""
        low, high = self.measured.low, self.measured.high
        if self.verdict is not Verdict.INCONCLUSIVE or low is None or high is None:
            return "too few points" if low is None else ""
        if high - low > NOISY:
            return "noisy"
        edges = [self.predicted + side for side in (-WITHIN, WITHIN) if low < self.predicted + side < high]
        return f"crosses {' and '.join(f'{edge:.2f}' for edge in edges)}"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A statement of the literature, and what the laws of a run say of it."""

    id: str
    says: str
    predicts: str
    measured: str
    verdict: Verdict


def judge(measured: Estimate, predicted: float) -> Verdict:
    """By the 95 % interval, never by the value alone."""
    low, high = measured.low, measured.high
    if low is None or high is None:
        return Verdict.INCONCLUSIVE
    if predicted - WITHIN <= low and high <= predicted + WITHIN:
        return Verdict.CONFIRMED
    if low > predicted + WITHIN or high < predicted - WITHIN:
        return Verdict.REFUTED
    return Verdict.INCONCLUSIVE


def tail_of(count: int) -> int:
    """How many of the last points are fitted: the upper half, and at least four."""
    return max(LEAST_POINTS, math.ceil((count + 1) / 2))


def fit(points: Sequence[tuple[float, float]], exact: bool = False) -> tuple[list[float], int, Estimate]:
    """Local slopes, the length of the tail, and its exponent. `exact`: without noise, the interval is their range."""
    x, y = zip(*points, strict=True)
    slopes = stats.local_slopes(x, y)
    tail = min(tail_of(len(points)), len(points))
    measured = stats.power_law(x[-tail:], y[-tail:])
    if exact:
        last = slopes[-(tail - 1) :]
        measured = msgspec.structs.replace(measured, low=min(last), high=max(last), method=stats.Method.RANGE)
    return slopes, tail, measured


def laws(rows: Sequence[Row]) -> Iterator[Law]:
    """Every exponent that the rows of a run hold, memory first: families that differ along one axis alone."""
    for quantity, column in (("peak", "total_bytes"), ("time", "time_s")):
        for axis in AXES:
            for family in _families(rows, axis, column):
                points = [(axis.of(row), float(row[column])) for row in family]
                slopes, tail, measured = fit(points, exact=quantity == "peak")
                first = family[0]
                writes = first["backend"] in WRITES_SCORES
                yield Law(
                    quantity=quantity,
                    arm=first["arm_name"],
                    backend=first["backend"],
                    axis=axis.name,
                    problem=first["problem"],
                    points=tuple(points),
                    slopes=tuple(slopes),
                    tail=tail,
                    measured=measured,
                    predicted=axis.time if quantity == "time" else axis.memory[writes],
                )


def _families(rows: Sequence[Row], axis: Axis, column: str) -> Iterator[list[Row]]:
    """Rows of one arm that share everything but what the axis varies, from small to large."""
    found: dict[Any, dict[float, Row]] = {}
    for row in rows:
        if not row[column] or row["impossible"]:
            continue
        rest = tuple(row[name] for name in COLUMNS if name not in axis.varies)
        found.setdefault((row["arm"], row["mode"], rest, axis.fixed(row)), {})[axis.of(row)] = row
    for family in found.values():
        if len(family) >= LEAST_POINTS:
            yield [family[x] for x in sorted(family)]


# -- claims ------------------------------------------------------------------------------------------------------------


def claims(found: Sequence[Law]) -> Iterator[Claim]:
    """The claims that exponents decide, of docs/scaling.md; one of which nothing was measured is left out."""
    time = [law for law in found if law.quantity == "time"]
    peak = [law for law in found if law.quantity == "peak"]
    yield from _claim("C1", "time is O(d^3 + d^2 n)", time, {"seq": 1.0, "head_dim": 2.0})
    yield from _claim("C2", "time is O(n^3)", time, {"seq": 3.0})
    yield from _claim("C5", "time is O(n^2)", time, {"seq": 2.0})
    stored = [law for law in peak if law.backend in WRITES_SCORES]
    fused = [law for law in peak if law.backend not in WRITES_SCORES]
    yield from _claim("C5", "space is O(n^2), scores written out", stored, {"seq": 2.0})
    yield from _claim("C5", "space is O(n^2), fused kernels", fused, {"seq": 2.0})
    yield from _of_heads(time)


def _claim(name: str, says: str, found: Sequence[Law], predicted: dict[str, float]) -> Iterator[Claim]:
    """Refuted by any one law along these axes that excludes the prediction, confirmed if all of them agree with it."""
    seen = [law for law in found if law.axis in predicted]
    if not seen:
        return
    verdicts = [judge(law.measured, predicted[law.axis]) for law in seen]
    if Verdict.REFUTED in verdicts:
        verdict = Verdict.REFUTED
    elif set(verdicts) == {Verdict.CONFIRMED}:
        verdict = Verdict.CONFIRMED
    else:
        verdict = Verdict.INCONCLUSIVE
    shown = [law for law, one in zip(seen, verdicts, strict=True) if one is verdict] or seen
    yield Claim(
        id=name,
        says=says,
        predicts=", ".join(f"{axis} {exponent:g}" for axis, exponent in predicted.items()),
        measured="; ".join(f"{law.arm} {law.axis} {interval(law.measured)}" for law in shown),
        verdict=verdict,
    )


def _of_heads(time: Sequence[Law]) -> Iterator[Claim]:
    """FLOPs and parameters over heads at one model width follow from the formulas: exact, and measured nowhere."""
    few, many = (Problem(seq_q=512, heads=heads, head_dim=512 // heads) for heads in (2, 32))
    same = cost.flops(few, Mode.FWD) == cost.flops(many, Mode.FWD)
    times = "; ".join(f"time of {law.arm} {interval(law.measured)}" for law in time if law.axis == "heads at d_model")
    yield Claim(
        id="C3",
        says="parallel heads save work (d_model fixed)",
        predicts="FLOPs fall with heads",
        measured=f"FLOPs {'equal' if same else 'differ'}, exact{'; ' + times if times else ''}",
        verdict=Verdict.REFUTED if same else Verdict.INCONCLUSIVE,
    )
    counts = {heads: parameters(512, heads) for heads in (2, 32)}
    yield Claim(
        id="C4",
        says="many heads need many more parameters (d_model fixed)",
        predicts="parameters grow with heads",
        measured=f"4 d_model^2 of d_model 512, exact: {', '.join(f'{n} with {h} heads' for h, n in counts.items())}",
        verdict=Verdict.CONFIRMED if counts[32] > counts[2] else Verdict.REFUTED,
    )


def parameters(d_model: int, heads: int) -> int:
    """Of W_Q, W_K, W_V and W_O, each head projecting to d_model / heads (https://arxiv.org/abs/1706.03762, 3.2.2)."""
    head_dim = d_model // heads
    return heads * (3 * d_model * head_dim) + heads * head_dim * d_model


def interval(measured: Estimate) -> str:
    """`2.00 (1.87..2.13)`."""
    ends = (
        f" ({measured.low:.2f}..{measured.high:.2f})" if measured.low is not None and measured.high is not None else ""
    )
    return f"{measured.value:.2f}{ends}"
