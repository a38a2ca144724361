"""What runs on a node: a process that plans, checks its device, and measures groups. It knows nothing of Ray."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec.structs import replace

from attnbench import units
from attnbench.analysis.restarts import join
from attnbench.analysis.stats import Estimate
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.engine import calibration, plan, sweep
from attnbench.engine.group import Group
from attnbench.engine.group_runner import GroupRunner, RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.request import Request
from attnbench.engine.sweep import Sweep
from attnbench.errors import AttnbenchError
from attnbench.machine import identity
from attnbench.records import ceilings, speeds
from attnbench.records.arm import Arm, Device, parse_device
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Environment, Facts, Procedure, Result, Status
from attnbench.suite import Cell

PARTS = ("matmul", "bandwidth")  # of the short calibration
CONTROL = "naive"  # its copies are the A/A control: it runs on every device
CONTROL_SEQ = {"cpu": 256, "cuda": 2048}
CONTROL_ROUNDS = 10
CONTROL_TRIES = 3
MAX_DIFFERENCE = 0.10  # between equal arms, beyond which a node is too noisy


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself."""

    machine: Facts
    fingerprint: str
    packages: dict[str, str]
    time_s: float  # its clock


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The calibration and the noise check of a node."""

    ceilings: dict[str, Ceilings]  # by device; empty where they could not be measured
    noise: Facts  # of the A/A control: difference and interval as shares
    objection: str = ""  # why the node is drained


class GroupMeasured(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a group, with what the manifest stores of its workers."""

    results: list[Result]
    environments: dict[str, Environment]
    spent: dict[str, float]
    seconds: float  # of the call, without its way to the node and back


class DeviceRates(msgspec.Struct, frozen=True, kw_only=True):
    """The peak rates of one device of a node, and what became of them; or why there are none."""

    device: str
    ceilings: Ceilings | None = None
    note: str = ""


class SlotProcess:
    """Measures on one device of a node: one group at a time."""

    def __init__(self) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it, and the arms set their own
        self._groups: GroupRunner | None = None
        self._restart = 0

    def describe(self) -> Description:
        """The machine and its software."""
        card = {**identity.machine_card(), "python": platform.python_version()}
        fingerprint = identity.fingerprint()[0]
        return Description(machine=card, fingerprint=fingerprint, packages=identity.packages(), time_s=time.time())

    def plan(self, request: Request, interpreted: bool, default_suite: str) -> Sweep | str:
        """The plan of this node for a request, with its machine; or what is wrong with the request."""
        try:
            planned = sweep.prepare(request, interpreted=interpreted, default_suite=default_suite)
            return replace(planned, machine=sweep.this_machine({device.text for device in planned.devices}))
        except AttnbenchError as error:  # by its text: not every exception can be sent
            return str(error)

    def together(self, cells: list[tuple[Cell, list[Arm]]], settings: RunSettings) -> Plan:
        """A plan of this node with one group for each cell."""
        return plan.together(cells, sweep.plan_limits(settings))

    def check(self, settings: RunSettings, device: str) -> Checked:
        """Calibrate the device shortly where it is not calibrated, and compare two equal arms."""
        known = self._calibrate(device)
        ratios: list[Estimate | str] = []
        while len(ratios) < CONTROL_TRIES and (not ratios or noise_objection(ratios[-1])):
            ratios.append(_control(settings, device))
        last = ratios[-1]
        noise: Facts = {"tries": len(ratios)}
        if isinstance(last, Estimate):
            noise |= {"difference": last.value - 1, "low": (last.low or 0.0) - 1, "high": (last.high or 0.0) - 1}
        return Checked(ceilings=known, noise=noise, objection=noise_objection(last))

    def _calibrate(self, device: str) -> dict[str, Ceilings]:
        fingerprint = identity.fingerprint()[0]
        if stored := sweep.calibrated([device], fingerprint):
            return stored
        measured = calibration.measure(parse_device(device), PARTS, deadline=0.0)
        if isinstance(measured, str):
            return {}
        with contextlib.suppress(AttnbenchError):  # a cache that cannot be written
            ceilings.save(fingerprint, measured)
        return {device: measured}

    def calibrate(self, device: str, budget_s: float, force: bool) -> list[DeviceRates] | str:
        """Measure and store the peak rates of this node, of its default devices or of this one; or what is wrong."""
        deadline = time.monotonic() + budget_s
        try:
            return [_measured(each, parts, deadline, force) for each, parts in sweep.devices_to_calibrate(device)]
        except AttnbenchError as error:  # by its text: not every exception can be sent
            return str(error)

    def calibrated(self, device: str) -> list[DeviceRates] | str:
        """The stored peak rates of the same devices."""
        try:
            devices = [each.text for each, _ in sweep.devices_to_calibrate(device)]
        except AttnbenchError as error:
            return str(error)
        stored = sweep.calibrated(devices, identity.fingerprint()[0])
        return [
            DeviceRates(device=each, ceilings=stored.get(each), note="" if each in stored else "not calibrated yet")
            for each in devices
        ]

    def open(self, settings: RunSettings) -> None:
        """Be ready to measure groups with these settings."""
        settings = replace(settings, speeds=speeds.load(identity.fingerprint()[0]))
        self._groups = GroupRunner(settings, lambda text: None).__enter__()

    def measure(self, group: Group, restart: int, left_s: float, rest_s: float) -> GroupMeasured:
        """Measure a group; `left_s`: of the budget, `rest_s`: predicted for the groups after it on this device."""
        groups = self._groups
        assert groups
        if restart != self._restart:
            groups.end_restart()
            self._restart = restart
        started = time.monotonic()
        groups.end = started + left_s
        results = groups.measure(group, restart, rest_s)
        spent = dict(groups.spent)
        groups.spent.clear()
        environments = {arm.id: groups.environments[arm.id] for arm in group.arms if arm.id in groups.environments}
        return GroupMeasured(
            results=results, environments=environments, spent=spent, seconds=time.monotonic() - started
        )

    def close(self) -> None:
        """End all workers, remove their files, and store what was learned of the speed of this machine."""
        if self._groups:
            self._groups.__exit__()
            with contextlib.suppress(AttnbenchError):  # a cache that cannot be written
                speeds.save(identity.fingerprint()[0], self._groups.forecast.speeds)
            self._groups = None


def _measured(device: Device, parts: Sequence[str], deadline: float, force: bool) -> DeviceRates:
    result = calibration.measure(device, parts, deadline)
    if isinstance(result, str):
        return DeviceRates(device=device.text, note=result)
    try:
        note = calibration.save(identity.fingerprint()[0], result, force)
    except AttnbenchError as error:  # rates that cannot be stored are not lost
        note = str(error)
    return DeviceRates(device=device.text, ceilings=result, note=note)


def _control(settings: RunSettings, device: str) -> Estimate | str:
    """The time of an arm over that of its copy; or why it could not be measured."""
    arms = tuple(Arm(backend=CONTROL, device=device, copy=copy) for copy in (1, 2))
    kind = parse_device(device).kind
    problem = Problem(seq_q=CONTROL_SEQ[kind], heads=8, head_dim=64, dtype=sweep.DEFAULT_DTYPE[kind])
    group = Group(id="control", problem=problem, mode=Mode.FWD, arms=arms)
    procedure = Procedure(
        timing=settings.procedures[kind].timing, cache=settings.procedures[kind].cache,
        min_rounds=CONTROL_ROUNDS, max_rounds=CONTROL_ROUNDS,
    )  # fmt: skip
    short = RunSettings(procedures={kind: procedure}, memory_bytes=settings.memory_bytes, reference=CONTROL)
    with GroupRunner(short, lambda text: None) as groups:
        results = groups.measure(group, 0)
    return control_ratio(results)


def control_ratio(results: Sequence[Result]) -> Estimate | str:
    """The paired ratio of the two copies; or why there is none."""
    if failed := [result for result in results if result.status is not Status.OK]:
        return f"{failed[0].status.value}: {failed[0].reason}"
    ratio = next((control.speedup for control in join(list(results)) if control.arm.copy == 2), None)
    return ratio or "its rounds are too few"


def noise_objection(ratio: Estimate | str) -> str:
    """Why the A/A control of a node fails: its interval lies beyond MAX_DIFFERENCE; empty if it does not."""
    if isinstance(ratio, str):
        return f"the A/A control could not be measured: {ratio}"
    low, high = ratio.low or 0.0, ratio.high or float("inf")
    if low <= 1 + MAX_DIFFERENCE and high >= 1 / (1 + MAX_DIFFERENCE):
        return ""
    change, interval = units.change_and_interval(ratio.value - 1, low - 1, high - 1)
    return f"two equal arms differ by {change.lstrip('+-')} (95 % interval {interval})"


def shifted(result: Result, seconds: float) -> Result:
    """The result with its start on a clock that is so many seconds behind."""
    if not result.started_at:
        return result
    started = datetime.fromisoformat(result.started_at) - timedelta(seconds=seconds)
    return replace(result, started_at=started.astimezone(UTC).isoformat(timespec="milliseconds"))
