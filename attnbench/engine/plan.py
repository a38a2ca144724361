"""From problems and arms to groups of arms that share rounds, cheapest first, and refusals. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from attnbench import backends
from attnbench.attention import cost
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import interpreters
from attnbench.engine.candidates import ORACLE_BYTES, WORKER_BYTES, Candidate, PlanLimits
from attnbench.engine.forecast import Forecast, batched
from attnbench.engine.group import Group
from attnbench.engine.interpreters import HERE, Pythons
from attnbench.errors import UnknownNameError
from attnbench.machine import resources
from attnbench.records.arm import Arm, Device
from attnbench.records.case import Case
from attnbench.records.result import Key, Result
from attnbench.records.speeds import Speeds
from attnbench.suite import Cell
from attnbench.units import words

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
        "flashinfer",
        "triton",
    ),
}
# Added to those of `auto` for a problem that they can run: they refuse every other one.
SPECIALISED: dict[str, tuple[str, ...]] = {
    "cpu": ("sdpa:cascade", "mla:absorbed", "mla:expanded"),
    "cuda": ("sdpa:cascade", "mla:absorbed", "mla:expanded", "flashinfer:mla", "flashinfer:cascade", "triton:cascade"),
}
PREFERRED_REFERENCE = "naive"
_CHUNK = 1000  # cells that are planned and then predicted: what is counted of a problem is still known


class Rest(NamedTuple):
    """What is left of a plan."""

    cases: int
    results: int  # one for each case and restart; a refusal has one for all restarts
    seconds: float  # predicted
    within: int | None = None  # cases that the budget suffices for, by prediction; None where it does for all


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be measured, in order, and what will not."""

    groups: tuple[Group, ...]
    refusals: tuple[Result, ...] = ()
    arms: tuple[Arm, ...]
    impossible: tuple[tuple[str, str], ...] = ()  # combinations that are no problem, and why
    times_from: str = ""  # what the predicted times are based on

    @property
    def cases(self) -> int:
        """Number of cases: planned, refused and impossible."""
        return sum(len(group.arms) for group in self.groups) + len(self.refusals) + len(self.impossible)

    def continued(self, part: str) -> Plan:
        """The same plan with names of groups that no earlier part of the run has: equal names mean shared rounds."""
        return replace(self, groups=tuple(replace(group, id=f"{part}-{group.id}") for group in self.groups))

    def without(self, done: Collection[Key], restarts: Sequence[int]) -> list[Group]:
        """The groups with the arms that lack one of these restarts, without those that lack none."""
        if not done:
            return list(self.groups)
        groups = []
        for group in self.groups:
            cases = {arm: group.case(arm).id for arm in group.arms}
            arms = [arm for arm in cases if any((cases[arm], arm.id, each) not in done for each in restarts)]
            if len(arms) == len(group.arms):
                groups.append(group)
            elif arms:
                groups.append(replace(group.only(arms), seconds=0.0))
        return groups

    def left(self, done: Collection[Key], restarts: Sequence[int]) -> Plan:
        """The plan of a run that continues where these keys are stored."""
        if not done:
            return self
        refusals = tuple(refusal for refusal in self.refusals if refusal.key not in done)
        return replace(self, groups=tuple(self.without(done, restarts)), refusals=refusals)

    def rest(self, done: Collection[Key], restarts: Sequence[int], speeds: Speeds) -> Rest:
        """What these restarts measure of this plan if these keys are stored."""
        refusals = sum(refusal.key not in done for refusal in self.refusals) if done else len(self.refusals)
        cases = refusals + sum(len(group.arms) for group in self.without(done, restarts))
        forecast, results, rest_s = Forecast(speeds), refusals, 0.0
        for restart in restarts:
            groups = self.without(done, [restart])
            arms = {arm.id: arm for group in groups for arm in group.arms}
            results += sum(len(group.arms) for group in groups)
            if restart:
                groups = [replace(group, probes=0, seconds=0.0) if group.probes else group for group in groups]
            rest_s += sum(group.seconds for group in groups)
            rest_s += sum(forecast.groups_s(group for group in groups if not group.seconds))
            rest_s += forecast.start_s(arms.values(), len(resources.available_cores()))
        return Rest(cases, results, rest_s)

    def within(self, budget_s: float | None, speeds: Speeds) -> list[Group]:
        """The groups that a budget suffices for in one restart, by prediction; workers start for their first group."""
        if budget_s is None:
            return list(self.groups)
        forecast, cores = Forecast(speeds), len(resources.available_cores())
        started: dict[str, Arm] = {}
        fitting, start_s, spent_s = [], 0.0, 0.0
        for group in self.groups:
            arms = {arm.id: arm for arm in (*group.arms, *group.borrowed)}
            needed = started | arms if arms.keys() - started.keys() else started
            needed_s = start_s if needed is started else forecast.start_s(needed.values(), cores)
            group_s = group.seconds or forecast.group_s(group)
            if spent_s + group_s + needed_s <= budget_s:
                started, start_s, spent_s = needed, needed_s, spent_s + group_s
                fitting.append(group)
        return fitting

    @property
    def seconds(self) -> float:
        """Predicted, of everything in one restart."""
        return self.rest((), [0], Speeds()).seconds


def arms_of(
    names: Sequence[str], devices: Sequence[Device], interpreted: bool = False, pythons: Pythons = HERE
) -> list[Arm]:
    """One arm for each backend on each device. A repeated name makes a further copy.

    `interpreted`: on a CPU, a backend that cannot be timed there runs in its interpreter.
    """
    arms: list[Arm] = []
    for device in devices:
        for name in names:
            copies = sum(arm.backend == name and arm.device == device.text for arm in arms)
            timed = not interpreted or device.kind != "cpu" or backends.is_file(name)
            env = () if timed else backends.load(name).interpreter
            python = interpreters.of(name, pythons)
            arms.append(Arm(backend=name, device=device.text, copy=copies + 1, env=env, python=python))
    return arms


def auto(kind: str, problem: Problem, mode: Mode, pythons: Pythons = HERE) -> tuple[str, ...]:
    """The backends measured by default on a kind of device, without those whose packages are not installed."""
    special = SPECIALISED[kind] if problem.kv or problem.shared_prefix else ()
    special = tuple(name for name in special if _takes(name, kind, problem, mode))
    return tuple(name for name in (*AUTO[kind], *special) if not _missing(name, pythons))


def backend_names(names: tuple[str, ...], kind: str, cell: Cell, pythons: Pythons = HERE) -> Iterator[str]:
    """Single backends for the words of a list: those of `auto`, `libraries` and `all`."""
    for name in names:
        if name == "auto":
            yield from auto(kind, cell.problem, cell.mode, pythons)
        elif name == "libraries":
            yield from libraries(kind, pythons)
        else:
            yield from backends.names() if name == "all" else (name,)


def named_backends(text: str, where: str = "--backend") -> tuple[str, ...]:
    """The words of a comma list of backends. Raises UsageError for a name or a file that is none."""
    names = words(text, where) if text else ()
    for name in names:
        if backends.is_file(name):
            from attnbench.backends import plugin

            plugin.check(name)
        elif backends.is_folder(name):
            backends.load(name)
        elif name not in ("auto", "libraries", "all", *backends.BUILTIN) and name not in backends.names():
            raise UnknownNameError("backend", name, backends.names(), where=where)
    return names


def all_libraries(kind: str) -> tuple[str, ...]:
    """The backends of libraries beside torch that run on a kind of device."""
    loaded = map(backends.load, backends.BUILTIN)
    return tuple(each.name for each in loaded if each.outside_torch and kind in each.limits)


def libraries(kind: str, pythons: Pythons = HERE) -> tuple[str, ...]:
    """Those of the libraries that are installed."""
    return tuple(name for name in all_libraries(kind) if not _missing(name, pythons))


def _missing(name: str, pythons: Pythons) -> bool:
    """Whether a backend is not installed where its arms start, or is installed in an unsupported version."""
    backend, arm = backends.load(name), Arm(backend=name, device="cpu", python=interpreters.of(name, pythons))
    return bool(interpreters.missing(backend, arm) or interpreters.wrong_version(backend, arm))


def _takes(name: str, kind: str, problem: Problem, mode: Mode) -> bool:
    return not backends.load(name).objections(Case(problem=problem, backend=name, mode=mode), kind)


class Member(NamedTuple):
    """An arm that measures a problem."""

    candidate: Candidate
    peak_bytes: int | None  # predicted, of one call; None for a user's file


def make(
    cells: Iterable[tuple[Cell, Sequence[Arm]]], limits: PlanLimits, impossible: Iterable[tuple[str, str]] = ()
) -> Plan:
    """Group the cells, refuse what cannot run, and order the groups by the seconds of a case, the cheapest first."""
    plan = _planned(cells, limits, _groups_of)
    # The seconds of a group that compiles include the compilation, which puts it among cases as expensive.
    groups = sorted(plan.groups, key=lambda group: (group.seconds / len(group.arms), group.late))
    return replace(plan, groups=_numbered(groups), impossible=tuple(impossible))


def together(cells: Iterable[tuple[Cell, Sequence[Arm]]], limits: PlanLimits) -> Plan:
    """One group for each cell with all its arms, in the given order: arms that must share rounds, as in a gate."""

    def groups_of(cell: Cell, members: Sequence[Member], limits: PlanLimits) -> list[Group]:
        return [_group(cell, members, limits, late=any(member.candidate.compiles for member in members))]

    plan = _planned(cells, limits, groups_of)
    return replace(plan, groups=_numbered(plan.groups))


def _planned(
    cells: Iterable[tuple[Cell, Sequence[Arm]]],
    limits: PlanLimits,
    groups_of: Callable[[Cell, Sequence[Member], PlanLimits], list[Group]],
) -> Plan:
    """The groups that `groups_of` makes of a cell and the arms that can run it, and the results of the other arms."""
    forecast = Forecast(limits.speeds)
    candidate_of = cache(partial(Candidate, limits=limits))
    timed: list[Group] = []
    refusals: list[Result] = []
    arms: dict[str, Arm] = {}
    for chunk in batched(cells, _CHUNK):
        groups: list[Group] = []
        for cell, arms_of_cell in chunk:
            members = []
            for arm in arms_of_cell:
                arms[arm.id] = arm
                case, candidate = Case(problem=cell.problem, backend=arm.backend, mode=cell.mode), candidate_of(arm)
                refusal, peak_bytes = candidate.check(case)
                if refusal:
                    refusals.append(refusal.result(case, arm, limits.procedures[arm.parsed_device.kind]))
                else:
                    members.append(Member(candidate, peak_bytes))
            groups += groups_of(cell, members, limits) if members else []
        timed += forecast.timed(groups)
    return Plan(
        groups=tuple(timed), refusals=tuple(refusals), arms=tuple(arms.values()), times_from=forecast.basis.text
    )


def _numbered(groups: Iterable[Group]) -> tuple[Group, ...]:
    return tuple(replace(group, id=f"g{number:05d}") for number, group in enumerate(groups))


def is_reference(other: Arm, arm: Arm, reference: str) -> bool:
    """Whether the speed-up of `arm` is against `other`: the first copy of the reference backend on its device."""
    return other.backend == reference and other.device == arm.device and other.copy == 1


def missing_arms(groups: Iterable[Group], restart: int, done: Collection[Key], reference: str) -> Iterator[Group]:
    """The groups without the arms that are done, whose reference arms among those are borrowed for the speed-up."""
    for group in groups:
        stored = [arm for arm in group.arms if (group.case(arm).id, arm.id, restart) in done]
        if arms := tuple(arm for arm in group.arms if arm not in stored):
            partners = [other for other in stored if any(is_reference(other, arm, reference) for arm in arms)]
            of_restart = 0 if restart else group.probes
            yield replace(group.only(arms), borrowed=(*group.borrowed, *partners), probes=of_restart)


def reference_of(cells: Sequence[tuple[Cell, Sequence[Arm]]], limits: PlanLimits) -> str:
    """The backend that speed-ups are relative to by default: naive, else the first that can serve; empty if none can.

    A backend can serve if it runs in the first pass, in which it shares rounds with others, and can run a case.
    """
    candidate_of = cache(partial(Candidate, limits=limits))
    names = dict.fromkeys(arm.backend for _, arms in cells for arm in arms if not candidate_of(arm).compiles)
    for name in sorted(names, key=lambda name: name != PREFERRED_REFERENCE):
        for cell, arms in cells:
            case = Case(problem=cell.problem, backend=name, mode=cell.mode)
            if any(arm.backend == name and candidate_of(arm).check(case).refusal is None for arm in arms):
                return name
    return ""


def _groups_of(cell: Cell, members: Sequence[Member], limits: PlanLimits) -> list[Group]:
    """Groups of the first pass, and a group of the second for each arm that compiles, with the reference arm."""
    early = [member for member in members if not member.candidate.compiles]
    parts: list[list[Member]] = []  # one if all arms fit into memory at once, else several that do, filled in order
    for member in early:
        if parts and _bytes(cell, [*parts[-1], member]) <= member.candidate.memory_bytes:
            parts[-1].append(member)
        else:
            parts.append([member])
    groups = [_group(cell, part, limits, _partners(cell, part, early, limits)) for part in parts]
    late = [[member] for member in members if member.candidate.compiles]
    return groups + [_group(cell, part, limits, _partners(cell, part, early, limits), late=True) for part in late]


def _partners(cell: Cell, part: Sequence[Member], early: Sequence[Member], limits: PlanLimits) -> list[Member]:
    """The reference arms of other groups that join this one for its speed-ups, if they fit into memory as well."""
    arms = [member.candidate.arm for member in part]
    partners = [
        other
        for other in early
        if other not in part and any(is_reference(other.candidate.arm, arm, limits.reference) for arm in arms)
    ]
    fits = not partners or _bytes(cell, [*part, *partners]) <= part[0].candidate.memory_bytes
    return partners if fits else []


def _group(
    cell: Cell, members: Sequence[Member], limits: PlanLimits, borrowed: Sequence[Member] = (), late: bool = False
) -> Group:
    return Group(
        id="",
        problem=cell.problem,
        mode=cell.mode,
        arms=tuple(member.candidate.arm for member in members),
        borrowed=tuple(member.candidate.arm for member in borrowed),
        late=late,
        probes=limits.probes,
        peaks_bytes=tuple(member.peak_bytes for member in members),
        layers=cell.layers,
    )


def group_bytes(problem: Problem, peaks_bytes: Iterable[int | None]) -> int:
    """Predicted bytes of a group whose calls have these peaks: of its workers and its oracle."""
    of_worker = WORKER_BYTES + cost.input_bytes(problem)
    return ORACLE_BYTES + sum(of_worker + (peak_bytes or 0) for peak_bytes in peaks_bytes)


def _bytes(cell: Cell, members: Iterable[Member]) -> int:
    return group_bytes(cell.problem, (member.peak_bytes for member in members))
