"""Ray nodes on loopback addresses of this machine, each a process group of its own."""

from __future__ import annotations

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

START_S = 60.0
HEAD = "127.0.0.2"  # Ray replaces 127.0.0.1 by an address of the network, and keeps this one


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

    def start(self, address: str, label: str = "", cores: frozenset[int] = frozenset()) -> None:
        """Start a node at this loopback address; the first is the head. `cores`: that it may use."""
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
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )  # fmt: skip
        self._wait_until_started(address)

    def _wait_until_started(self, address: str) -> None:
        until = time.monotonic() + START_S
        while b"This command will now block" not in (log := (self._folder / f"{address}.log").read_bytes()):
            if self._processes[address].poll() is not None or time.monotonic() > until:
                raise AssertionError(log.decode())
            time.sleep(0.1)

    def kill(self, address: str) -> None:
        """Kill a node with all its processes, as a machine that fails."""
        process = self._processes.pop(address)
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
