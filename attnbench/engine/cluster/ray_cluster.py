"""Ray as a cluster: one that the user names, or one that starts and ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attnbench.engine.cluster import nodes
from attnbench.engine.cluster.nodes import ClusterDevice, ClusterNode
from attnbench.engine.cluster.processes import Process, ProcessLostError, Reference
from attnbench.engine.cluster.slot_process import SlotProcess
from attnbench.errors import UsageError

INSTALL = "pip install -c constraints.txt '.[ray]'"
CONNECT_S = 5.0
STORE_BYTES = 100_000_000  # of the object store of a Ray of our own: plans and results are small
LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by an address of the network


class RayCluster:
    """The cluster that this process is connected to."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def nodes(self) -> list[ClusterNode]:
        return nodes.of_ray(self._ray.nodes())

    def start(self, device: ClusterDevice) -> Process:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = device.node
        resources = {"num_gpus": 1, "num_cpus": max(1, int(node.cpus // node.gpus))} if node.gpus else {}
        options: dict[str, object] = {"num_cpus": int(node.cpus), "max_restarts": 0, "max_task_retries": 0, **resources}
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        process: Process = self._ray.remote(SlotProcess).options(scheduling_strategy=there, **options).remote()
        return process

    def call(self, process: Process, method: str, *arguments: object) -> Reference:
        reference: Reference = getattr(process, method).remote(*arguments)
        return reference

    def ready(self, references: Sequence[Reference], timeout_s: float) -> list[Reference]:
        done, _ = self._ray.wait(list(references), num_returns=1, timeout=timeout_s)
        return list(done)

    def reply(self, reference: Reference) -> object:
        try:
            reply: object = self._ray.get(reference)
            return reply
        except self._ray.exceptions.RayTaskError:
            raise  # an exception of our code, with its traceback
        except self._ray.exceptions.RayError as error:
            raise ProcessLostError(str(error).strip().splitlines()[0]) from error

    def end(self, process: Process) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(process, no_restart=True)


@contextlib.contextmanager
def connected(address: str, files: Path) -> Iterator[RayCluster]:
    """Connect to the Ray at HOST:PORT; without an address, start one on this machine and end it afterwards.

    This package and the folder `files` travel to every node. Raises UsageError.
    """
    ray = _import()
    package = Path(__file__).parents[2]
    environment = {"working_dir": str(files), "py_modules": [str(package)], "excludes": ["__pycache__"]}
    with tempfile.TemporaryDirectory(prefix="attnbench-ray-", ignore_cleanup_errors=True) as folder:
        where = _of_named(address) if address else _new_ray(folder)
        try:
            ray.init(
                **where, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR,
                configure_logging=False,
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            text = " ".join(str(error).split())[:400]
            raise UsageError(f"{f'--address {address}' if address else '--engine ray'}: {text}") from error
        try:
            yield RayCluster(ray)
        finally:
            ray.shutdown()


def _import() -> Any:
    os.environ.update(RAY_USAGE_STATS_ENABLED="0")  # Ray reads it when it is imported
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(f"--engine ray: Ray is not installed; install: {INSTALL}") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _new_ray(folder: str) -> dict[str, object]:
    # A named RAY_ADDRESS is not used: a cluster is contacted only when --address names it.
    options: dict[str, object] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
        "_temp_dir": folder,
    }
    return options | ({"_node_ip_address": LOOPBACK} if sys.platform == "linux" else {})


def _of_named(address: str) -> dict[str, object]:
    host, port = nodes.parse_address(address)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise UsageError(
            f"--address {address}: cannot be reached within {CONNECT_S:g} s ({reason}); "
            "start Ray there: ray start --head --port PORT"
        ) from error
    return {"address": address, **({"_node_ip_address": host} if host.startswith("127.") else {})}
