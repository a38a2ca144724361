"""A gate on the nodes of a cluster, with times that are set in place of workers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from attnbench.engine.cluster import cluster_runner, cluster_sweep
from attnbench.engine.cluster.nodes import ClusterNode
from attnbench.engine.cluster.processes import ProcessLostError
from attnbench.engine.cluster.slot_process import GroupMeasured
from attnbench.engine.group import Group
from attnbench.engine.runner import SilentObserver
from attnbench.engine.sweep import Request
from attnbench.gate import evidence, known_noise, paired
from attnbench.gate.paired import GateRun
from attnbench.gate.trees import Revision
from attnbench.records.result import Environment, Outcome, Result, Status, sample
from tests.engine.cluster.scripted_cluster import ScriptedProcess, node
from tests.engine.cluster.test_cluster_sweep import PlanningCluster
from tests.gate.test_verdicts import WOBBLE
from tests.samples import timed

BASE, HEAD = Revision(name="HEAD~1", path=("base",)), Revision(name="the working tree", path=("head",))
LENGTHS, SLOW = (64, 72, 80, 88), 72  # of the cases; head is slower in one


class GateCluster(PlanningCluster):
    """Nodes on which equal arms take equal time, but for the A/A control on a noisy one."""

    def __init__(self, *nodes: ClusterNode, noisy: str = "") -> None:
        super().__init__(*nodes)
        self._noisy = noisy

    def _measure(self, process: ScriptedProcess, group: Group, restart: int, *_: float) -> GroupMeasured:
        self.measure(process, group, restart)
        results = []
        for arm in group.arms:
            case = group.case(arm)
            slow = arm.copy == evidence.HEAD and case.problem.seq_q == SLOW
            noisy = arm.copy == evidence.CONTROL and process.device.name == self._noisy
            seconds = 1e-3 * (1.5 if slow or noisy else 1.0) * math.exp((arm.copy > 1) * WOBBLE[restart % len(WOBBLE)])
            results.append(
                Result(
                    case=case, case_id=case.id, arm=arm, restart=restart, group=group.id, status=Status.OK,
                    samples={"time": timed([seconds] * 5), "peak_memory": sample("B", [2.0**20])},
                    facts={"errors": {"out": {"max_abs": 1e-6, "rms": 1e-7}}},
                )
            )  # fmt: skip
        environments = {arm.id: Environment(device="CPU", packages={"torch": "2.9"}) for arm in group.arms}
        return GroupMeasured(results=results, environments=environments, spent={}, seconds=0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("POLL_S", "LOOK_S", "PAUSE_S"):
        monkeypatch.setattr(cluster_runner, name, 0.0)


def measured(cluster: GateCluster, folder: Path, base: Revision = BASE) -> GateRun:
    axes = {"seq": ",".join(map(str, LENGTHS)), "mask": "none"}
    request = paired.request(Request(axes=axes, backend="naive", rounds="5", budget="0"))
    ready, engine = cluster_sweep.prepare(cluster, request, cpu=paired.CPU)
    return paired.measure(ready, base, HEAD, directory=folder / "gate", observer=SilentObserver(), engine=engine)


def outcomes(ended: GateRun) -> dict[int, Outcome]:
    """The outcome of the time of each case, by its length."""
    lengths = {result.case.id: result.case.problem.seq_q for result in ended.run.results}
    times = [verdict for verdict in ended.judgement.verdicts if verdict.metric == "time_s"]
    return {lengths[verdict.case_id]: verdict.outcome for verdict in times}


def test_every_case_is_gated_on_one_node_and_every_node_has_an_a_a_control(tmp_path: Path) -> None:
    cluster = GateCluster(node("a"), node("b"))
    ended = measured(cluster, tmp_path)
    assert outcomes(ended) == dict.fromkeys(LENGTHS, Outcome.SAME) | {SLOW: Outcome.REGRESSED}
    where = {(result.case.problem.seq_q, result.facts["node"]) for result in ended.run.results}
    assert len(where) == len(LENGTHS)
    controls = {result.facts["node"] for result in ended.run.results if result.arm.copy == evidence.CONTROL}
    assert controls == {node for _, node in where} == {"a", "b"} == set(ended.run.manifest.nodes)
    assert cluster.checked == ["a", "b"]  # before the screen, and not before each batch
    assert {arm.path for arm in ended.run.manifest.arms} == {("base",), ("head",)}


def test_a_node_whose_a_a_control_differs_leaves_the_cases_of_others_decided(tmp_path: Path) -> None:
    ended = measured(GateCluster(node("a"), node("b"), noisy="b"), tmp_path)
    of_noisy = {result.case.problem.seq_q for result in ended.run.results if result.facts["node"] == "b"}
    assert of_noisy
    assert {length for length, outcome in outcomes(ended).items() if outcome is Outcome.INCONCLUSIVE} == of_noisy
    assert ended.judgement.doubt.endswith("node b is too noisy to judge")


def test_the_cases_of_a_node_that_is_lost_are_judged_on_another(tmp_path: Path) -> None:
    cluster = GateCluster(node("a"), node("b"))

    def b_is_lost(process: ScriptedProcess, _: Group, restart: int) -> None:
        if process.device.name == "b" and restart == 2:
            cluster.alive = [node("a")]
            raise ProcessLostError("the node died")

    cluster.measure = b_is_lost
    ended = measured(cluster, tmp_path)
    assert outcomes(ended) == dict.fromkeys(LENGTHS, Outcome.SAME) | {SLOW: Outcome.REGRESSED}
    assert ended.run.manifest.nodes["b"]["lost"]


def test_a_gate_of_head_against_itself_is_kept_for_the_classes_of_the_cluster(tmp_path: Path) -> None:
    same = replace(HEAD)
    ended = measured(GateCluster(node("a")), tmp_path, base=same)
    floor = known_noise.machine_noise(ended.run.manifest.fingerprint, ended.run.manifest.arms)
    assert floor.runs > 0
