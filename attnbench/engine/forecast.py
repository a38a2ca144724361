"""Predicts the seconds of calls and groups: from estimates at first, then from what this machine measured.

A call is predicted by the law that is fitted to the stored calls of its arm, dtype, mode and kind of problem; with too
few of them, or far from them, from the nearest one. While a run goes on, every finished group corrects the predictions
of those that follow.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from msgspec.structs import replace

from attnbench import backends
from attnbench.analysis.cost_law import MIN_CASES, CostLaw, Floats, coordinates, rows_of
from attnbench.analysis.workload import Workload, kind_of, of_backend, pads, workload
from attnbench.attention import cost
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.engine.group import Group
from attnbench.records.arm import Arm, Device, unpinned
from attnbench.records.case import Case
from attnbench.records.speeds import Speeds
from attnbench.suite.serving.step_cost import Rates
from attnbench.units import counted

T = TypeVar("T")

# Calls of one arm in the shortest measurement: first, four sets of inputs, transformed inputs, settling, three rounds,
# two more in a row, one that has just returned, and memory.
MIN_CALLS = 7 + 3 + 4
# Beside its calls: settling, checks of outputs, memory. Medians of the suite `quick` on a 2-core CPU.
ARM_OVERHEAD_S = 0.5
# Of a probe beside half a float64 reference. Means over all probes of a busy 2-core CPU, at lengths of 64 to 2048.
PROBE_S, PROBE_CALLS = 0.25, 4
# Measured on a 2-core CPU: 3.7 to 7.7 s for a graph of flex_attention; 13 to 27 s for the first one of a process with a
# cold cache, most of them to start the compiler.
COMPILE_S, COMPILER_S = 6.0, 12.0
# For the rounds of an arm: where the budget is too short for all groups, and where all fit with that few.
ROUNDS_S, FEW_ROUNDS_S = 0.3, 0.1
MARGIN = 1.25  # times a prediction, that what it predicts may take
START_S = 1.5  # of a worker: Python and torch
# The oracle computes in float64, up to its limit for each of four sets of inputs.
ORACLE_FLOP_PER_S, ORACLE_MIN_S, ORACLE_MAX_S = 2.5e9, 0.1, 2.6

# Estimates in FLOP/s and bytes/s for one CPU thread on fp32 and one GPU on bf16, until the same backend is measured.
_CPU_RATES = {"sdpa:flash": 5e10, "sdpa": 5e10, "sdpa:padded": 5e10, "flex": 3e10}
_CPU_RATE, _CUDA_RATE = 1.5e10, 5e13
_CPU_BYTES_PER_S, _CUDA_BYTES_PER_S = 1e10, 1e12
_CALL_OVERHEAD_S = 5e-5
_MAX_CALLS = 200  # stored of one kind of problem
_REFIT = 1.2  # growth of the number of stored calls after which a law is fitted again
_CHUNK = 5000  # groups predicted at once
_FLOPS, _BYTES = Workload._fields.index("dense_flops"), Workload._fields.index("bytes")
# Earlier groups of the run outweigh what is stored from the runs before once they took this long.
_PRIOR_S, _LOW_RATIO, _HIGH_RATIO = 10.0, 0.3, 10.0


class ForecastBasis(NamedTuple):
    """What predictions are based on: the numbers of stored calls, and of predicted calls without any."""

    stored: int
    guessed: int

    @property
    def text(self) -> str:
        if not self.stored:
            return "a rough guess"
        return f"from {counted(self.stored, 'stored case')}" + (f", {self.guessed:,} guessed" if self.guessed else "")


class _Family(NamedTuple):
    """Calls that obey one law: of one arm, dtype, mode and kind of problem."""

    arm: str
    kind: str


class _GroupParts(NamedTuple):
    """Seconds of a group."""

    calls: tuple[float, ...]  # of a call of each arm, borrowed ones last
    calls_s: float  # of all calls
    beside_s: float  # of the rest, without compiling
    compile_s: float

    def corrected_s(self, ratios: tuple[float, float]) -> float:
        """The sum. `ratios`: seconds taken over predicted ones, of calls and of the rest; compiling is well known."""
        return ratios[0] * self.calls_s + ratios[1] * self.beside_s + self.compile_s


class Forecast:
    """Predictions for one machine; `speeds` are what earlier runs measured on it."""

    def __init__(self, speeds: Speeds | None = None) -> None:
        speeds = speeds or Speeds()
        self._calls = copy.deepcopy(speeds.calls)
        self._laws: dict[_Family, tuple[int, CostLaw]] = {}  # with the number of calls
        self._used: dict[_Family, int] = {}  # stored calls of families that were predicted
        self._guessed = 0
        self._compile_s = dict(speeds.compile_s)
        self._of_files: set[str] = set()  # keys of `calls` whose backend is a user's file
        # Of the calls of groups, and of what is beside them.
        self._predicted_s = [_PRIOR_S, _PRIOR_S]
        ratios = (speeds.call_ratio, speeds.ratio)
        self._taken_s = [_PRIOR_S * min(max(ratio, _LOW_RATIO), _HIGH_RATIO) for ratio in ratios]

    @property
    def basis(self) -> ForecastBasis:
        """What the predictions so far are based on."""
        return ForecastBasis(sum(self._used.values()), self._guessed)

    @property
    def ratios(self) -> tuple[float, float]:
        """Seconds that groups took, over what was predicted: for their calls, and for what is beside them."""
        of_calls, beside = (
            taken / predicted for taken, predicted in zip(self._taken_s, self._predicted_s, strict=True)
        )
        return of_calls, beside

    @property
    def ratio(self) -> float:
        """Seconds that groups took, over what was predicted for them."""
        return sum(self._taken_s) / sum(self._predicted_s)

    @property
    def speeds(self) -> Speeds:
        """What is known now, to be stored; without the files of users, whose contents change."""
        calls = {key: points for key, points in self._calls.items() if key not in self._of_files}
        call_ratio, ratio = self.ratios
        return Speeds(calls=calls, compile_s=self._compile_s, call_ratio=call_ratio, ratio=ratio)

    def learn(self, arm: Arm, case: Case, call_s: float) -> None:
        """Record the seconds of a measured call."""
        key = _key(arm, case.problem.dtype, case.mode)
        sizes = of_backend(case.problem, case.mode, case.backend)
        place = " ".join(f"{round(2 * octave)}" for octave in coordinates(rows_of([sizes]))[0])
        calls = self._calls.setdefault(key, {}).setdefault(kind_of(case.problem), {})
        calls.pop(place, None)  # the newest is last
        calls[place] = (*sizes, call_s)
        if len(calls) > _MAX_CALLS:
            del calls[next(iter(calls))]
        if backends.is_file(arm.backend):
            self._of_files.add(key)

    def learn_compile(self, arm: Arm, seconds: float, starts: bool) -> None:
        """Record how long the first call of a compiling backend took. The last record counts, as caches fill.

        `starts`: it started the compiler in its process as well.
        """
        self._compile_s[_compile_key(arm, starts)] = seconds

    def _graph_s(self, arm: Arm) -> float:
        """Predicted seconds to compile a case, where the compiler runs."""
        first_s = self._compile_s.get(_compile_key(arm, starts=True), COMPILE_S)
        return self._compile_s.get(_compile_key(arm), min(COMPILE_S, first_s))

    def _compiler_s(self, arm: Arm) -> float:
        """Predicted seconds to start the compiler of an arm, beside those of the first graph."""
        first_s = self._compile_s.get(_compile_key(arm, starts=True))
        return COMPILER_S if first_s is None else max(first_s - self._graph_s(arm), 0.0)

    def start_s(self, arms: Iterable[Arm], cores: int) -> float:
        """Predicted seconds until the workers of all arms run, as many at a time as there are cores, and compilers."""
        arms = list(arms)
        compilers_s = sum(self._compiler_s(arm) for arm in arms if compiles(arm))
        return START_S * -(-len(arms) // max(cores, 1)) + compilers_s

    def learn_group(self, group: Group, taken_s: float) -> None:
        """Record how long a group took whose calls were measured, without compiling.

        What takes most of it is corrected most.
        """
        (parts,) = self._parts([group])
        for place, part_s in enumerate((parts.calls_s, parts.beside_s)):
            self._predicted_s[place] += part_s
            self._taken_s[place] += part_s * taken_s / (parts.calls_s + parts.beside_s)

    def _calls_s(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """Predicted seconds of a call of each arm of each group, those of borrowed arms last."""
        sizes = rows_of([workload(group.problem, group.mode) for group in groups])
        alike: dict[tuple[tuple[Arm, ...], Dtype, Mode, str], list[int]] = {}
        for place, group in enumerate(groups):
            arms = group.arms + group.borrowed
            alike.setdefault((arms, group.problem.dtype, group.mode, kind_of(group.problem)), []).append(place)
        predicted: list[tuple[float, ...]] = [()] * len(groups)
        for (arms, dtype, mode, kind), places in alike.items():
            columns = []
            for arm in arms:
                of_arm = sizes[places]
                if pads(arm.backend):
                    of_arm = rows_of([workload(groups[place].problem, mode, padded=True) for place in places])
                columns.append(self._of_family(_Family(_key(arm, dtype, mode), kind), arm, dtype, of_arm))
            for place, calls in zip(places, np.column_stack(columns).tolist(), strict=True):
                predicted[place] = tuple(calls)
        return predicted

    def _of_family(self, family: _Family, arm: Arm, dtype: Dtype, sizes: Floats) -> Floats:
        """Predicted seconds of calls of a family, by their sizes."""
        kinds = self._calls.get(family.arm, {})
        used = {family.kind: kinds[family.kind]} if family.kind in kinds else kinds
        self._used |= {_Family(family.arm, kind): len(calls) for kind, calls in used.items()}
        stored = [call for calls in used.values() for call in calls.values()]
        rates = estimated_rates(arm.parsed_device, dtype, arm.backend)
        estimated_s = _estimated_s(sizes, rates)
        if not stored:
            self._guessed += len(sizes)
            return _CALL_OVERHEAD_S + estimated_s
        calls = np.array(stored)
        of_calls = np.log(_estimated_s(calls, rates))
        nearest = np.abs(np.log(estimated_s)[:, None] - of_calls).argmin(axis=1)
        seconds: Floats = calls[nearest, -1] * np.maximum(estimated_s / np.exp(of_calls[nearest]), 0.1)
        if law := self._law(family):
            covered = law.covers(sizes)
            seconds[covered] = law.at(sizes[covered])
        return seconds

    def _law(self, family: _Family) -> CostLaw | None:
        """The law of the calls that were stored, or of most of them; None if they are too few."""
        stored = self._calls.get(family.arm, {}).get(family.kind, {})
        if len(stored) < MIN_CASES:
            return None
        count, law = self._laws.get(family, (0, None))
        if law is None or len(stored) > _REFIT * count:
            calls = np.array(list(stored.values()))
            law = CostLaw(calls[:, :-1], calls[:, -1])
            self._laws[family] = len(stored), law
        return law

    def group_s(self, group: Group) -> float:
        """Predicted seconds of a group whose workers run."""
        return self.groups_s([group])[0]

    def groups_s(self, groups: Iterable[Group]) -> list[float]:
        """Predicted seconds of each group, once its workers run."""
        ratios = self.ratios
        return [parts.corrected_s(ratios) for parts in self._parts(groups)]

    def timed(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with their predicted seconds, and those of a call of each arm."""
        ratios = self.ratios
        return [
            replace(group, seconds=parts.corrected_s(ratios), calls_s=parts.calls[: len(group.arms)])
            for group, parts in zip(groups, self._parts(groups), strict=True)
        ]

    def _parts(self, groups: Iterable[Group]) -> Iterator[_GroupParts]:
        """Uncorrected seconds of each group."""
        for chunk in batched(groups, _CHUNK):
            for group, calls in zip(chunk, self._calls_s(chunk), strict=True):
                calls_s = MIN_CALLS * sum(calls) + PROBE_CALLS * group.probes * sum(calls[: len(group.arms)])
                compile_s = sum(self._graph_s(arm) for arm in group.arms if group.late and compiles(arm))
                reference_s = oracle_s(group.problem, group.mode)
                probes_s = len(group.arms) * group.probes * (PROBE_S + reference_s / 2)
                # Expected values are computed in the group that borrowed arms come from.
                beside_s = ARM_OVERHEAD_S * len(calls) + probes_s + (0.0 if group.borrowed else reference_s)
                yield _GroupParts(calls, calls_s, beside_s, compile_s)


def batched(items: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    """The items in tuples of at most `count`."""
    rest = iter(items)
    while chunk := tuple(itertools.islice(rest, count)):
        yield chunk


def smallest_budget_s(groups: Iterable[Group], forecast: Forecast, cores: int) -> float:
    """A budget within which one of these groups is measured."""
    groups = list(groups)
    starts = (forecast.start_s((*group.arms, *group.borrowed), cores) + rounds_s(group) for group in groups)
    needed = map(operator.add, starts, forecast.groups_s(groups))
    return MARGIN * (START_S + min(needed, default=0.0))  # the oracle starts too


def rounds_s(group: Group, of_arm: float = ROUNDS_S) -> float:
    """Seconds for the rounds of a group; `of_arm`: those of one arm."""
    return of_arm * (len(group.arms) + len(group.borrowed))


def oracle_s(problem: Problem, mode: Mode) -> float:
    """Predicted seconds until the expected values of a problem are computed."""
    flops = cost.flops_dense(problem, mode if mode is Mode.FWD else Mode.FWD_BWD)
    return min(max(flops / ORACLE_FLOP_PER_S, ORACLE_MIN_S), ORACLE_MAX_S)


def compiles(arm: Arm) -> bool:
    """Whether the backend compiles in the first call of a case."""
    return not backends.is_file(arm.backend) and backends.load(arm.backend).compiles


def _estimated_s(sizes: Floats, rates: Rates) -> Floats:
    """Products and bytes over estimated rates, if every pair were visible, with padding where the backend pads.

    A decoding step has few FLOPs for its bytes, and a prefill many: neither alone predicts one from the other.
    """
    estimated: Floats = sizes[:, _FLOPS] / rates.flop_per_s + sizes[:, _BYTES] / rates.bytes_per_s
    return estimated


def _compile_key(arm: Arm, starts: bool = False) -> str:
    return f"{arm.backend}@{unpinned(arm.device)}" + (" start" if starts else "")


def _key(arm: Arm, dtype: Dtype, mode: Mode) -> str:
    return f"{_compile_key(arm)} {dtype} {mode}"


def estimated_rates(device: Device, dtype: Dtype, backend: str) -> Rates:
    """What a backend does in a second, before anything is measured."""
    if device.kind == "cuda":
        half = dtype in (Dtype.BF16, Dtype.FP16)
        return Rates(flop_per_s=_CUDA_RATE if half else _CUDA_RATE / 10, bytes_per_s=_CUDA_BYTES_PER_S)
    threads, slow = max(device.threads, 1), 1.0 if dtype is Dtype.FP32 else 0.25
    flop_per_s = _CPU_RATES.get(backend, _CPU_RATE) * threads * slow
    return Rates(flop_per_s=flop_per_s, bytes_per_s=_CPU_BYTES_PER_S * threads)
