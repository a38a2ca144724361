"""Problems x arms -> groups of arms that share rounds, cheap to dear, and refusals with their reasons. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec

import msgspec

from attnbench import backends
from attnbench.arm import Arm, Device, parse_device
from attnbench.attention import cost
from attnbench.attention.problem import Dtype, Mode, Problem
from attnbench.backends import Backend
from attnbench.case import Case
from attnbench.result import Procedure, Result, Status
from attnbench.suite import Cell
from attnbench.units import size

AUTO: dict[str, tuple[str, ...]] = {
    "cpu": ("naive", "sdpa:math", "sdpa:flash", "flex"),
    "cuda": (
        "naive",
        "sdpa:math",
        "sdpa:flash",
        "sdpa:efficient",
        "sdpa:cudnn",
        "varlen",
        "flex",
        "xformers",
        "flash-attn:2",
        "flash-attn:3",
        "flash-attn:4",
        "triton",
    ),
}
DEFAULT_REFERENCE = "naive"

# A worker's own memory after its imports, and the oracle's scratch: what a prediction adds to tensors.
WORKER_BYTES = 400 * 1024**2
ORACLE_BYTES = 600 * 1024**2

# Calls of one arm in the shortest measurement: first, two sets of inputs, negated inputs, settling, rounds.
LEAST_CALLS = 5 + 3
ARM_OVERHEAD_S = 0.5
COMPILE_S = 8.0  # measured on a 2-core CPU: 3.7 to 7.7 s a graph of flex_attention, 27 s for the first of a cold cache

# Guesses of one CPU thread and of one GPU in FLOP/s on fp32 and bf16; they only order cases and share out the budget,
# and give way to the first measurement of the same arm (see Forecast).
_CPU_RATES = {"sdpa:flash": 5e10, "sdpa": 5e10, "flex": 3e10}
_CPU_RATE, _CUDA_RATE = 1.5e10, 5e13
_CALL_OVERHEAD_S = 5e-5


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One problem in one mode, and the arms that measure it in common rounds."""

    id: str
    problem: Problem
    mode: Mode
    arms: tuple[Arm, ...]
    borrowed: tuple[Arm, ...] = ()  # reference arms that have their Result elsewhere, here only to be paired with
    late: bool = False  # a later pass, for backends that compile
    peak_bytes: int = 0  # predicted, of all arms and the oracle together
    seconds: float = 0.0  # predicted, of the shortest measurement

    def case(self, arm: Arm) -> Case:
        """What that arm measures here."""
        return Case(problem=self.problem, backend=arm.backend, mode=self.mode)


class Plan(msgspec.Struct, kw_only=True):
    """What will be measured, in order, and what will not."""

    groups: list[Group]
    refusals: list[Result]
    arms: list[Arm]
    impossible: list[tuple[str, str]]  # the values of a cell that is no problem, and why

    @property
    def cases(self) -> int:
        """Everything asked for: measured and refused."""
        return sum(len(group.arms) for group in self.groups) + len(self.refusals) + len(self.impossible)

    @property
    def seconds(self) -> float:
        """Predicted, of the shortest measurement of everything."""
        return sum(group.seconds for group in self.groups)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan depends on beside cells and arms."""

    memory_bytes: int  # the limit for a group
    procedures: dict[str, Procedure]  # by kind of device
    reference: str = DEFAULT_REFERENCE
    gpu_memory_bytes: dict[int, int] = {}  # by index
    capability: dict[int, tuple[int, int]] = {}  # by index


class Forecast:
    """How long one call takes: a guess at first, then from what was measured of the same arm."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Dtype, Mode], list[tuple[int, float]]] = {}
        self._compile_s: dict[str, float] = {}

    def learn_compile(self, arm: Arm, seconds: float) -> None:
        """Remember how long a compiling backend took to its first call; the last one counts, as caches fill."""
        self._compile_s[arm.id] = seconds

    def learn(self, arm: Arm, case: Case, call_s: float) -> None:
        """Remember one measured call."""
        work = cost.flops_dense(case.problem, case.mode)
        self._seen.setdefault((arm.id, case.problem.dtype, case.mode), []).append((work, call_s))

    def call_s(self, arm: Arm, case: Case) -> float:
        """Seconds of one call."""
        work = cost.flops_dense(case.problem, case.mode)
        if seen := self._seen.get((arm.id, case.problem.dtype, case.mode)):
            near_work, near_s = min(seen, key=lambda pair: abs(pair[0] - work))
            return near_s * max(work / near_work, 0.1)
        return _CALL_OVERHEAD_S + work / _rate(_device(arm.device), case)

    def group_s(self, group: Group) -> float:
        """Seconds of the shortest measurement of a group."""
        total = 0.0
        for arm in (*group.arms, *group.borrowed):
            case = group.case(arm)
            total += ARM_OVERHEAD_S + LEAST_CALLS * self.call_s(arm, case)
            if group.late and arm not in group.borrowed:
                total += self._compile_s.get(arm.id, COMPILE_S)
        return total


def arms_of(names: Sequence[str], devices: Sequence[Device], interpreted: bool = False) -> list[Arm]:
    """One arm for each backend on each device; the same name again is a twin.

    `interpreted`: on a CPU a backend that cannot be timed there runs in its interpreter.
    """
    arms: list[Arm] = []
    for device in devices:
        for name in names:
            twins = sum(arm.backend == name and arm.device == device.text for arm in arms)
            env = _interpreter(name) if interpreted and device.kind == "cpu" else ()
            arms.append(Arm(backend=name, device=device.text, twin=twins + 1, env=env))
    return arms


def _interpreter(name: str) -> tuple[tuple[str, str], ...]:
    return () if backends.is_file(name) else backends.load(name).interpreter


def auto(kind: str) -> tuple[str, ...]:
    """The backends measured by default: on a CPU those that run there, on a GPU those whose packages are installed."""
    return tuple(name for name in AUTO[kind] if not missing(backends.load(name)))


def missing(backend: Backend) -> list[str]:
    """Modules that the backend needs and that are not installed here; looked up, not imported."""
    return [module for module in backend.requires if not _installed(module)]


def make(asked: Iterable[tuple[Cell, Sequence[Arm]]], terms: Terms, impossible: Iterable[tuple[str, str]] = ()) -> Plan:
    """Group the cells, refuse what cannot run, and order the rest from cheap to dear."""
    forecast = Forecast()
    groups: list[Group] = []
    refusals: list[Result] = []
    arms: dict[str, Arm] = {}
    for cell, wanted in asked:
        runnable = []
        for arm in wanted:
            arms[arm.id] = arm
            case = Case(problem=cell.problem, backend=arm.backend, mode=cell.mode)
            refused = refuse(case, arm, terms)
            if refused is None:
                runnable.append(arm)
            else:
                refusals.append(_refusal(case, arm, terms, *refused))
        groups += _groups_of(cell, runnable, terms)
    timed = [msgspec.structs.replace(group, seconds=forecast.group_s(group)) for group in groups]
    # A compile counts into the seconds: it comes after all that is cheaper, and before what is dearer than it.
    timed.sort(key=lambda group: (group.seconds, group.late))
    numbered = [msgspec.structs.replace(group, id=f"g{number:05d}") for number, group in enumerate(timed)]
    return Plan(groups=numbered, refusals=refusals, arms=list(arms.values()), impossible=list(impossible))


def together(asked: Iterable[tuple[Cell, Sequence[Arm]]], terms: Terms) -> Plan:
    """A group of each cell and its arms as they are given: what must share rounds, whatever else there is.

    An arm that cannot run is refused by itself. Order is that of `asked`.
    """
    forecast = Forecast()
    groups: list[Group] = []
    refusals: list[Result] = []
    arms: dict[str, Arm] = {}
    for cell, wanted in asked:
        refused = {
            arm.id: refuse(Case(problem=cell.problem, backend=arm.backend, mode=cell.mode), arm, terms)
            for arm in wanted
        }
        arms |= {arm.id: arm for arm in wanted}
        for arm in wanted:
            if reason := refused[arm.id]:
                case = Case(problem=cell.problem, backend=arm.backend, mode=cell.mode)
                refusals.append(_refusal(case, arm, terms, *reason))
        if runnable := [arm for arm in wanted if not refused[arm.id]]:
            group = _group(cell, runnable, late=any(map(_compiles, runnable)))
            named = msgspec.structs.replace(group, id=f"g{len(groups):05d}", seconds=forecast.group_s(group))
            groups.append(named)
    return Plan(groups=groups, refusals=refusals, arms=list(arms.values()), impossible=[])


def refuse(case: Case, arm: Arm, terms: Terms) -> tuple[Status, str] | None:
    """Why this case will not be tried, as far as can be told without the device; None if it will."""
    if backends.is_file(arm.backend):
        return None  # a user's file is read by the worker alone
    backend = backends.load(arm.backend)
    device = _device(arm.device)
    capability = terms.capability.get(device.index, (0, 0)) if device.kind == "cuda" else (0, 0)
    if device.kind not in backend.limits:
        return Status.UNAVAILABLE, "; ".join(backend.objections(case, device.kind))
    if not arm.python and (absent := missing(backend)):
        hint = f"; install: {backend.install}" if backend.install else ""
        return Status.UNAVAILABLE, f"not installed: {', '.join(absent)}{hint}"
    interpreted = bool(backend.interpreter) and set(backend.interpreter) <= set(arm.env)
    if device.kind == "cpu" and backend.untimed and not interpreted:
        return Status.UNAVAILABLE, backend.untimed
    if objections := backend.objections(case, device.kind, capability):
        return Status.UNSUPPORTED, "; ".join(objections)
    needed, limit = peak_bytes(case) or 0, _limit(device, terms)
    if device.kind == "cpu":
        needed += WORKER_BYTES + ORACLE_BYTES + cost.input_bytes(case.problem)
    if needed > limit:
        return Status.SKIPPED, f"needs {size(needed)}, limit {size(limit)}"
    return None


def scratch_bytes(case: Case) -> int | None:
    """Predicted, of one call beyond its inputs and outputs; None for a user's file."""
    return None if backends.is_file(case.backend) else backends.load(case.backend).extra_bytes(case)


@lru_cache(maxsize=200_000)
def peak_bytes(case: Case) -> int | None:
    """Predicted, of one call; None for a user's file, which only the worker reads."""
    return None if backends.is_file(case.backend) else backends.load(case.backend).peak_bytes(case)


def _groups_of(cell: Cell, arms: list[Arm], terms: Terms) -> list[Group]:
    """The first pass holds all that does not compile; each compiling arm comes later, beside the reference arm."""
    early = [arm for arm in arms if not _compiles(arm)]
    late = [arm for arm in arms if _compiles(arm)]
    groups = [_group(cell, part) for part in _fitting(cell, early, terms)]
    for arm in late:
        partners = [other for other in early if _is_reference(other, arm, terms)]
        fits = _peak(cell, [arm, *partners]) <= _limit(_device(arm.device), terms)
        groups.append(_group(cell, [arm], borrowed=partners if fits else [], late=True))
    return groups


def _fitting(cell: Cell, arms: list[Arm], terms: Terms) -> list[list[Arm]]:
    """All arms in one group if they fit together; else parts, filled in order. All of them hold memory at once."""
    parts: list[list[Arm]] = []
    for arm in arms:
        if parts and _peak(cell, [*parts[-1], arm]) <= _limit(_device(arm.device), terms):
            parts[-1].append(arm)
        else:
            parts.append([arm])
    return parts


def _group(cell: Cell, arms: list[Arm], borrowed: Sequence[Arm] = (), late: bool = False) -> Group:
    peak = _peak(cell, [*arms, *borrowed])
    return Group(
        id="",
        problem=cell.problem,
        mode=cell.mode,
        arms=tuple(arms),
        borrowed=tuple(borrowed),
        late=late,
        peak_bytes=peak,
    )


def _peak(cell: Cell, arms: Sequence[Arm]) -> int:
    total = ORACLE_BYTES
    for arm in arms:
        total += WORKER_BYTES + cost.input_bytes(cell.problem)
        total += peak_bytes(Case(problem=cell.problem, backend=arm.backend, mode=cell.mode)) or 0
    return total


def _is_reference(other: Arm, arm: Arm, terms: Terms) -> bool:
    return other.backend == terms.reference and other.device == arm.device and other.twin == 1


def _refusal(case: Case, arm: Arm, terms: Terms, status: Status, reason: str) -> Result:
    procedure = terms.procedures[_device(arm.device).kind]
    return Result(case=case, arm=arm, status=status, reason=reason, procedure=procedure, case_id=case.id)


def _limit(device: Device, terms: Terms) -> int:
    if device.kind == "cuda":
        return terms.gpu_memory_bytes.get(device.index, 1 << 62)
    return terms.memory_bytes


def _rate(device: Device, case: Case) -> float:
    if device.kind == "cuda":
        return _CUDA_RATE if case.problem.dtype in (Dtype.BF16, Dtype.FP16) else _CUDA_RATE / 10
    slow = 1.0 if case.problem.dtype is Dtype.FP32 else 0.25
    return _CPU_RATES.get(case.backend, _CPU_RATE) * max(device.threads, 1) * slow


@lru_cache(maxsize=256)
def _device(text: str) -> Device:
    return parse_device(text)


@lru_cache(maxsize=256)
def _compiles(arm: Arm) -> bool:
    return not backends.is_file(arm.backend) and backends.load(arm.backend).compiles


@lru_cache(maxsize=64)
def _installed(module: str) -> bool:
    # Of a dotted name only the package: looking further would import it, and torch with it.
    return find_spec(module.partition(".")[0]) is not None
