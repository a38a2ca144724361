"""Predicts the seconds of calls and groups: from estimates at first, then from what this machine measured.

While a run goes on, every finished group corrects the predictions of those that follow.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import cost
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.engine.group import Group
from attnbench.records.arm import Arm, Device
from attnbench.records.case import Case
from attnbench.records.speeds import Speeds
from attnbench.suite.serving.step_cost import Rates

# Calls of one arm in the shortest measurement: first, four sets of inputs, transformed inputs, settling, and rounds.
MIN_CALLS = 7 + 3
# Beside its calls: settling, checks of outputs, memory. Medians of the suite `quick` on a 2-core CPU.
ARM_OVERHEAD_S = 0.5
# Measured on a 2-core CPU: 3.7 to 7.7 s for a graph of flex_attention, 27 s for the first one with a cold cache.
COMPILE_S = 8.0
ROUNDS_S = 1.0  # for the rounds of a group, however small the budget
BUDGET_MARGIN = 1.25  # of a suggested budget, over the prediction
START_S = 1.5  # of a worker: Python and torch
# The oracle computes in float64, up to its limit for each of four sets of inputs.
ORACLE_FLOP_PER_S, ORACLE_MIN_S, ORACLE_MAX_S = 2.5e9, 0.1, 2.6

# Estimates in FLOP/s and bytes/s for one CPU thread on fp32 and one GPU on bf16, until the same backend is measured.
_CPU_RATES = {"sdpa:flash": 5e10, "sdpa": 5e10, "flex": 3e10}
_CPU_RATE, _CUDA_RATE = 1.5e10, 5e13
_CPU_BYTES_PER_S, _CUDA_BYTES_PER_S = 1e10, 1e12
_GATHERED = 3  # keys in pages are read, written side by side, and read again
_CALL_OVERHEAD_S = 5e-5
# Earlier groups of the run outweigh what is stored from the runs before once they took this long.
_PRIOR_S, _LOW_RATIO, _HIGH_RATIO = 10.0, 0.3, 10.0


class Forecast:
    """Predictions for one machine; `speeds` are what earlier runs measured on it."""

    def __init__(self, speeds: Speeds | None = None) -> None:
        speeds = speeds or Speeds()
        self._calls = {name: dict(points) for name, points in speeds.calls.items()}
        self._compile_s = dict(speeds.compile_s)
        self._of_files: set[str] = set()  # keys of `calls` whose backend is a user's file
        # Of the calls of groups, and of what is beside them.
        self._predicted_s = [_PRIOR_S, _PRIOR_S]
        ratios = (speeds.call_ratio, speeds.ratio)
        self._taken_s = [_PRIOR_S * min(max(ratio, _LOW_RATIO), _HIGH_RATIO) for ratio in ratios]

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
        estimated_s, key = _estimate_s(arm.parsed_device, case), _key(arm, case)
        self._calls.setdefault(key, {})[_octave(estimated_s)] = estimated_s, call_s
        if backends.is_file(arm.backend):
            self._of_files.add(key)

    def learn_compile(self, arm: Arm, seconds: float) -> None:
        """Record how long the first call of a compiling backend took. The last record counts, as caches fill."""
        self._compile_s[f"{arm.backend}@{arm.device}"] = seconds

    def learn_group(self, group: Group, taken_s: float) -> None:
        """Record how long a group took whose calls were measured: what takes most of it is corrected most."""
        parts = self._parts(group)
        for place, part_s in enumerate(parts):
            self._predicted_s[place] += part_s
            self._taken_s[place] += part_s * taken_s / sum(parts)

    def call_s(self, arm: Arm, case: Case) -> float:
        """Predicted seconds of one call, scaled from the measurement with the nearest estimate."""
        estimated_s = _estimate_s(arm.parsed_device, case)
        if points := self._calls.get(_key(arm, case)):
            place = _octave(estimated_s)
            nearest_estimated_s, nearest_s = points[min(points, key=lambda other: abs(other - place))]
            return nearest_s * max(estimated_s / nearest_estimated_s, 0.1)
        return _CALL_OVERHEAD_S + estimated_s

    def group_s(self, group: Group) -> float:
        """Predicted seconds of a group whose workers run."""
        return sum(ratio * part_s for ratio, part_s in zip(self.ratios, self._parts(group), strict=True))

    def _parts(self, group: Group) -> tuple[float, float]:
        """Uncorrected seconds of the calls of a group, and of what is beside them."""
        arms = (*group.arms, *group.borrowed)
        compiling = [arm for arm in arms if group.late and arm not in group.borrowed]
        calls_s = sum(MIN_CALLS * self.call_s(arm, group.case(arm)) for arm in arms)
        compile_s = sum(self._compile_s.get(f"{arm.backend}@{arm.device}", COMPILE_S) for arm in compiling)
        return calls_s, ARM_OVERHEAD_S * len(arms) + compile_s + oracle_s(group.problem, group.mode)


def smallest_budget_s(groups: Iterable[Group], forecast: Forecast, cores: int) -> float:
    """A budget within which one of these groups is measured."""
    needed = (start_s((*group.arms, *group.borrowed), cores) + forecast.group_s(group) for group in groups)
    return BUDGET_MARGIN * (START_S + ROUNDS_S + min(needed, default=0.0))  # the oracle starts too


def oracle_s(problem: Problem, mode: Mode) -> float:
    """Predicted seconds until the expected values of a problem are computed."""
    flops = cost.flops_dense(problem, mode if mode is Mode.FWD else Mode.FWD_BWD)
    return min(max(flops / ORACLE_FLOP_PER_S, ORACLE_MIN_S), ORACLE_MAX_S)


def start_s(arms: Iterable[Arm], cores: int) -> float:
    """Predicted seconds until the workers of all arms run, as many at a time as there are cores."""
    return START_S * -(-len(list(arms)) // max(cores, 1))


def _octave(estimated_s: float) -> int:
    return int(estimated_s * 1e9).bit_length()


def _estimate_s(device: Device, case: Case) -> float:
    """Products and bytes over estimated rates, if every pair were visible, with padding where the backend pads.

    A decoding step has few FLOPs for its bytes, and a prefill many: neither alone predicts one from the other.
    """
    problem = case.problem
    if problem.requests and not backends.is_file(case.backend) and backends.load(case.backend).pads:
        problem = replace(problem, requests="", shared_prefix="")
    read = cost.input_bytes(problem) * (_GATHERED if problem.page_size else 1)
    rates, traffic = estimated_rates(device, problem.dtype, case.backend), read + cost.output_bytes(problem, case.mode)
    return cost.flops_dense(problem, case.mode) / rates.flop_per_s + traffic / rates.bytes_per_s


def _key(arm: Arm, case: Case) -> str:
    return f"{arm.backend}@{arm.device} {case.problem.dtype} {case.mode}"


def estimated_rates(device: Device, dtype: Dtype, backend: str) -> Rates:
    """What a backend does in a second, before anything is measured."""
    if device.kind == "cuda":
        half = dtype in (Dtype.BF16, Dtype.FP16)
        return Rates(flop_per_s=_CUDA_RATE if half else _CUDA_RATE / 10, bytes_per_s=_CUDA_BYTES_PER_S)
    threads, slow = max(device.threads, 1), 1.0 if dtype is Dtype.FP32 else 0.25
    flop_per_s = _CPU_RATES.get(backend, _CPU_RATE) * threads * slow
    return Rates(flop_per_s=flop_per_s, bytes_per_s=_CPU_BYTES_PER_S * threads)
