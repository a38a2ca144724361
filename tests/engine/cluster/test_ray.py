"""A real Ray of two nodes on loopback addresses: where groups go, what is lost, and what travels."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.machine import identity
from attnbench.records import ceilings, run_directory
from attnbench.records.result import Status
from attnbench.records.run_directory import Run
from tests import samples
from tests.engine.cluster.ray_nodes import HEAD, RayNodes, free_port, ray_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.workers, pytest.mark.slow]

OTHER, LATE = "127.0.0.3", "127.0.0.4"
KERNEL = """
import time, torch

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
    (tmp_path / "mine.py").write_text(
        KERNEL.replace("SECONDS", "0.05")
    )  # so that the run outlasts the new node's start
    command = Command(cluster, tmp_path, "--seq", "64..512:n20", "--mask", "none", "-b", "mine.py:attend")
    command.wait_for_result(OTHER)
    cluster.kill(OTHER)
    cluster.start(LATE, "A")
    command.wait_for_result(LATE)
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
