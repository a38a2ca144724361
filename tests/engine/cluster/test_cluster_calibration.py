"""The calibration of the nodes of a cluster: which are asked, what they answer, and what they store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from attnbench.engine import calibration, sweep
from attnbench.engine.cluster import cluster_calibration
from attnbench.engine.cluster.cluster_calibration import calibrate
from attnbench.engine.cluster.nodes import ClusterNode
from attnbench.engine.cluster.slot_process import DeviceRates, SlotProcess
from attnbench.engine.request import Request
from attnbench.errors import UsageError
from attnbench.machine import hardware, identity
from attnbench.records import ceilings as stored_ceilings
from attnbench.records.arm import Device
from attnbench.records.ceilings import Ceilings
from tests.engine.cluster.scripted_cluster import ScriptedCluster, ScriptedProcess, lost, node
from tests.samples import ceilings

ANY = Request()


class CalibratedCluster(ScriptedCluster):
    """A cluster whose nodes have rates, but for node `c`, which is lost, and node `busy`, which does not answer.

    Its clock moves when nothing else answers.
    """

    def __init__(self, *nodes: ClusterNode) -> None:
        super().__init__(*nodes)
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def ready(self, references: Sequence[int], timeout_s: float) -> list[int]:
        answers = [each for each in references if self._calls[each][0].device.name != "busy"]
        self.now_s += 0.0 if answers else timeout_s
        return answers[:1]

    def _calibrate(self, process: ScriptedProcess, device: str, *_: object) -> list[DeviceRates] | str:
        if process.device.name == "c":
            lost()
        return [DeviceRates(device=device, ceilings=ceilings(), note="saved: file")]


def test_every_node_is_calibrated_whatever_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = CalibratedCluster(node("a", "H100", gpus=2), node("b"), node("c"), node("busy"))
    monkeypatch.setattr(cluster_calibration, "time", cluster)
    rates = {each.name: each for each in calibrate(cluster, ANY, "calibrate", 60.0, False)}
    assert [(name, [of.device for of in rates[name].rates]) for name in ("a#1", "a#2", "b")] == [
        ("a#1", ["cuda:0"]), ("a#2", ["cuda:0"]), ("b", [""])
    ]  # fmt: skip
    assert rates["c"].problem == "the actor died"
    assert rates["busy"].problem.startswith("is used by another job, or does not answer")
    assert all(process.ended for process in cluster.processes)


def test_the_nodes_of_the_named_classes_are_calibrated_on_the_named_device() -> None:
    cluster = CalibratedCluster(node("a", "A"), node("b", "B"), node("d", "B"))
    request = Request(hardware="B", device="cpu:threads=2")
    rates = list(calibrate(cluster, request, "calibrate", 60.0, False))
    assert [(each.name, each.hardware, each.rates[0].device) for each in rates] == [
        ("b", "B", "cpu:threads=2"), ("d", "B", "cpu:threads=2")
    ]  # fmt: skip
    for wrong, message in (({"hardware": "L4"}, "no node with hardware 'L4'"), ({"device": "cuda:0"}, "--device cuda")):
        with pytest.raises(UsageError, match=message):
            list(calibrate(cluster, Request(**wrong), "calibrate", 60.0, False))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Calls of the calibration, which measures nothing."""
    calls: list[Any] = []

    def measure(device: Device, parts: Sequence[str], deadline: float) -> Ceilings | str:
        calls.append((device.text, tuple(parts)))
        return "no memory" if device.isa else ceilings(device=device.text, torch=identity.packages()["torch"])

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "measure", measure)
    return calls


def test_a_node_stores_its_rates_and_shows_them_later(measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_isas", lambda: ["avx2"])
    before = SlotProcess().calibrated("cpu:threads=1")
    assert [(each.ceilings, each.note) for each in before] == [(None, "not calibrated yet")]
    plain, of_isa = SlotProcess().calibrate("", 60.0, False)
    assert measured == [(plain.device, tuple(calibration.PARTS)), (f"{plain.device}:isa=avx2", sweep.OF_ISAS)]
    assert plain.note.startswith("saved: ")
    assert (of_isa.ceilings, of_isa.note) == (None, "no memory")
    (stored, _) = SlotProcess().calibrated("")
    assert stored.ceilings == plain.ceilings


def test_rates_that_a_node_cannot_store_are_not_lost(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (rates,) = SlotProcess().calibrate("cpu:threads=1", 60.0, False)
    assert rates.ceilings
    assert rates.note.startswith("cannot write to")


def test_a_device_that_a_node_lacks_is_answered_by_the_error(measured: list[Any]) -> None:
    for answer in (SlotProcess().calibrate("cuda:7", 60.0, False), SlotProcess().calibrated("cuda:7")):
        assert "--device cuda:7" in str(answer)


def test_rates_of_a_class_of_hardware_are_those_of_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stored_ceilings.save("f", ceilings(device="cpu:threads=1"))
    stored = stored_ceilings.load("f", "cpu:threads=1:hardware=A", "2")
    assert stored == ceilings(device="cpu:threads=1:hardware=A")
