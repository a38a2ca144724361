"""The plans of several classes of hardware as one."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from attnbench.engine import sweep
from attnbench.engine.cluster import cluster_sweep
from attnbench.engine.cluster.slot_process import SlotProcess
from attnbench.engine.request import Request
from attnbench.engine.sweep import Sweep
from attnbench.errors import UsageError
from tests.engine.cluster.scripted_cluster import ScriptedCluster, ScriptedProcess, node

REQUEST = Request(axes={"seq": "64,128", "mask": "none"}, backend="naive,sdpa:math", device="cpu:threads=1")


class PlanningCluster(ScriptedCluster):
    """A cluster whose nodes plan as this machine does."""

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
