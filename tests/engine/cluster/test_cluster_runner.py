"""A run on a scripted cluster: what goes where, what is lost and repeated, and what is stored."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from attnbench.attention.problem import Problem
from attnbench.engine.cluster import cluster_runner
from attnbench.engine.cluster.cluster_runner import ClusterRunner
from attnbench.engine.cluster.processes import ProcessLostError
from attnbench.engine.group_runner import RunSettings
from attnbench.engine.plan import Plan
from attnbench.engine.runner import Ending, SilentObserver
from attnbench.errors import StoreError, UsageError
from attnbench.records.result import Cause, Key, Procedure, Result, Status
from tests.engine.cluster.scripted_cluster import ScriptedCluster, ScriptedProcess, lost, node
from tests.engine.test_plan import planned

PROCEDURES = {"cpu": Procedure()}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_S", "LOOK_S", "PATIENCE_S", "PAUSE_S"):
        monkeypatch.setattr(cluster_runner, name, 0.0)


def plan(cases: int = 4) -> Plan:
    return planned(*(Problem(seq_q=64 + number) for number in range(cases)), names=("naive", "sdpa:math"))


def runner(
    cluster: ScriptedCluster, results: list[Result], *, done: frozenset[Key] = frozenset(), **settings: Any
) -> ClusterRunner:
    chosen = RunSettings(procedures=PROCEDURES, reference="naive", **settings)
    return ClusterRunner(cluster, {"cpu": chosen}, plan(), chosen, results.extend, SilentObserver(), done)


def keys(restarts: int = 1) -> set[Key]:
    return {
        (group.case(arm).id, arm.id, restart)
        for group in plan().groups
        for arm in group.arms
        for restart in range(restarts)
    }


def test_every_case_is_measured_once_on_the_nodes_of_its_class() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b"), node("c", "H100", gpus=1)), list[Result]()
    assert runner(cluster, results, restarts=2).run() == Ending()
    assert Counter(result.key for result in results) == Counter(keys(restarts=2))
    assert {result.facts["node"] for result in results} == {"a", "b"}
    by_group = {(result.group, result.restart): result.facts["node"] for result in results}
    assert all(by_group[result.group, result.restart] == result.facts["node"] for result in results)
    assert all(process.ended for process in cluster.processes)


def test_a_group_of_a_lost_process_returns_to_the_queue() -> None:
    losses = iter([lost])

    def first_is_lost(*_: object) -> None:
        next(losses, lambda: None)()

    cluster, results = ScriptedCluster(node("a"), node("b"), measure=first_is_lost), list[Result]()
    assert runner(cluster, results).run() == Ending()
    assert Counter(result.key for result in results) == Counter(keys())


def test_a_lost_node_loses_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()

    def b_is_lost(process: ScriptedProcess, *_: object) -> None:
        if process.device.name == "b":
            cluster.alive = [node("a")]
            raise ProcessLostError("the node died")

    cluster.measure = b_is_lost
    run, notes = runner(cluster, results), list[str]()
    monkeypatch.setattr(run._observer, "note", notes.append)
    assert run.run() == Ending()
    assert notes == ["node b was lost; its group goes back to the queue"]
    assert run.nodes["b"]["lost"]
    assert Counter(result.key for result in results) == Counter(keys())
    assert {result.facts["node"] for result in results} == {"a"}


def test_a_group_whose_node_is_lost_three_times_is_crashed_with_this_reason() -> None:
    worst = plan().groups[0].id

    def lost_with_one_group(_: ScriptedProcess, group: Any, __: int) -> None:
        if group.id == worst:
            raise ProcessLostError("the node died")

    cluster, results = ScriptedCluster(*map(node, "abcd"), measure=lost_with_one_group), list[Result]()
    assert runner(cluster, results).run() == Ending()
    assert Counter(result.key for result in results) == Counter(keys())
    given_up = [result for result in results if result.status is not Status.OK]
    assert {(result.group, result.status, result.reason) for result in given_up} == {
        (worst, Status.CRASHED, "its node was lost 3 times")
    }


def test_a_node_that_joins_late_takes_groups() -> None:
    cluster, results = ScriptedCluster(node("a")), list[Result]()

    def join(process: ScriptedProcess, *_: object) -> None:
        if len(cluster.alive) == 1:
            cluster.alive.append(node("late"))

    cluster.measure = join
    runner(cluster, results, restarts=3).run()
    assert {result.facts["node"] for result in results} == {"a", "late"}


def test_a_node_that_is_started_again_is_another_node() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    cluster.objections = {"b": "two equal arms differ by 20%"}

    def start_b_again(*_: object) -> None:
        cluster.objections.clear()
        cluster.alive = [node("a"), replace(node("b"), id="id of the new b")]

    cluster.measure = start_b_again
    run = runner(cluster, results, restarts=3)
    run.run()
    assert {result.facts["node"] for result in results} == {"a", "b"}
    assert "drained" not in run.nodes["b"]


def test_a_node_whose_control_fails_gets_no_group_and_its_reason_is_stored() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    cluster.objections = {"b": "two equal arms differ by 20%"}
    run = runner(cluster, results)
    run.run()
    assert {result.facts["node"] for result in results} == {"a"}
    assert run.nodes["b"]["drained"] == "two equal arms differ by 20%"
    assert cluster.checked == ["a", "b"]  # each once


def test_without_a_usable_node_the_run_ends_with_the_reasons() -> None:
    cluster, results = ScriptedCluster(node("a")), list[Result]()
    cluster.objections = {"a": "two equal arms differ by 20%"}
    with pytest.raises(UsageError, match=r"no usable node with cpu is left \(a: two equal arms differ by 20%\)"):
        runner(cluster, results).run()
    assert results == []


def test_what_is_stored_is_not_measured_again() -> None:
    cluster, results = ScriptedCluster(node("a")), list[Result]()
    first = plan().groups[0]
    done = frozenset((first.case(arm).id, arm.id, 0) for arm in first.arms)
    runner(cluster, results, done=done).run()
    assert {result.key for result in results} == keys() - done


def test_the_packages_of_every_node_are_stored() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    cluster.packages = {"b": {"torch": "2.8"}}
    run = runner(cluster, results)
    run.run()
    assert [run.nodes[name]["packages"]["torch"] for name in "ab"] == ["2.9", "2.8"]


def test_starts_are_on_the_clock_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    cluster, results = ScriptedCluster(node("a")), list[Result]()
    cluster.clock_ahead_s = {"a": 3600.0}
    run = runner(cluster, results)
    run.run()
    assert run.nodes["a"]["clock_ahead_s"] == 3600.0
    assert {result.started_at for result in results} == {"2026-11-20T23:00:10.000+00:00"}


def test_nothing_begins_after_the_budget() -> None:
    results: list[Result] = []
    runner(ScriptedCluster(node("a")), results, budget_s=1e-9).run()
    assert {(result.status, result.cause) for result in results} >= {(Status.SKIPPED, Cause.BUDGET)}
    assert Counter(result.key for result in results) == Counter(keys())


def test_a_stop_ends_the_run_and_its_processes() -> None:
    cluster, results = ScriptedCluster(node("a")), list[Result]()
    run = runner(cluster, results)

    def stop(*_: object) -> None:
        run.stop_requested = True

    cluster.measure = stop
    assert run.run() == Ending(interrupted=True)
    assert len(results) == 2  # of one group
    assert all(process.ended for process in cluster.processes)


def test_a_full_disk_at_the_driver_ends_the_run_and_its_processes() -> None:
    cluster, stored = ScriptedCluster(node("a"), node("b")), list[Result]()

    def full(results: Any) -> None:
        if stored:
            raise StoreError("cannot write: No space left on device; all earlier results are kept")
        stored.extend(results)

    settings = RunSettings(procedures=PROCEDURES)
    run = ClusterRunner(cluster, {"cpu": settings}, plan(), settings, full, SilentObserver())
    with pytest.raises(StoreError, match="No space left"):
        run.run()
    assert len(stored) == 2
    assert all(process.ended for process in cluster.processes)


def test_fail_fast_ends_the_run() -> None:
    cluster, results = ScriptedCluster(node("a"), measure=lost), list[Result]()
    assert runner(cluster, results, fail_fast=True).run() == Ending(stopped=True)
    assert {result.status for result in results} == {Status.CRASHED}


@pytest.mark.parametrize(("deciding_copy", "restarts"), [(0, 3), (1, 1)])
def test_a_case_of_a_gate_whose_head_is_wrong_is_not_measured_again(deciding_copy: int, restarts: int) -> None:
    cluster, results = ScriptedCluster(node("a")), list[Result]()
    cluster.status = Status.INCORRECT
    assert runner(cluster, results, restarts=3, deciding_copy=deciding_copy).run() == Ending()
    assert Counter(result.key for result in results) == Counter(keys(restarts))


def test_each_gpu_of_a_node_is_a_device_of_its_own() -> None:
    cluster, results = ScriptedCluster(node("a", "H100", gpus=2)), list[Result]()
    settings = RunSettings(procedures=PROCEDURES, reference="naive")
    ClusterRunner(cluster, {"H100": settings}, plan(), settings, results.extend, SilentObserver()).run()
    assert {result.facts["node"] for result in results} == {"a#1", "a#2"}


def test_idle_processes_are_closed_before_they_end() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    runner(cluster, results).run()
    assert cluster.closed == ["a", "b"]


def test_the_facts_of_every_device_are_stored() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    cluster.device_facts = {"a": {"power_limit_w": 700.0}, "b": {"power_limit_w": 500.0}}
    run = runner(cluster, results)
    run.run()
    assert [run.nodes[name]["device_facts"]["power_limit_w"] for name in "ab"] == [700.0, 500.0]


def homes_of(cases: Plan, *names: str) -> dict[tuple[str, str], str]:
    """Each group at one of these nodes in turn."""
    return {
        (group.case(arm).id, arm.device): names[number % len(names)]
        for number, group in enumerate(cases.groups)
        for arm in group.arms
    }


def test_all_restarts_of_a_case_run_on_its_home() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    settings, homes = RunSettings(procedures=PROCEDURES, restarts=3), homes_of(plan(), "a", "b")
    ClusterRunner(cluster, {"cpu": settings}, plan(), settings, results.extend, SilentObserver(), homes=homes).run()
    assert Counter(result.key for result in results) == Counter(keys(restarts=3))
    assert all(result.facts["node"] == homes[result.case.id, result.arm.device] for result in results)


def test_a_case_whose_home_is_gone_or_drained_runs_elsewhere() -> None:
    cluster, results = ScriptedCluster(node("a"), node("b")), list[Result]()
    cluster.objections = {"b": "two equal arms differ by 20%"}
    settings, homes = RunSettings(procedures=PROCEDURES), homes_of(plan(), "b", "gone")
    ClusterRunner(cluster, {"cpu": settings}, plan(), settings, results.extend, SilentObserver(), homes=homes).run()
    assert Counter(result.key for result in results) == Counter(keys())
    assert {result.facts["node"] for result in results} == {"a"}


def test_a_device_that_passed_its_check_is_not_checked_by_a_later_runner() -> None:
    cluster, checked = ScriptedCluster(node("a"), node("b")), set[str]()
    cluster.objections = {"b": "two equal arms differ by 20%"}
    settings = RunSettings(procedures=PROCEDURES)
    for _ in range(2):
        ClusterRunner(
            cluster, {"cpu": settings}, plan(), settings, lambda _: None, SilentObserver(), checked=checked
        ).run()
    assert cluster.checked == ["a", "b", "b"]
