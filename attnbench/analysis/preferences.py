"""Dtypes and devices that are much slower than others, in the measured cases or by the calibrated matrix products."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import permutations

import msgspec

from attnbench.analysis import stats
from attnbench.analysis.roofline import NO_CEILINGS, CeilingsByDevice
from attnbench.analysis.rows import AXES, Row

MIN_FACTOR = 2.0  # of the times; smaller differences are left to the tables
MAX_BACKENDS = 3  # named in a note
BITS = {"fp32": (8, 23), "tf32": (8, 10), "fp16": (5, 10), "bf16": (8, 7), "fp8_e4m3": (4, 3)}  # exponent, fraction


class Basis(StrEnum):
    """What a preference rests on."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"


class AxisPreference(msgspec.Struct, frozen=True, kw_only=True):
    """A dtype or device that is slower than another one of the same axis by more than MIN_FACTOR."""

    axis: str  # dtype or device
    better: str
    worse: str
    where: str  # the device on which dtypes were compared, the dtype in which devices were
    factor: float  # of the times, by geometric mean over the pairs of cases
    pairs: int  # of cases that differ in the axis alone
    backends: tuple[str, ...]  # of these cases
    others: bool = False  # whether further backends were compared, for which it does not hold
    basis: Basis

    @property
    def text(self) -> str:
        """`prefer fp32 on cpu with naive, flex: bf16 is 70x slower (geometric mean of 12 measured pairs of cases)`.

        The backends are named before the colon where it does not hold for all.
        """
        where = f"on {self.where}" if self.axis == "dtype" else f"for {self.where}"
        if self.basis is Basis.CALIBRATED:
            products = f"matrix products in {self.worse} are {_times(self.factor)} slower"
            return f"prefer {self.better} {where}: {products} (by the calibration; {self.better} was not measured)"
        rest = len(self.backends) - MAX_BACKENDS
        names = ", ".join(self.backends[:MAX_BACKENDS]) + (f" and {rest} more" if rest > 0 else "")
        count = f"{self.pairs} measured pairs of cases" if self.pairs > 1 else "one measured pair of cases"
        mean = "geometric mean of " if self.pairs > 1 else ""
        where, names = (f"{where} with {names}", "") if self.others else (where, f": {names}")
        return f"prefer {self.better} {where}: {self.worse} is {_times(self.factor)} slower ({mean}{count}{names})"


def _times(factor: float) -> str:
    return f"{factor:.1f}x" if factor < 10 else f"{factor:.0f}x"


def preferences(rows: Sequence[Row], ceilings: CeilingsByDevice = NO_CEILINGS) -> list[AxisPreference]:
    """Dtypes, then devices; the calibration counts only for a dtype that was measured beside no other one."""
    return [*_measured(rows, "dtype"), *_calibrated(rows, ceilings), *_measured(rows, "device")]


def _measured(rows: Sequence[Row], axis: str) -> Iterator[AxisPreference]:
    where = "device" if axis == "dtype" else "dtype"
    ratios: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}  # by place and backend, worse and better
    for group in _groups(rows, axis):
        for worse, better in permutations(group, 2):
            place = str(group[worse].value(where)), group[worse].arm_name
            ratio = group[worse].seconds / group[better].seconds
            ratios.setdefault(place, {}).setdefault((worse, better), []).append(ratio)
    merged: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for (place_name, backend), of_backend in ratios.items():
        means = {pair: _mean(values) for pair, values in of_backend.items() if min(values) > 1}
        for worse in dict.fromkeys(worse for worse, _ in means):
            pair = max((pair for pair in means if pair[0] == worse), key=lambda pair: means[pair])
            if means[pair] > MIN_FACTOR:
                merged.setdefault((place_name, *pair), {})[backend] = of_backend[pair]
    for (place_name, worse, better), by_backend in merged.items():
        values = [value for of_backend_ in by_backend.values() for value in of_backend_]
        yield AxisPreference(
            axis=axis, better=better, worse=worse, where=place_name, factor=_mean(values), pairs=len(values),
            backends=tuple(by_backend), basis=Basis.MEASURED,
            others=any(
                place == place_name and name not in by_backend and (worse, better) in of_backend
                for (place, name), of_backend in ratios.items()
            ),
        )  # fmt: skip


def _groups(rows: Sequence[Row], axis: str) -> list[dict[str, Row]]:
    """The measured rows that differ in the axis alone, by its value."""
    if len({row.value(axis) for row in rows}) < 2:
        return []
    same = [name for name in (*AXES, "device", "mode", "arm_name", "run") if name != axis]
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        if row.time_s and not row.impossible:
            groups.setdefault(tuple(row.value(name) for name in same), {})[str(row.value(axis))] = row
    return [group for group in groups.values() if len(group) > 1]


def _mean(values: Sequence[float]) -> float:
    mean = stats.geometric_mean(values)
    assert mean
    return mean.value


def _calibrated(rows: Sequence[Row], ceilings: CeilingsByDevice) -> Iterator[AxisPreference]:
    compared = {(row.device, row.dtype) for group in _groups(rows, "dtype") for row in group.values()}
    measured = dict.fromkeys((row.device, row.dtype) for row in rows if row.time_s)
    for device, dtype in measured:
        of_device = ceilings.get(device)
        rates = of_device.matmul if of_device and "matmul" not in of_device.disturbed else {}
        # Only dtypes that lose neither range nor precision: users of fp32 know that fp16 would be faster.
        safe = [
            name for name in rates if all(needed <= bits for needed, bits in zip(BITS[dtype], BITS[name], strict=True))
        ]
        better = max(safe, key=lambda name: rates[name].burst, default=dtype)
        factor = rates[better].burst / rates[dtype].burst if dtype in rates else 0.0
        if factor > MIN_FACTOR and (device, dtype) not in compared:
            backends = dict.fromkeys(row.arm_name for row in rows if (row.device, row.dtype) == (device, dtype))
            yield AxisPreference(
                axis="dtype", better=better, worse=dtype, where=device, factor=factor, pairs=0,
                backends=tuple(backends), basis=Basis.CALIBRATED,
            )  # fmt: skip
