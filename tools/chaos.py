"""Kills nodes, workers and the driver of a run on a Ray cluster at random: `python -m tools.chaos [KILLS] [SEED]`.

The cluster has a head and nodes on loopback addresses. A killed node joins again; a killed driver continues by
`run --resume`. At the end every case must be stored once. Exit code 1 if one is lost or stored twice.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from attnbench.engine import sweep
from attnbench.engine.sweep import Request
from attnbench.records import results_file, run_directory
from attnbench.records.result import Key

HEAD, NODES = "127.0.0.2", ("127.0.0.3", "127.0.0.4")  # Ray replaces 127.0.0.1
VICTIMS = ("node", "worker", "driver")
GROUPS_A_KILL = 4
START_S, AWAY_S, POLL_S = 300.0, 1.0, 0.2
MAX_S = 300.0  # for each kill, and for the run without any
STORE = "80000000"  # bytes of an object store
SHORTEST, STEP = 16, 2  # lengths; the shortest case is the last one
# The run does not end before the last kill.
KERNEL = """
import time
from pathlib import Path

import torch

def attend(q, k, v, *, causal=False, scale=None):
    while q.shape[-2] == SHORTEST and not Path("DONE").exists():
        time.sleep(0.05)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
"""


class Outcome(NamedTuple):
    """What was killed, and how the run ended."""

    kills: Counter[str]
    drivers: int  # processes that it took
    lost: set[Key]
    repeated: set[Key]
    statuses: Counter[str]
    seconds: float

    @property
    def right(self) -> bool:
        """Whether every case is stored, and none twice."""
        return not self.lost and not self.repeated


class LoopbackCluster:
    """A Ray cluster on this machine: a head without cores, and nodes of one core, each a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes = folder, dict[str, subprocess.Popen[bytes]]()
        self.address = f"{HEAD}:{_free_port(HEAD)}"

    def __enter__(self) -> LoopbackCluster:
        port, client = self.address.rpartition(":")[2], str(_free_port(HEAD))
        try:
            self._start(
                HEAD, "--head", "--port", port, "--num-cpus", "0",
                "--include-dashboard", "false", "--ray-client-server-port", client,
            )  # fmt: skip
            self._wait_for(HEAD)
            for node in NODES:
                self.start_node(node)
                self._wait_for(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self.kill(name)

    def start_node(self, node: str) -> None:
        """Start a node of one core."""
        self._start(node, "--address", self.address, "--num-cpus", "1")

    def revive(self) -> None:
        """Start the nodes again that ended by themselves, as where one was too slow to join."""
        for node in NODES:
            if self._processes[node].poll() is not None:
                self.start_node(node)

    def _start(self, node: str, *options: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        # A folder for each node: nodes of one host would remove the files of a job that another still uses.
        shared = (
            "--node-ip-address",
            node,
            "--temp-dir",
            str(self._folder / node),
            "--object-store-memory",
            STORE,
            "--disable-usage-stats",
            "--block",
        )
        with (self._folder / f"{node}.log").open("ab") as log:
            self._processes[node] = subprocess.Popen(
                [ray, "start", *options, *shared],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(self._folder),
            )

    def _wait_for(self, node: str) -> None:
        log, end = self._folder / f"{node}.log", time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            if time.monotonic() > end or self._processes[node].poll() is not None:
                raise RuntimeError(f"{node} does not start: {log.read_text()[-1000:]}")
            time.sleep(POLL_S)

    def kill(self, node: str) -> None:
        """Kill every process of a node."""
        import psutil

        process = self._processes.pop(node)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for pid in [process.pid, *(worker.pid for worker in workers)]:
            _kill(pid)
        process.wait()

    def worker_of(self, node: str) -> int | None:
        """The process on a node that measures; None where there is none now."""
        import psutil

        for process in psutil.Process(self._processes[node].pid).children(recursive=True):
            try:
                if process.name().startswith("ray::") and "SlotProcess" in " ".join(process.cmdline()):
                    return process.pid
            except psutil.NoSuchProcess:
                continue
        return None


def chaos(kills: int, folder: Path, seed: int = 0) -> Outcome:
    """Measure a small plan on a cluster while so many processes are killed, and count what is stored."""
    draw, killed, drivers = random.Random(seed), Counter[str](), 0
    done, run, started = folder / "done", folder / "run", time.monotonic()
    (folder / "mine.py").write_text(KERNEL.replace("SHORTEST", str(SHORTEST)).replace("DONE", str(done)))
    request = _request(kills)
    with contextlib.chdir(folder):
        groups = sweep.prepare(request).plan.groups
    expected = {(group.case(arm).id, arm.id, 0) for group in groups for arm in group.arms}
    with LoopbackCluster(folder) as cluster:
        driver = _driver(request, run, cluster.address, folder)
        drivers += 1
        while time.monotonic() < started + MAX_S * (kills + 1):
            time.sleep(POLL_S)
            cluster.revive()
            if killed.total() >= kills:
                done.touch()
            stored = len(_stored(run))
            if driver.poll() is not None:
                if stored >= len(expected):
                    break
                driver = _driver(request, run, cluster.address, folder)
                drivers += 1
            elif killed.total() < kills and stored >= len(expected) * (killed.total() + 1) // (kills + 1):
                victim = draw.choice(VICTIMS)
                killed[victim] += _hit(victim, cluster, driver, draw.choice(NODES))
        _kill(driver.pid)
        driver.wait()
    counts = Counter(_stored(run))
    results = run_directory.read(run).results
    statuses = Counter(": ".join(filter(None, (result.status.value, result.reason))) for result in results)
    repeated = {key for key, count in counts.items() if count > 1}
    return Outcome(killed, drivers, expected - set(counts), repeated, statuses, time.monotonic() - started)


def _request(kills: int) -> Request:
    lengths = ",".join(str(SHORTEST + STEP * number) for number in range(GROUPS_A_KILL * (kills + 1)))
    return Request(
        axes={"seq": lengths, "mask": "none"}, backend="mine.py:attend", device="cpu:threads=1", rounds="2..2",
        timeout=f"{MAX_S * (kills + 1):.0f}s",
    )  # fmt: skip


def _hit(victim: str, cluster: LoopbackCluster, driver: subprocess.Popen[bytes], node: str) -> bool:
    """Kill something; False where it is not there now."""
    if victim == "driver":
        _kill(driver.pid)
        driver.wait()
    elif victim == "node":
        cluster.kill(node)
        time.sleep(AWAY_S)
        cluster.start_node(node)
    elif (pid := cluster.worker_of(node)) is not None:
        _kill(pid)
    else:
        return False
    return True


def _driver(request: Request, run: Path, address: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command, or continue it."""
    options = [part for key, value in request.axes.items() for part in (f"--{key}", value)]
    options += ["-b", request.backend, "--device", request.device, "--rounds", request.rounds]
    options += ["--timeout", request.timeout, "--budget", "0"]
    where = ["--resume", str(run)] if (run / run_directory.MANIFEST).exists() else ["--out", str(run), *options]
    command = [sys.executable, "-m", "attnbench", "run", "--engine", "ray", "--address", address, *where]
    with (folder / "driver.log").open("ab") as log:
        environment = {**_environment(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)


def _stored(run: Path) -> list[Key]:
    """The key of every line, also of one that a later line replaces."""
    path = run / run_directory.RESULTS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [result.key for line in lines if (result := results_file.decoded(line))]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _environment(folder: Path) -> dict[str, str]:
    """Variables of every process: a token that only this cluster has, and nodes that are soon known to be lost."""
    token = folder / "token"
    if not token.exists():
        token.write_text(secrets.token_hex(32))
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_health_check_period_ms": "500"}
    return {**os.environ, **own, "RAY_USAGE_STATS_ENABLED": "0"}


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Print what was killed and what is stored."""
    kills, seed = (int(sys.argv[place]) if len(sys.argv) > place else default for place, default in ((1, 3), (2, 0)))
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        outcome = chaos(kills, Path(folder), seed)
        if not outcome.right:
            print((Path(folder) / "driver.log").read_text()[-4000:], file=sys.stderr)
    killed = ", ".join(f"{count} {victim}" for victim, count in sorted(outcome.kills.items()))
    statuses = ", ".join(f"{count} {status}" for status, count in outcome.statuses.most_common())
    print(f"killed: {killed}; drivers: {outcome.drivers}; {outcome.seconds:.0f} s")
    print(f"stored: {statuses}; lost: {len(outcome.lost)}; twice: {len(outcome.repeated)}")
    return 0 if outcome.right else 1


if __name__ == "__main__":
    sys.exit(main())
