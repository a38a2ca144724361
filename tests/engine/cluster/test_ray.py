"""A real Ray of two nodes on loopback addresses: where groups go, what is lost, and what travels."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench import cli
from attnbench.gate import significance
from attnbench.machine import identity
from attnbench.records import ceilings, run_directory
from attnbench.records.result import Status
from attnbench.records.run_directory import Run
from attnbench.studies.fleet import fleet
from tests import samples
from tests.engine.cluster.ray_nodes import HEAD, RayNodes, free_port, ray_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.workers, pytest.mark.slow]

OTHER, LATE, LABELLED, SLOW = "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"
KERNEL = """
import time
from pathlib import Path
import torch

def attend(q, k, v, *, causal=False, scale=None):
    time.sleep(SECONDS)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
"""
QUICK = ("--device", "cpu:threads=1", "--budget", "0", "--rounds", "3", "--progress", "lines")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """Two nodes of one class. A calibration is in their cache: measuring it would take a minute."""
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        known = samples.ceilings(device="cpu:threads=1", torch=identity.packages()["torch"])
        ceilings.save(identity.fingerprint()[0], known, force=True)
    with ray_nodes() as nodes:
        nodes.environment["XDG_CACHE_HOME"] = cache
        nodes.start(HEAD, "A")
        nodes.start(OTHER, "A")
        yield nodes


class Command:
    """`attnbench run` on the cluster, in a process of its own."""

    def __init__(self, nodes: RayNodes, folder: Path, *arguments: str) -> None:
        self._out = folder / "run"
        command = [sys.executable, "-m", "attnbench", "run", "--engine", "ray", "--address", nodes.address]
        environment = {**nodes.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [*command, "--out", str(self._out), *QUICK, *arguments], cwd=folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True,
        )  # fmt: skip

    def wait_for_result(self, node: str) -> None:
        """Wait until a result of this node is stored."""
        while f'"node":"{node}"'.encode() not in self._results():
            assert self._process.poll() is None, self._process.communicate()[0]
            time.sleep(0.05)

    def _results(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self._out / run_directory.RESULTS).read_bytes()
        return b""

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def run(self) -> Run:
        """The run, when the command has ended."""
        self.text, _ = self._process.communicate(timeout=240)
        assert self._process.returncode in (0, 5), self.text
        return run_directory.read(self._out)


def once(run: Run) -> bool:
    """Whether every planned case is stored once."""
    keys = Counter(result.key for result in run.results)
    lines = (run.path / run_directory.RESULTS).read_bytes().count(b"\n")
    return set(keys.values()) == {1} and len(keys) == run.manifest.planned == lines


def test_a_run_on_two_nodes_has_the_cases_of_a_local_run_and_a_kernel_that_only_the_driver_has(
    cluster: RayNodes, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(KERNEL.replace("SECONDS", "0"))
    run = Command(cluster, tmp_path, "--seq", "64,96,128", "--mask", "none", "-b", "naive,mine.py:attend").run()
    assert once(run)
    assert {(result.arm.backend, result.status) for result in run.results} == {
        ("naive", Status.OK), ("mine.py:attend", Status.OK)
    }  # fmt: skip
    by_group = {(result.group, result.facts["node"]) for result in run.results}
    assert len(by_group) == 3  # a group is measured whole on one node
    assert {node for _, node in by_group} == {HEAD, OTHER} == set(run.manifest.nodes)
    assert all(facts["noise"]["tries"] >= 1 and facts["ceilings"] for facts in run.manifest.nodes.values())


def test_cases_of_a_killed_node_are_measured_by_others_and_a_node_that_joins_late_takes_some(
    cluster: RayNodes, tmp_path: Path
) -> None:
    there = tmp_path / "the late node has a result"  # until then calls take so long that the run goes on
    (tmp_path / "mine.py").write_text(KERNEL.replace("SECONDS", f"0 if Path({str(there)!r}).exists() else 0.1"))
    command = Command(cluster, tmp_path, "--seq", "64..512:n30", "--mask", "none", "-b", "mine.py:attend")
    command.wait_for_result(OTHER)
    cluster.kill(OTHER)
    cluster.start(LATE, "A")
    command.wait_for_result(LATE)
    there.touch()
    run = command.run()
    assert once(run)
    assert {result.status for result in run.results} == {Status.OK}
    assert f"\nnode {OTHER} was lost; its group goes back to the queue\n" in command.text
    assert f"\nNode {OTHER} was lost.\n" in command.text
    assert "raylet" not in command.text


def test_a_killed_driver_is_resumed(cluster: RayNodes, tmp_path: Path) -> None:
    shapes = ("--seq", "64..512:n8", "--mask", "none", "-b", "naive,sdpa:math")
    command = Command(cluster, tmp_path, *shapes)
    command.wait_for_result(HEAD)
    command.kill()
    run = Command(cluster, tmp_path, *shapes).run()
    assert once(run)


def test_what_is_wrong_with_a_cluster_is_one_line(cluster: RayNodes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attnbench", "run", "--engine", "ray", "--seq", "64", "--address"]
    environment = {**cluster.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    port = free_port("127.0.0.9")
    wrong = {
        (f"127.0.0.9:{port}",): f"--address 127.0.0.9:{port}: cannot be reached within 5 s (Connection refused)",
        (cluster.address, "--hardware", "H100"): "--hardware: no node with hardware 'H100'; there are A",
    }
    for arguments, message in wrong.items():
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]


def attnbench(nodes: RayNodes, folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on the cluster."""
    words = [sys.executable, "-m", "attnbench", command, "--engine", "ray", "--address", nodes.address, *arguments]
    environment = {**nodes.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture
def labelled(cluster: RayNodes) -> Iterator[RayNodes]:
    """The cluster with a node of another class."""
    cluster.start(LABELLED, "B")
    yield cluster
    cluster.kill(LABELLED)


def test_classes_of_hardware_are_an_axis_and_every_command_finds_its_nodes(labelled: RayNodes, tmp_path: Path) -> None:
    shapes = ("--seq", "48,64", "--mask", "none", "-b", "naive")
    run = Command(labelled, tmp_path, *shapes, "--hardware", "A,B").run()
    assert once(run)
    where = {(result.arm.device.rpartition("=")[2], result.facts["node"] == LABELLED) for result in run.results}
    assert where == {("A", False), ("B", True)}

    on_b = (*shapes, "--hardware", "B", "--device", "cpu:threads=1")
    verified = attnbench(labelled, tmp_path, "verify", *on_b, "--json")
    assert verified.returncode == 0, verified.stderr
    assert [line for line in map(json.loads, verified.stdout.splitlines()) if line.get("status") == "ok"]

    shown = attnbench(
        labelled, tmp_path, "calibrate", "--show", "--hardware", "B", "--device", "cpu:threads=1", "--json"
    )
    assert shown.returncode == 0, shown.stderr
    (line,) = map(json.loads, shown.stdout.splitlines())
    assert (line["node"], line["hardware"], line["device"]) == (LABELLED, "B", "cpu:threads=1")

    lengths = ("--seq", "32,48,64,96", *on_b[2:])
    scaled = attnbench(labelled, tmp_path, "scaling", *lengths, "--rounds", "3", "--json")
    assert scaled.returncode == 0, scaled.stderr
    assert "time" in [json.loads(text).get("quantity") for text in scaled.stdout.splitlines()]


def test_the_files_of_both_sides_of_a_gate_travel(
    cluster: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    (tmp_path / "mine.py").write_text(KERNEL.replace("SECONDS", "0"))
    git("init", "-q")
    git("add", "mine.py")
    git("commit", "-qm", "right")
    (tmp_path / "mine.py").write_text(KERNEL.replace("SECONDS", "0").replace("return torch", "return 2 * torch"))
    monkeypatch.chdir(tmp_path)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(significance, "LOOKS", {2: 1.0})  # each restart starts three workers
    where = ("--engine", "ray", "--address", cluster.address, "--hardware", "A")
    sides = ("--base-ref", "HEAD", "-b", "mine.py:attend", "--seq", "64", "--mask", "none", "--dtype", "fp32")
    assert cli.invoke(["gate", *where, *sides, "--rounds", "3", "--budget", "0", "--out", "gate"]) == 5
    run = run_directory.read(tmp_path / "gate")
    statuses = {(result.arm.path, result.status) for result in run.results}
    assert statuses == {(("base",), Status.OK), (("head",), Status.INCORRECT)}
    assert len({result.facts["node"] for result in run.results}) == 1
    assert {result.restart for result in run.results} == {0, 1}


def test_a_slow_node_is_found_by_fleet(cluster: RayNodes, tmp_path: Path) -> None:
    seconds = "0.01 * (2 if os.environ.get('SLOW_NODE') else 1)"
    (tmp_path / "mine.py").write_text("import os\n" + KERNEL.replace("SECONDS", seconds))
    cluster.environment["SLOW_NODE"] = "1"
    cluster.start(SLOW, "A")
    del cluster.environment["SLOW_NODE"]
    shapes = ("--seq", "32..96:+8", "--mask", "none", "-b", "mine.py:attend", "--restarts", "3")
    run = Command(cluster, tmp_path, *shapes, "--hardware", "A").run()
    (model,) = fleet([run])
    slowest = model.nodes[0]
    assert (slowest.node, slowest.verdict) == (SLOW, "slow")
    assert slowest.change == pytest.approx(1.0, abs=0.3)
    assert all(other.verdict != "slow" for other in model.nodes[1:])
