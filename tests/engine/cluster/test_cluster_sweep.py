"""The plans of several classes of hardware as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from attnbench.cli import output
from attnbench.engine import sweep
from attnbench.engine.cluster import cluster_sweep
from attnbench.engine.cluster.slot_process import SlotProcess
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.request import Request
from attnbench.engine.runner import SilentObserver
from attnbench.engine.sweep import Sweep
from attnbench.errors import UsageError
from attnbench.records import run_directory
from attnbench.records.result import Result
from attnbench.records.run_directory import Run
from attnbench.report import pages
from attnbench.report.pages.page import report_data
from tests.engine.cluster.scripted_cluster import ScriptedCluster, ScriptedProcess, node

REQUEST = Request(axes={"seq": "64,128", "mask": "none"}, backend="naive,sdpa:math", device="cpu:threads=1")


@pytest.fixture(autouse=True)
def nothing_measured_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Predictions follow from no other test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class PlanningCluster(ScriptedCluster):
    """A cluster whose nodes plan as this machine does."""

    def _together(self, _: ScriptedProcess, cells: Any, settings: RunSettings) -> Plan:
        return SlotProcess().together(cells, settings)

    def _plan(self, _: ScriptedProcess, request: Request, interpreted: bool, default_suite: str) -> Sweep | str:
        return SlotProcess().plan(request, interpreted, default_suite)


def test_a_case_is_planned_once_for_each_class_of_hardware() -> None:
    cluster = PlanningCluster(node("a", "A"), node("b", "B"), node("c", "B"), node("d"))
    planned, _ = cluster_sweep.prepare(cluster, replace(REQUEST, hardware="A,B,cpu"))
    devices = ["cpu:threads=1:hardware=A", "cpu:threads=1:hardware=B", "cpu:threads=1"]
    assert [device.text for device in planned.devices] == devices
    assert planned.plan.cases == 3 * 4
    assert len({group.id for group in planned.plan.groups}) == len(planned.plan.groups) == 3 * 2
    assert all(len({arm.device for arm in group.arms}) == 1 for group in planned.plan.groups)
    assert (planned.request.device, planned.request.hardware) == ("cpu:threads=1", "A,B,cpu")
    assert all(process.ended for process in cluster.processes)


def test_the_only_class_is_planned_as_on_one_machine() -> None:
    planned, _ = cluster_sweep.prepare(PlanningCluster(node("a", "A"), node("b", "A")), REQUEST)
    local = sweep.prepare(REQUEST)
    assert planned.plan.groups == local.plan.groups
    assert planned.request == local.request


def test_a_fingerprint_is_that_of_the_classes_and_not_of_one_node() -> None:
    one, _ = cluster_sweep.prepare(PlanningCluster(node("a", "A")), REQUEST)
    other, _ = cluster_sweep.prepare(PlanningCluster(node("b", "A")), REQUEST)
    assert one.machine
    assert other.machine
    assert one.machine.fingerprint == other.machine.fingerprint


def test_what_a_cluster_cannot_do_is_refused() -> None:
    cluster = PlanningCluster(node("a"))
    with pytest.raises(UsageError, match="--profile"):
        cluster_sweep.prepare(cluster, replace(REQUEST, profile=True))
    with pytest.raises(UsageError, match="--device cuda:0: with --engine ray, --hardware chooses GPUs"):
        cluster_sweep.prepare(cluster, replace(REQUEST, device="cuda:0"))
    with pytest.raises(UsageError, match="did you mean 'naive'"):
        cluster_sweep.prepare(cluster, replace(REQUEST, backend="naiv"))


def test_the_homes_of_cases_share_the_work_of_a_class_among_its_devices() -> None:
    cluster = PlanningCluster(node("a", "A"), node("b", "B"), node("c", "B"))
    lengths = ",".join(map(str, range(64, 104, 8)))
    request = replace(REQUEST, axes={"seq": lengths, "mask": "none"}, backend="naive", hardware="A,B")
    planned, engine = cluster_sweep.prepare(cluster, request)
    homes = engine.homes(planned)
    assert {homes[key] for key in homes if "hardware=A" in key[1]} == {"a"}
    loads = dict.fromkeys("bc", 0.0)
    for group in planned.plan.groups:
        (arm,) = group.arms
        if "hardware=B" in arm.device:
            loads[homes[group.case(arm).id, arm.device]] += group.seconds
    assert max(loads.values()) <= 1.5 * min(loads.values())


def test_cases_that_are_measured_together_are_planned_on_a_node_of_their_class() -> None:
    cluster = PlanningCluster(node("a", "A"), node("b", "B"))
    planned, engine = cluster_sweep.prepare(cluster, replace(REQUEST, hardware="A,B"))
    before = len(cluster.processes)
    together = engine.together(planned.cells, planned.settings)
    assert [process.device.name for process in cluster.processes[before:]] == ["a", "b"]
    assert len({group.id for group in together.groups}) == len(together.groups) == 2 * 2
    assert all(len(group.arms) == 2 for group in together.groups)


class KilledError(Exception):
    """Stands for the end of the process: nothing that runs afterwards is part of it."""


class ObserverOfKilled(SilentObserver):
    """Reads what is stored when the first result is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.run: Run | None = None

    def result(self, result: Result, remaining_s: float) -> None:
        """The driver is killed here."""
        self.run = run_directory.read(self._directory)
        raise KilledError


def test_a_run_whose_driver_was_killed_has_its_nodes_and_is_not_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = PlanningCluster(node("a", "A"), node("b", "A"))
    ready, engine = cluster_sweep.prepare(cluster, replace(REQUEST, restarts=2))
    killed = ObserverOfKilled(tmp_path / "run")
    command = ["attnbench", "run", "--engine", "ray", "--address", "127.0.0.2:6379"]
    with pytest.raises(KilledError):
        sweep.run(ready, killed, directory=tmp_path / "run", start=engine.start, command=command)
    run = killed.run
    assert run is not None
    assert set(run.manifest.nodes) >= {str(result.facts["node"]) for result in run.results}
    assert all(facts["machine"] and facts["noise"] for facts in run.manifest.nodes.values())
    assert run.manifest.environments
    assert run.unmeasured == 4  # two restarts of two problems with two backends, of which one group was measured once
    output.show(run, "table", color="never")
    shown = capsys.readouterr().out
    assert "4 of 4 cases not measured" in shown
    assert f"next: attnbench run --resume {tmp_path / 'run'} --engine ray --address 127.0.0.2:6379" in shown
    answer, _ = pages.contents(report_data([run]))
    (caution,) = [each for each in answer.cautions if "not measured" in each.text]
    assert caution.text == "4 of 4 cases are not measured: the run has not ended."
    assert caution.command.endswith("--engine ray --address 127.0.0.2:6379")


def test_a_node_without_gpu_has_the_default_device_of_the_command() -> None:
    planned, _ = cluster_sweep.prepare(PlanningCluster(node("a")), replace(REQUEST, device=""), cpu="cpu:threads=1")
    assert [device.text for device in planned.devices] == ["cpu:threads=1"]
