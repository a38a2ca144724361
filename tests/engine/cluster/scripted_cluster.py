"""A cluster in this process: its replies are scripted, and nothing is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from attnbench.engine.cluster.nodes import ClusterDevice, ClusterNode
from attnbench.engine.cluster.processes import ProcessLostError
from attnbench.engine.cluster.slot_process import Checked, Description, GroupMeasured
from attnbench.engine.group import Group
from attnbench.engine.group_runner import RunSettings
from attnbench.records.result import Environment, Facts, Procedure, Result, Status

Measure = Callable[["ScriptedProcess", Group, int], None]


def node(name: str, hardware: str = "cpu", gpus: int = 0) -> ClusterNode:
    return ClusterNode(id=f"id of {name}", name=name, hardware=hardware, cpus=1.0, gpus=gpus)


class ScriptedProcess:
    """A process on one device."""

    def __init__(self, device: ClusterDevice) -> None:
        self.device, self.ended = device, False


class ScriptedCluster:
    """Nodes that may be changed while a run goes on. `measure` may raise ProcessLostError."""

    def __init__(self, *nodes: ClusterNode, measure: Measure = lambda *_: None) -> None:
        self.alive = list(nodes)
        self.measure = measure
        self.objections: dict[str, str] = {}  # of the A/A control, by node
        self.packages: dict[str, dict[str, str]] = {}  # by node
        self.clock_ahead_s: dict[str, float] = {}  # by node
        self.measured: list[tuple[str, str, int]] = []  # device, group, restart
        self.checked: list[str] = []
        self.closed: list[str] = []
        self.device_facts: dict[str, Facts] = {}  # by node
        self.status = Status.OK  # of every result
        self.processes: list[ScriptedProcess] = []
        self._calls: dict[int, tuple[ScriptedProcess, str, tuple[Any, ...]]] = {}
        self._count = 0
        self._procedures: dict[str, Procedure] = {}

    def nodes(self) -> list[ClusterNode]:
        return list(self.alive)

    def start(self, device: ClusterDevice) -> ScriptedProcess:
        assert all(each.ended for each in self.processes if each.device == device), "two processes on one device"
        self.processes.append(ScriptedProcess(device))
        return self.processes[-1]

    def call(self, process: ScriptedProcess, method: str, *arguments: object) -> int:
        assert not process.ended
        busy = [each for each, other, _ in self._calls.values() if other == method == "measure"]
        assert process not in busy, "two groups on one device"
        if method == "close":
            self.closed.append(process.device.name)
        self._count += 1
        self._calls[self._count] = process, method, arguments
        return self._count

    def ready(self, references: Sequence[int], _timeout_s: float) -> list[int]:
        return list(references)[:1]

    def reply(self, reference: int) -> object:
        process, method, arguments = self._calls.pop(reference)
        reply: object = getattr(self, f"_{method}")(process, *arguments)
        return reply

    def end(self, process: ScriptedProcess) -> None:
        process.ended = True
        self._calls = {number: call for number, call in self._calls.items() if call[0] is not process}

    def _describe(self, process: ScriptedProcess) -> Description:
        name = process.device.node.name
        packages = self.packages.get(name, {"torch": "2.9"})
        time_s = time.time() + self.clock_ahead_s.get(name, 0.0)
        return Description(machine={"cpu": "CPU"}, fingerprint="f", packages=packages, time_s=time_s)

    def _check(self, process: ScriptedProcess, *_: object) -> Checked:
        self.checked.append(process.device.name)
        return Checked(ceilings={}, noise={"tries": 1}, objection=self.objections.get(process.device.name, ""))

    def _open(self, _: ScriptedProcess, settings: RunSettings) -> None:
        self._procedures = settings.procedures

    def _measure(self, process: ScriptedProcess, group: Group, restart: int, *_: float) -> GroupMeasured:
        self.measure(process, group, restart)
        self.measured.append((process.device.name, group.id, restart))
        started = "2026-11-21T00:00:10.000+00:00"
        results = [
            Result(
                case=group.case(arm),
                arm=arm,
                status=self.status,
                restart=restart,
                group=group.id,
                started_at=started,
                procedure=self._procedures[arm.parsed_device.kind],
            )
            for arm in group.arms
        ]
        facts = self.device_facts.get(process.device.node.name, {})
        environments = {arm.id: Environment(device="CPU", facts=facts) for arm in group.arms}
        return GroupMeasured(results=results, environments=environments, spent={"time": 1.0}, seconds=0.0)


def lost(*_: object) -> None:
    raise ProcessLostError("the actor died")
