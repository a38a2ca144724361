"""Whether sets of cores disturb each other: an A/A check of one problem, alone on each and on all at once."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from attnbench.analysis import noise_floor, stats
from attnbench.analysis.stats import Estimate, Over
from attnbench.engine.arm_session import ArmSession
from attnbench.engine.group import Group
from attnbench.engine.group_runner import GroupRunner, RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.worker_process import WorkerFailedError
from attnbench.records.arm import Arm, unpinned
from attnbench.units import change, margin

LOOKS = {
    12: 0.3,
    18: 0.2,
    26: 0.2,
    36: 0.3,
}  # rounds of a look: its share of the allowed error, as `stats.looks` has it
BLOCK_S = 0.1  # long enough that blocks which start together overlap
MAX_CALL_S = 0.1  # of the problem
ASSUMED = 0.03  # the noise floor, where no A/A controls of this machine are stored


class Disturbance(NamedTuple):
    """The times of each core set beside the others over those alone, by device; or why they were not measured."""

    ratios: Mapping[str, Estimate]
    floors: Mapping[str, float]  # by device, as shares
    failure: str = ""

    @property
    def excluded(self) -> bool:
        """Whether the interval of every core set is within the noise floor."""
        return bool(self.ratios) and all(
            (ratio.low or 0.0) >= 1 / (1 + self.floors[device]) and ratio.high and ratio.high <= 1 + self.floors[device]
            for device, ratio in self.ratios.items()
        )

    @property
    def shown(self) -> bool:
        """Whether the interval of some core set lies beyond the noise floor."""
        return any(
            (ratio.low or 0.0) > 1 + self.floors[device] or (ratio.high or math.inf) < 1 / (1 + self.floors[device])
            for device, ratio in self.ratios.items()
        )

    @property
    def text(self) -> str:
        """The changes with their intervals, or why there are none."""
        if self.failure:
            return self.failure
        texts = []
        for device, ratio in self.ratios.items():
            ends = (change((end or 0.0) - 1) for end in (ratio.low, ratio.high))
            floor = margin(self.floors[device])
            texts.append(f"{device} {change(ratio.value - 1)} ({' to '.join(ends)}, noise floor {floor})")
        return "; ".join(texts)


def check(plan: Plan, settings: RunSettings, fingerprint: str, phase: Callable[[str], None]) -> Disturbance:
    """Time one problem of the plan on all its devices, alone and beside each other."""
    group = checked_group(plan)
    if group is None:
        return Disturbance({}, {}, "no backend runs on all of them")
    procedures = {kind: replace(each, block_s=BLOCK_S) for kind, each in settings.procedures.items()}
    short = RunSettings(procedures=procedures, memory_bytes=settings.memory_bytes, timeout_s=settings.timeout_s)
    with GroupRunner(short, phase) as groups, groups.ready(group) as sessions:
        if failed := sessions.results:
            return Disturbance({}, {}, f"{failed[0].arm.device}: {failed[0].status.value}: {failed[0].reason}")
        try:
            return compare(sessions.live, fingerprint)
        except WorkerFailedError as failure:
            return Disturbance({}, {}, failure.reason)


def checked_group(plan: Plan) -> Group | None:
    """The problem with the longest calls up to MAX_CALL_S, else the shortest, with one backend on each device."""
    devices = {arm.device for group in plan.groups for arm in group.arms}
    alike = ((max((*group.calls_s, 0.0)), group, _alike(group, devices)) for group in plan.groups)
    groups = [(call_s, replace(group, arms=arms, borrowed=())) for call_s, group, arms in alike if arms]
    if not groups:
        return None
    return min(groups, key=lambda each: (each[0] > MAX_CALL_S, abs(each[0] - MAX_CALL_S)))[1]


def _alike(group: Group, devices: set[str]) -> tuple[Arm, ...]:
    """The arms of the first backend that the group has on every device."""
    by_name: dict[tuple[str, ...], list[Arm]] = {}
    for arm in () if group.late else group.arms:
        by_name.setdefault((arm.name, *arm.settings), []).append(arm)
    return next((tuple(arms) for arms in by_name.values() if len(arms) == len(devices)), ())


def compare(sessions: Sequence[ArmSession], fingerprint: str) -> Disturbance:
    """Blocks of each session alone and of all at once, in turn, until a look shows or excludes a difference."""
    logs: dict[str, list[float]] = {session.arm.device: [] for session in sessions}
    floors = {session.arm.device: _floor(fingerprint, session.arm.device, session.call_s) for session in sessions}
    result = Disturbance({}, {})
    with ThreadPoolExecutor(len(sessions)) as pool:
        for number in range(max(LOOKS)):
            steps = [[session] for session in sessions] + [list(sessions)]
            for position, step in enumerate(reversed(steps) if number % 2 else steps):
                list(pool.map(partial(ArmSession.time, number=number, position=position), step))
            for session in sessions:
                pair = session.medians[-1 - number % 2], session.medians[-2 + number % 2]
                if pair[0] and pair[1]:  # beside the others, and alone
                    logs[session.arm.device].append(math.log(pair[0] / pair[1]))
            if share := LOOKS.get(number + 1):
                result = at_look(logs, floors, share)
                if result.excluded or result.shown:
                    break
    return result


def at_look(logs: Mapping[str, Sequence[float]], floors: Mapping[str, float], share: float) -> Disturbance:
    """What one look shows. The intervals of all core sets at all looks hold at once with 95 %."""
    confidence = 1 - (1 - stats.CONFIDENCE) * share / len(logs)
    ratios = {
        device: stats.exponential(stats.t_estimate(np.array(values), Over.ROUNDS, confidence))
        for device, values in logs.items()
    }
    return Disturbance(ratios, floors)


def _floor(fingerprint: str, device: str, call_s: float) -> float:
    """The difference that equal arms show in calls of that duration."""
    pairs = noise_floor.load(fingerprint, unpinned(device))
    floors = {floor.shortest_s: floor.effect for floor in noise_floor.classes(pairs)}
    return floors.get(noise_floor.class_of(call_s), ASSUMED)
