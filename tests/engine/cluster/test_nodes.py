"""Nodes and their hardware as Ray lists them, and the classes that a run chooses."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.engine.cluster import nodes
from attnbench.errors import UsageError
from attnbench.records.arm import Device, parse_device
from tests.engine.cluster.scripted_cluster import node


def entry(address: str, labels: dict[str, str] | None = None, alive: bool = True, **resources: float) -> dict[str, Any]:
    listed = {name.replace("__", ":"): value for name, value in resources.items()}
    return {
        "Alive": alive, "NodeID": f"{address}abcdef", "NodeManagerAddress": "10.0.0.1", "Labels": labels or {},
        "Resources": listed,
    }  # fmt: skip


def test_the_hardware_of_a_node_is_its_label_or_its_accelerator_or_its_cpu() -> None:
    entries = [
        entry("1", {"attnbench-hardware": "fast"}, CPU=4.0, GPU=1.0, accelerator_type__L4=1.0),
        entry("2", {"ray.io/accelerator-type": "H100"}, CPU=4.0, GPU=8.0),
        entry("3", CPU=4.0, GPU=1.0, accelerator_type__A100=1.0),
        entry("4", CPU=4.0),
        entry("5", CPU=0.0),  # a head that measures nothing
        entry("6", alive=False, CPU=4.0),
    ]
    found = nodes.of_ray(entries)
    assert [each.hardware for each in found] == ["fast", "H100", "A100", "cpu"]
    assert [each.kind for each in found] == ["cuda", "cuda", "cuda", "cpu"]
    assert len({each.name for each in found}) == 4  # of one address
    assert len(nodes.devices(found)) == 1 + 8 + 1 + 1


def test_classes_are_named_where_there_are_several() -> None:
    there = [node("a", "H100", 1), node("b", "H100", 1), node("c")]
    assert nodes.chosen(there, ("cpu", "H100")) == ("cpu", "H100")
    assert nodes.chosen(there[:2], ()) == ("H100",)
    with pytest.raises(UsageError, match="--hardware is missing: the cluster has H100, cpu"):
        nodes.chosen(there, ())
    with pytest.raises(UsageError, match="--hardware: no node with hardware 'L4'; there are H100, cpu"):
        nodes.chosen(there, ("L4",))
    with pytest.raises(UsageError, match="no node of the cluster has a free core"):
        nodes.chosen([], ())


@pytest.mark.parametrize("text", ["", "head", "head:", ":6379", "head:x", "head:0", "head:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not HOST:PORT"):
        nodes.parse_address(text)


@pytest.mark.parametrize("text", ["cuda:0:hardware=H100", "cpu:threads=2:hardware=epyc.7", "cuda:1", "cpu"])
def test_a_device_is_what_its_text_says(text: str) -> None:
    assert parse_device(text).text == text


def test_the_hardware_of_a_device_is_a_word() -> None:
    assert parse_device("cuda:hardware=L4") == Device(kind="cuda", hardware="L4")
    for text in ("cuda:0:hardware=", "cuda:0:hardware=a/b", "cuda:0:threads=1", "cpu:hardware=a b"):
        with pytest.raises(UsageError, match="--device"):
            parse_device(text)
