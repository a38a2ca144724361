"""How the driver connects to Ray, without one."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from threading import Event

import pytest

from attnbench.engine.cluster import job_files, ray_cluster
from attnbench.errors import UsageError
from attnbench.suite.files import SHIPPED_SUITES, shipped


def test_a_ray_of_our_own_has_a_token_of_its_own_and_a_named_one_that_of_the_user() -> None:
    ours, again = ray_cluster.environment(""), ray_cluster.environment("")
    assert ours["RAY_AUTH_MODE"] == "token"
    assert len(ours["RAY_AUTH_TOKEN"]) == 64
    assert ours["RAY_AUTH_TOKEN"] != again["RAY_AUTH_TOKEN"]
    assert not [name for name in ray_cluster.environment("127.0.0.2:6379") if "AUTH" in name]


@pytest.mark.parametrize("log", ["gcs_client.cc:210: Unauthenticated: RPC error: InvalidAuthToken\n" * 5, ""])
def test_an_error_names_the_token_only_where_it_was_refused(log: str) -> None:
    text = ray_cluster.not_connected("127.0.0.2:1", ConnectionError("Failed to\nconnect"), log)
    assert ("RAY_AUTH_MODE" in text, "RAY_AUTH_TOKEN" in text) == (bool(log), bool(log))
    assert text.startswith("--address 127.0.0.2:1: " + ("Ray refused the token" if log else "Failed to connect"))


@pytest.mark.parametrize(
    ("address", "living", "message"),
    [
        ("127.0.0.2:1", [], "its cluster has no living node; start one here: ray start --address 127.0.0.2:1"),
        (
            "127.0.0.2:1", ["10.0.0.5"],
            "no living node of its cluster has this address; name its head: --address 10.0.0.5:1",
        ),
        (
            "10.0.0.5:1", ["10.0.0.5", "10.0.0.6"],
            "no living node of its cluster is on this machine; run the command on one of 10.0.0.5, 10.0.0.6, or start "
            "one here: ray start --address 10.0.0.5:1",
        ),
        ("10.0.0.1:1", [f"10.0.0.{number}" for number in range(1, 9)], "10.0.0.5 and 3 more, or start one here"),
    ],
)  # fmt: skip
def test_a_cluster_without_a_node_for_the_driver_says_what_to_use(
    address: str, living: list[str], message: str
) -> None:
    error = ConnectionError(f"Failed to connect to Ray cluster at {address}")
    error.__cause__ = RuntimeError("No node info found matching attributes: '' when trying to resolve node")
    text = ray_cluster.not_connected(address, error, "", lambda _: living)
    assert text.startswith(f"--address {address}: Ray answers there, but ")
    assert message in text


class FakeTime:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_ray_looks_for_its_node_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from ray._private import services

    clock = FakeTime()
    monkeypatch.setattr(services, "time", clock)
    monkeypatch.setattr(services, "find_node_ids", set)
    monkeypatch.setattr(services, "get_node_to_connect_for_driver", services.get_node_to_connect_for_driver)
    ray_cluster._look_shortly()
    # Where this fails, Ray finds its node in another way: adapt `_look_shortly` and `not_connected`.
    with pytest.raises(RuntimeError, match="No node info found"):
        services.get_node_to_connect_for_driver(None)
    assert clock.now_s <= 2 * ray_cluster.CONNECT_S


def test_the_driver_takes_the_loopback_address_of_its_node_unless_ray_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: socket.socket())
    assert ray_cluster._of_named("127.0.0.1:1") == {"address": "127.0.0.1:1"}
    assert ray_cluster._of_named("127.0.0.2:1") == {"address": "127.0.0.2:1", "_node_ip_address": "127.0.0.2"}


def test_the_package_that_travels_holds_the_shipped_suites(tmp_path: Path) -> None:
    package = job_files.package(tmp_path)
    assert package.name == "attnbench"
    assert {path.stem for path in (package / SHIPPED_SUITES).glob("*.toml")} == set(shipped())
    assert (package / "engine" / "cluster" / "slot_process.py").is_file()


def test_what_ray_writes_while_it_connects_goes_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ray_cluster._stderr_to(tmp_path / "log"):
        os.write(2, b"raw line\n")
    print("ours", file=sys.stderr)
    assert (tmp_path / "log").read_text() == "raw line\n"
    assert capfd.readouterr().err == "ours\n"


class OneError:
    """What a driver's connection is to Ray's thread that prints errors: one arrives, then the thread ends."""

    def __init__(self) -> None:
        self.current_job_id, self.gcs_error_subscriber, self.stopped = self, self, Event()

    def binary(self) -> bytes:
        return b"job"

    def subscribe(self) -> None:
        """Nothing."""

    def poll(self) -> tuple[None, dict[str, object]]:
        self.stopped.set()
        return None, {"job_id": b"job", "error_message": "The node with node id abc has been marked dead"}


@pytest.mark.parametrize("silenced", [False, True])
def test_ray_prints_no_page_for_a_lost_node(
    silenced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    worker = ray._private.worker
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # is restored afterwards
    if silenced:
        ray_cluster._silence(ray)
    connection = OneError()
    worker.listen_error_messages(connection, connection.stopped)
    # Where this fails, Ray prints errors in another way: adapt `_silence`.
    assert ("marked dead" in capsys.readouterr().out) is not silenced


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ray_cluster.environment(""):
        monkeypatch.setenv(name, "")
    with pytest.raises(UsageError, match=r"Ray is not installed; install: pip install .*\[ray\]"):
        ray_cluster.connected("", tmp_path).__enter__()
