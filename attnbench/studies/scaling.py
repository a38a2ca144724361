"""Exponents of time and memory from a run, and the textbook claims that they confirm or refute.

A single slope over all lengths misleads, because overhead flattens the short end: local slopes are shown, and only the
tail is fitted. Memory has no noise: it comes first, and its interval is the range of its local slopes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec

from attnbench.analysis import stats
from attnbench.analysis.rows import AXES as COLUMNS
from attnbench.analysis.rows import Row
from attnbench.analysis.stats import Estimate
from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem

DEFAULT_SUITE = "scaling"
MIN_POINTS = 4
WITHIN = 0.25  # of the prediction
NOISY = 1.0  # width above which an interval decides nothing


class ClaimVerdict(StrEnum):
    """The verdict on a claim, from the interval of the measurement."""

    CONFIRMED = "confirmed"  # the interval lies within 0.25 of the prediction
    REFUTED = "refuted"  # the interval lies outside
    INCONCLUSIVE = "inconclusive"
    DEPENDS = "it depends"  # backends or formats disagree
    MEASURED = "measured"  # the claim makes no prediction


class ScalingAxis(msgspec.Struct, frozen=True, kw_only=True):
    """What varies while the rest of the problem is constant."""

    name: str
    varies: tuple[str, ...]  # columns that change with it; the first is x
    fixed: Callable[[Row], object] = lambda row: None  # constant although its columns change
    time: float  # predicted exponent of time
    memory: tuple[float, float]  # of peak memory: for a backend that writes scores to memory, and for the others

    def of(self, row: Row) -> float:
        return row.number(self.varies[0]) or 0.0


AXES = (
    ScalingAxis(
        name="seq", varies=("seq_q", "seq_kv"), fixed=lambda row: row.seq_q == row.seq_kv, time=2, memory=(2, 1)
    ),
    ScalingAxis(
        name="head_dim",
        varies=("head_dim", "head_dim_v"),
        fixed=lambda row: row.head_dim == row.head_dim_v,
        time=1,
        memory=(0, 1),
    ),
    ScalingAxis(
        name="heads", varies=("heads", "kv_heads"), fixed=lambda row: row.heads / row.kv_heads, time=1, memory=(1, 1)
    ),
    ScalingAxis(
        name="heads at d_model",
        varies=("heads", "kv_heads", "head_dim", "head_dim_v"),
        fixed=lambda row: (row.heads * row.head_dim, row.heads / row.kv_heads, row.head_dim == row.head_dim_v),
        time=0,
        memory=(1, 0),
    ),
    ScalingAxis(name="batch", varies=("batch",), time=1, memory=(1, 1)),
)
# Backends that write all scores to memory; the others keep one tile.
WRITES_SCORES = ("naive", "sdpa:math", "flex:eager")


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """One exponent: of time or of peak memory, for one backend, along one axis."""

    quantity: str  # time or peak
    arm: str
    backend: str
    axis: str
    problem: str  # what is constant
    points: tuple[tuple[float, float], ...]  # x in the unit of the axis, y in s or B
    slopes: tuple[float, ...]  # between neighbours
    tail: int  # how many of the last points are fitted
    measured: Estimate
    predicted: float

    @property
    def verdict(self) -> ClaimVerdict:
        return judge(self.measured, self.predicted)

    @property
    def why(self) -> str:
        """Why it is inconclusive; empty if it is not."""
        low, high = self.measured.low, self.measured.high
        if self.verdict is not ClaimVerdict.INCONCLUSIVE or low is None or high is None:
            return "too few points" if low is None else ""
        if high - low > NOISY:
            return "noisy"
        edges = [self.predicted + side for side in (-WITHIN, WITHIN) if low < self.predicted + side < high]
        return f"crosses {' and '.join(f'{edge:.2f}' for edge in edges)}"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A statement of the literature, and the verdict of a run."""

    id: str
    says: str
    predicts: str
    measured: str
    verdict: ClaimVerdict


def judge(measured: Estimate, predicted: float) -> ClaimVerdict:
    """The verdict by the 95 % interval, not by the value."""
    low, high = measured.low, measured.high
    if low is None or high is None:
        return ClaimVerdict.INCONCLUSIVE
    if predicted - WITHIN <= low and high <= predicted + WITHIN:
        return ClaimVerdict.CONFIRMED
    if low > predicted + WITHIN or high < predicted - WITHIN:
        return ClaimVerdict.REFUTED
    return ClaimVerdict.INCONCLUSIVE


def fit(points: Sequence[tuple[float, float]], exact: bool = False) -> tuple[list[float], int, Estimate]:
    """Local slopes, the length of the tail (the upper half, at least four points), and the exponent there.

    With `exact`, the interval is the range of the slopes.
    """
    x, y = zip(*points, strict=True)
    slopes = stats.local_slopes(x, y)
    tail = min(max(MIN_POINTS, math.ceil((len(points) + 1) / 2)), len(points))
    measured = stats.power_law(x[-tail:], y[-tail:])
    if exact:
        last = slopes[-(tail - 1) :]
        measured = msgspec.structs.replace(measured, low=min(last), high=max(last), method=stats.Method.RANGE)
    return slopes, tail, measured


def laws(rows: Sequence[Row]) -> Iterator[Law]:
    """Every exponent in the rows of a run, memory first, from families of cases that differ along one axis only."""
    for quantity, column in (("peak", "total_bytes"), ("time", "time_s")):
        for axis in AXES:
            for family in _families(rows, axis, column):
                points = [(axis.of(row), row.number(column) or 0.0) for row in family]
                slopes, tail, measured = fit(points, exact=quantity == "peak")
                first = family[0]
                stored, fused = axis.memory
                peak = stored if first.backend in WRITES_SCORES else fused
                yield Law(
                    quantity=quantity,
                    arm=first.arm_name,
                    backend=first.backend,
                    axis=axis.name,
                    problem=first.problem,
                    points=tuple(points),
                    slopes=tuple(slopes),
                    tail=tail,
                    measured=measured,
                    predicted=axis.time if quantity == "time" else peak,
                )


def _families(rows: Sequence[Row], axis: ScalingAxis, column: str) -> Iterator[list[Row]]:
    """Rows of one arm that differ only along the axis, from small to large."""
    families: dict[tuple[object, ...], dict[float, Row]] = {}
    for row in rows:
        if not row.value(column) or row.impossible:
            continue
        rest = tuple(row.value(name) for name in COLUMNS if name not in axis.varies)
        families.setdefault((row.arm, row.mode, rest, axis.fixed(row)), {})[axis.of(row)] = row
    for family in families.values():
        if len(family) >= MIN_POINTS:
            yield [family[x] for x in sorted(family)]


def claims(laws: Sequence[Law]) -> Iterator[Claim]:
    """The claims of docs/scaling.md that exponents decide, without those on which nothing was measured."""
    time = [law for law in laws if law.quantity == "time"]
    peak = [law for law in laws if law.quantity == "peak"]
    yield from _claim("C1", "time is O(d^3 + d^2 n)", time, {"seq": 1.0, "head_dim": 2.0})
    yield from _claim("C2", "time is O(n^3)", time, {"seq": 3.0})
    yield from _claim("C5", "time is O(n^2)", time, {"seq": 2.0})
    stored = [law for law in peak if law.backend in WRITES_SCORES]
    fused = [law for law in peak if law.backend not in WRITES_SCORES]
    yield from _claim("C5", "space is O(n^2), scores written out", stored, {"seq": 2.0})
    yield from _claim("C5", "space is O(n^2), fused kernels", fused, {"seq": 2.0})
    yield from _of_heads(time)


def _claim(name: str, says: str, laws: Sequence[Law], predicted: dict[str, float]) -> Iterator[Claim]:
    """Refuted if one law along these axes excludes the prediction; confirmed if all of them agree with it."""
    relevant = [law for law in laws if law.axis in predicted]
    if not relevant:
        return
    verdicts = [judge(law.measured, predicted[law.axis]) for law in relevant]
    doubts = (ClaimVerdict.REFUTED, ClaimVerdict.INCONCLUSIVE)
    verdict = next((doubt for doubt in doubts if doubt in verdicts), ClaimVerdict.CONFIRMED)
    deciding = [law for law, own_verdict in zip(relevant, verdicts, strict=True) if own_verdict is verdict]
    yield Claim(
        id=name,
        says=says,
        predicts=", ".join(f"{axis} {exponent:g}" for axis, exponent in predicted.items()),
        measured="; ".join(f"{law.arm} {law.axis} {interval(law.measured)}" for law in deciding or relevant),
        verdict=verdict,
    )


def _of_heads(time: Sequence[Law]) -> Iterator[Claim]:
    """Claims on FLOPs and parameters over heads at one model width: computed exactly, not measured."""
    few, many = (Problem(seq_q=512, heads=heads, head_dim=512 // heads) for heads in (2, 32))
    same = cost.flops(few, Mode.FWD) == cost.flops(many, Mode.FWD)
    times = "; ".join(f"time of {law.arm} {interval(law.measured)}" for law in time if law.axis == "heads at d_model")
    yield Claim(
        id="C3",
        says="parallel heads save work (d_model fixed)",
        predicts="FLOPs fall with heads",
        measured=f"FLOPs {'equal' if same else 'differ'}, exact{'; ' + times if times else ''}",
        verdict=ClaimVerdict.REFUTED if same else ClaimVerdict.INCONCLUSIVE,
    )
    counts = {heads: parameters(512, heads) for heads in (2, 32)}
    yield Claim(
        id="C4",
        says="many heads need many more parameters (d_model fixed)",
        predicts="parameters grow with heads",
        measured=f"4 d_model^2 of d_model 512, exact: {', '.join(f'{n} with {h} heads' for h, n in counts.items())}",
        verdict=ClaimVerdict.CONFIRMED if counts[32] > counts[2] else ClaimVerdict.REFUTED,
    )


def parameters(d_model: int, heads: int) -> int:
    """Parameters of W_Q, W_K, W_V, W_O; each head projects to d_model / heads (https://arxiv.org/abs/1706.03762)."""
    head_dim = d_model // heads
    return heads * (3 * d_model * head_dim) + heads * head_dim * d_model


def interval(measured: Estimate) -> str:
    """`2.00 (1.87..2.13)`."""
    if measured.low is None or measured.high is None:
        return f"{measured.value:.2f}"
    return f"{measured.value:.2f} ({measured.low:.2f}..{measured.high:.2f})"
