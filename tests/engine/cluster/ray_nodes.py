"""Ray nodes on loopback addresses of this machine, each a process group of its own, and commands that use them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnbench.records import run_directory
from attnbench.records.run_directory import Run

START_S = 300.0  # for a node
COMMAND_S = 900.0  # for a command, and for a result of one
HEAD = "127.0.0.2"  # Ray replaces 127.0.0.1 by an address of the network, and keeps this one
NODE = "LOOPBACK_NODE"  # variable with the address of a node, which its workers have too


class RayNodes:
    """A cluster of nodes that are started and killed one by one."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port(HEAD)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # A cluster without a token, so that nothing is written to the home directory of the user.
        self.environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}

    @property
    def address(self) -> str:
        return f"{HEAD}:{self._port}"

    def start(self, address: str, label: str = "") -> None:
        """Start a node at this loopback address; the first is the head.

        One that Ray gives up on because it is slow is started again.
        """
        until = time.monotonic() + START_S
        while not self._begin(address, label):
            self.kill(address)
            if time.monotonic() > until:
                raise AssertionError((self._folder / f"{address}.log").read_text())

    def _begin(self, address: str, label: str) -> bool:
        """Start a node; whether it has joined, or has ended again."""
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            "--node-ip-address", address, "--num-cpus", "1", "--object-store-memory", "80000000",
            "--min-worker-port", "0", "--max-worker-port", "0",
            "--dashboard-agent-listen-port", "0", "--dashboard-agent-grpc-port", "0",
        ]  # fmt: skip
        if address == HEAD:
            command += ["--head", "--port", str(self._port), "--temp-dir", str(self._folder)]
            command += ["--include-dashboard", "false", "--ray-client-server-port", str(free_port(HEAD))]
        else:
            command += ["--address", self.address]
        if label:
            command += ["--labels", f"attnbench-hardware={label}"]
        with (self._folder / f"{address}.log").open("wb") as log:
            self._processes[address] = subprocess.Popen(
                command, env={**self.environment, NODE: address}, stdout=log, stderr=log, start_new_session=True
            )
        return self._joins(address)

    def _joins(self, address: str) -> bool:
        until = time.monotonic() + START_S
        while b"This command will now block" not in (self._folder / f"{address}.log").read_bytes():
            if self._processes[address].poll() is not None or time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def kill(self, address: str) -> None:
        """Kill a node with all its processes, as a machine that fails."""
        process = self._processes.pop(address)
        with contextlib.suppress(ProcessLookupError):  # it may have ended with all of them
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """End all nodes."""
        for address in reversed(list(self._processes)):
            self.kill(address)


def free_port(address: str) -> int:
    """A port of this address that is free now, above those of Ray's worker processes."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
    return port if port > 20000 else free_port(address)


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster without nodes; those that are started end with it."""
    # The path of a socket has at most 107 characters: a folder of pytest may be too long.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        nodes = RayNodes(Path(folder))
        try:
            yield nodes
        finally:
            nodes.end()


class Command:
    """`attnbench run` on a cluster, in a process of its own; within `with`, after which it does not run."""

    def __init__(self, nodes: RayNodes, folder: Path, *arguments: str) -> None:
        self._out = folder / "run"
        command = [sys.executable, "-m", "attnbench", "run", "--engine", "ray", "--address", nodes.address]
        environment = {**nodes.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._log = folder / "output.txt"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--out", str(self._out), *arguments], cwd=folder, env=environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def text(self) -> str:
        """What the commands of the folder have printed."""
        return self._log.read_text()

    def wait_for_result(self, node: str = "") -> bytes:
        """Wait until a result of this node, or of any, is stored; return what is stored."""
        until = time.monotonic() + COMMAND_S
        while f'"node":"{node}'.encode() not in (stored := self._results()):
            assert self._process.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.05)
        return stored

    def _results(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self._out / run_directory.RESULTS).read_bytes()
        return b""

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def run(self) -> Run:
        """The run, when the command has ended."""
        self._process.wait(timeout=COMMAND_S)
        assert self._process.returncode in (0, 5), self.text
        return run_directory.read(self._out)
