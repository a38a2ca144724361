"""Notes on the nodes of a run."""

from __future__ import annotations

from attnbench.analysis.cluster_nodes import notes


def test_equal_nodes_need_no_note() -> None:
    node = {"hardware": "A", "machine": {"cpu": "X"}, "packages": {"torch": "2.9"}, "clock_ahead_s": 0.1}
    assert list(notes({"a": node, "b": node})) == []


def test_nodes_of_one_class_that_differ_are_named_with_their_values() -> None:
    nodes = {
        "a": {"hardware": "A", "machine": {"governor": "powersave"}, "packages": {"torch": "2.9"}},
        "b": {"hardware": "A", "machine": {"governor": "performance"}, "packages": {"torch": "2.8"}},
        "c": {"hardware": "B", "machine": {"governor": "schedutil"}, "packages": {"torch": "2.7"}},
    }
    assert list(notes(nodes)) == [
        "Nodes with A differ in governor: powersave (a); performance (b).",
        "Nodes with A differ in torch: 2.9 (a); 2.8 (b).",
    ]


def test_gpus_of_one_class_with_different_drivers_are_named() -> None:
    drivers = {"a": "550.1", "b": "550.1", "c": "580.2"}
    nodes = {
        name: {"hardware": "A", "machine": {"gpu_details": [{"driver": driver}] * 2}}
        for name, driver in drivers.items()
    }
    nodes["d"] = {"hardware": "A", "machine": {"gpu_details": None}}
    assert list(notes(nodes)) == ["Nodes with A differ in driver: 550.1 (a, b); 580.2 (c); none (d)."]


def test_a_lost_node_is_noted() -> None:
    assert list(notes({"a": {"lost": True}, "b": {}})) == ["Node a was lost."]


def test_a_drained_node_and_a_wrong_clock_are_noted() -> None:
    nodes = {"a": {"hardware": "A", "drained": "two equal arms differ by 20%", "clock_ahead_s": -3600.0}}
    assert list(notes(nodes)) == [
        "Node a was given no more cases: two equal arms differ by 20%.",
        "The clock of node a is 3600 s behind; starts are stored on that of the driver.",
    ]


def test_machines_of_a_merged_run_have_no_class() -> None:
    nodes = {name: {"machine": {"kernel": name * 2}} for name in ("a", "b")}
    assert list(notes(nodes)) == ["Nodes differ in kernel: aa (a); bb (b)."]
