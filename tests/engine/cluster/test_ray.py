"""A real Ray of nodes on loopback addresses: where groups go, what is lost, and what travels.

No test relies on how fast a node is: kernels wait for what other nodes have stored.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnbench.machine import identity
from attnbench.records import ceilings, run_directory
from attnbench.records.result import Status
from attnbench.records.run_directory import Run
from attnbench.studies.fleet import fleet
from tests import samples
from tests.engine.cluster.ray_nodes import COMMAND_S, HEAD, NODE, Command, RayNodes, free_port, ray_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.workers, pytest.mark.slow]

OTHER, OF_B, LATE = "127.0.0.3", "127.0.0.4", "127.0.0.5"
KERNEL = """
import os
import time
from pathlib import Path

import torch

NODE = os.environ.get("VARIABLE", "")

def stored(node):
    results = Path("FOLDER/run/results.jsonl")
    return results.read_text().count(f'"node":"{node}"') if results.exists() else 0

def wait_until(holds):
    while not holds():
        time.sleep(0.02)

AT_IMPORT

def attend(q, k, v, *, causal=False, scale=None):
    IN_CALL
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

def again(q, k, v, *, causal=False, scale=None):
    return attend(q, k, v, causal=causal, scale=scale)
"""
OF_A = ("--hardware", "A", "--device", "cpu:threads=1", "--mask", "none")
# A kernel that waits for another node is within the limit.
QUICK = (*OF_A, "--budget", "0", "--rounds", "3", "--timeout", "900s", "--progress", "lines")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """Two nodes of class A and one of B. A calibration is in their cache: measuring it would take a minute."""
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        for device in ("cpu:threads=1", "cpu:threads=1:hardware=A", "cpu:threads=1:hardware=B"):
            known = samples.ceilings(device=device, torch=identity.packages()["torch"])
            ceilings.save(identity.fingerprint()[0], known, force=True)
    with ray_nodes() as nodes:
        nodes.environment["XDG_CACHE_HOME"] = cache
        nodes.start(HEAD, "A")
        nodes.start(OTHER, "A")
        nodes.start(OF_B, "B")
        yield nodes


def write_kernel(folder: Path, at_import: str = "", in_call: str = "") -> None:
    """The kernel of a command in this folder, with what it does besides."""
    text = KERNEL.replace("VARIABLE", NODE).replace("FOLDER", str(folder))
    (folder / "mine.py").write_text(text.replace("AT_IMPORT", at_import).replace("IN_CALL", in_call))


def once(run: Run, restarts: int = 1) -> bool:
    """Whether every planned case is stored once for each restart."""
    keys = Counter(result.key for result in run.results)
    lines = (run.path / run_directory.RESULTS).read_bytes().count(b"\n")
    return set(keys.values()) == {1} and len(keys) == restarts * run.manifest.planned == lines


GROUPS = 5
ENOUGH = 2 * (GROUPS - 1)  # results of two kernels


@pytest.fixture(scope="module")
def of_two_nodes(cluster: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two restarts of a kernel that is slow on a node, and that both nodes measure for most of the lengths.

    The slow node measures all lengths but one before the other one measures any. It then waits in its second restart
    until that one has measured as many.
    """
    folder = tmp_path_factory.mktemp("two-nodes")
    write_kernel(
        folder,
        at_import=f"""
if NODE == "{HEAD}":
    wait_until(lambda: stored("{OTHER}") >= {ENOUGH})
elif stored("{OTHER}") >= {ENOUGH}:
    wait_until(lambda: stored("{HEAD}") >= {ENOUGH})
""",
        in_call=f'time.sleep(0.06 if NODE == "{OTHER}" else 0.02)',
    )
    lengths = ",".join(str(32 + 8 * number) for number in range(GROUPS))
    with Command(
        cluster, folder, *QUICK, "--seq", lengths, "--restarts", "2", "-b", "mine.py:attend,mine.py:again"
    ) as command:
        return command.run()


def test_groups_are_measured_whole_on_two_nodes_with_a_kernel_that_only_the_driver_has(of_two_nodes: Run) -> None:
    assert once(of_two_nodes, restarts=2)
    assert {(result.arm.backend, result.status) for result in of_two_nodes.results} == {
        ("mine.py:attend", Status.OK), ("mine.py:again", Status.OK)
    }  # fmt: skip
    by_group = {(result.group, result.restart, result.facts["node"]) for result in of_two_nodes.results}
    assert len(by_group) == 2 * GROUPS
    nodes = of_two_nodes.manifest.nodes
    assert {node for *_, node in by_group} == {HEAD, OTHER} == set(nodes)
    assert all(facts["noise"]["tries"] >= 1 and facts["ceilings"] for facts in nodes.values())


def test_a_slow_node_is_found_by_fleet(of_two_nodes: Run) -> None:
    (model,) = fleet([of_two_nodes])
    assert [(node.node, node.verdict) for node in model.nodes] == [(OTHER, "slow"), (HEAD, "")]
    assert model.nodes[0].change > 0.5  # 2, where nothing disturbs


def test_a_killed_driver_is_resumed(cluster: RayNodes, tmp_path: Path) -> None:
    again = tmp_path / "the driver runs again"  # until then the shorter case, which is the last one, does not end
    write_kernel(tmp_path, in_call=f"wait_until(lambda: q.shape[-2] > 48 or Path({str(again)!r}).exists())")
    arguments = (*QUICK, "--seq", "48,64", "-b", "naive,mine.py:attend")
    with Command(cluster, tmp_path, *arguments) as command:
        stored = command.wait_for_result()
    again.touch()
    with Command(cluster, tmp_path, *arguments) as command:
        run = command.run()
    assert once(run)
    assert {result.status for result in run.results} == {Status.OK}
    assert (run.path / run_directory.RESULTS).read_bytes().startswith(stored[: stored.rfind(b"\n") + 1])


def test_what_is_wrong_with_a_cluster_is_one_line(cluster: RayNodes, tmp_path: Path) -> None:
    port = free_port("127.0.0.9")
    wrong = {
        (f"127.0.0.9:{port}",): f"--address 127.0.0.9:{port}: cannot be reached within 5 s (Connection refused)",
        (cluster.address, "--hardware", "H100"): "--hardware: no node with hardware 'H100'; there are A, B",
    }
    for arguments, message in wrong.items():
        done = attnbench(cluster, tmp_path, "run", "--seq", "64", "--address", *arguments)
        assert done.returncode == 2
        assert [line for line in done.stderr.splitlines() if message in line], done.stderr
        assert "Traceback" not in done.stderr


def attnbench(nodes: RayNodes, folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on a cluster."""
    words = [sys.executable, "-m", "attnbench", command, "--engine", "ray", *arguments]
    environment = {**nodes.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=COMMAND_S)


def test_classes_of_hardware_are_an_axis_and_every_command_finds_its_nodes(cluster: RayNodes, tmp_path: Path) -> None:
    shape = ("--seq", "48", "-b", "naive")
    with Command(cluster, tmp_path, *QUICK, *shape, "--hardware", "A,B") as command:
        run = command.run()
    assert once(run)
    where = {(result.arm.device.rpartition("=")[2], result.facts["node"] == OF_B) for result in run.results}
    assert where == {("A", False), ("B", True)}

    there = ("--address", cluster.address, "--hardware", "B", "--device", "cpu:threads=1", "--json")
    verified = attnbench(cluster, tmp_path, "verify", *there, *shape, "--mask", "none")
    assert verified.returncode == 0, verified.stderr
    assert [line for line in map(json.loads, verified.stdout.splitlines()) if line.get("status") == "ok"]

    shown = attnbench(cluster, tmp_path, "calibrate", "--show", *there)
    assert shown.returncode == 0, shown.stderr
    (line,) = map(json.loads, shown.stdout.splitlines())
    assert (line["node"], line["hardware"], line["device"]) == (OF_B, "B", "cpu:threads=1")

    lengths = ("--seq", "32,48,64,96", "--mask", "none", "-b", "naive", "--rounds", "3")
    scaled = attnbench(cluster, tmp_path, "scaling", *there, *lengths)
    assert scaled.returncode == 0, scaled.stderr
    assert "time" in [json.loads(text).get("quantity") for text in scaled.stdout.splitlines()]


def test_the_files_of_both_sides_of_a_gate_travel(cluster: RayNodes, tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    write_kernel(tmp_path)
    git("init", "-q")
    git("add", "mine.py")
    git("commit", "-qm", "right")
    kernel = tmp_path / "mine.py"
    kernel.write_text(kernel.read_text().replace("return torch", "return 2 * torch"))
    where = ("--address", cluster.address, "--hardware", "A", "--rounds", "3", "--budget", "0", "--out", "gate")
    sides = ("--base-ref", "HEAD", "-b", "mine.py:attend", "--seq", "64", "--mask", "none", "--dtype", "fp32")
    done = attnbench(cluster, tmp_path, "gate", *where, *sides)
    assert done.returncode == 5, done.stderr
    run = run_directory.read(tmp_path / "gate")
    statuses = {(result.arm.path, result.status) for result in run.results}
    assert statuses == {(("base",), Status.OK), (("head",), Status.INCORRECT)}
    assert len({result.facts["node"] for result in run.results}) == 1


# The last test: it kills a node that others use.
def test_cases_of_a_killed_node_are_measured_by_others_and_a_node_that_joins_late_takes_some(
    cluster: RayNodes, tmp_path: Path
) -> None:
    # One node measures a case and is killed in its second one. The other one waits until the late one has a result.
    write_kernel(
        tmp_path,
        at_import=f"""
if NODE == "{HEAD}":
    wait_until(lambda: stored("{LATE}"))
""",
        in_call=f'wait_until(lambda: NODE != "{OTHER}" or not stored(NODE))',
    )
    with Command(cluster, tmp_path, *QUICK, "--seq", "48,64,80,96", "-b", "mine.py:attend") as command:
        command.wait_for_result(OTHER)
        cluster.kill(OTHER)
        cluster.start(LATE, "A")
        run = command.run()
    assert once(run)
    assert {result.status for result in run.results} == {Status.OK}
    assert {result.facts["node"] for result in run.results} >= {OTHER, LATE}
    assert f"\nnode {OTHER} was lost; its group goes back to the queue\n" in command.text
    assert f"\nNode {OTHER} was lost.\n" in command.text
    assert "raylet" not in command.text
