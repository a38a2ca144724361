"""Ray as a cluster: one that the user names, or one that starts and ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attnbench.engine.cluster import job_files, nodes
from attnbench.engine.cluster.nodes import ClusterDevice, ClusterNode
from attnbench.engine.cluster.processes import Process, ProcessLostError, Reference
from attnbench.engine.cluster.slot_process import SlotProcess
from attnbench.errors import UsageError
from attnbench.machine.temporary_folders import owned_folder

INSTALL = "pip install -c constraints.txt '.[ray]'"
CONNECT_S = 5.0
STORE_BYTES = 100_000_000  # of the object store of a Ray of our own: plans and results are small
REPLACED = "127.0.0.1"  # by Ray, with an address of the network
LOOPBACK = "127.0.0.2"
MAX_NAMED = 5  # living nodes, in an error


class RayProcess(SlotProcess):
    """A slot process whose working directory holds its own copy of the files that travelled.

    Ray unpacks a `working_dir` anew for each node, and takes it from the processes of other nodes on the same machine.
    """

    def __init__(self, files: bytes) -> None:
        super().__init__()
        self._folder = contextlib.ExitStack()
        job_files.unpack(files, self._folder.enter_context(owned_folder("attnbench-node-")))


class RayCluster:
    """The cluster that this process is connected to. `files`: that travel, packed."""

    def __init__(self, ray: Any, files: bytes) -> None:
        self._ray, self._files = ray, ray.put(files)

    def nodes(self) -> list[ClusterNode]:
        return nodes.of_ray(self._ray.nodes())

    def start(self, device: ClusterDevice) -> Process:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = device.node
        resources = {"num_gpus": 1, "num_cpus": max(1, int(node.cpus // node.gpus))} if node.gpus else {}
        options: dict[str, object] = {"num_cpus": int(node.cpus), "max_restarts": 0, "max_task_retries": 0, **resources}
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        process: Process = (
            self._ray.remote(RayProcess).options(scheduling_strategy=there, **options).remote(self._files)
        )
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
    ray = _import(address)
    with owned_folder("attnbench-ray-") as folder:
        package = job_files.package(folder / "sent")
        runtime = {"py_modules": [str(package)], "excludes": ["__pycache__"]}
        where = _of_named(address) if address else _new_ray(str(folder))
        _look_shortly()
        log = folder / "connecting"
        try:
            with _stderr_to(log):
                ray.init(
                    **where, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR,
                    configure_logging=False,
                )  # fmt: skip
            _silence(ray)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.AuthenticationError) as error:
            raise UsageError(not_connected(address, error, log.read_text(errors="replace"))) from error
        try:
            yield RayCluster(ray, job_files.packed(files))
        finally:
            ray.shutdown()


def _silence(ray: Any) -> None:
    """Keep the pages that Ray prints on stdout for a lost node from the output: the runner says it in a line.

    No public option stops them: `log_to_driver` is for the output of workers. A test fails where Ray changes this.
    """
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


def _look_shortly() -> None:
    """Let Ray look for its node on this machine for CONNECT_S; it is a minute by default.

    No public option changes it: the variable for it bounds later requests too. A test fails where Ray changes this.
    """
    from ray._private import services

    shortly = partial(services.get_node_to_connect_for_driver, timeout_seconds=int(CONNECT_S))
    vars(services)["get_node_to_connect_for_driver"] = shortly


def living_nodes(address: str) -> list[str]:
    """The addresses of the living nodes of the cluster at HOST:PORT, that of its head first."""
    import ray._raylet
    from ray._private import services

    client = vars(ray._raylet)["GcsClient"](address=address)
    alive = vars(services)["GcsNodeInfo"].GcsNodeState.ALIVE
    there = client.get_all_node_info(timeout=CONNECT_S, state_filter=alive).values()
    return [str(node.node_manager_address) for node in sorted(there, key=lambda node: not node.is_head_node)]


def not_connected(
    address: str, error: Exception, log: str, living: Callable[[str], Sequence[str]] = living_nodes
) -> str:
    """Why Ray did not connect, from its exception, what it wrote, and the living nodes of the cluster."""
    where = f"--address {address}" if address else "--engine ray"
    text = " ".join(str(error).split())[:400]
    if type(error).__name__ == "AuthenticationError" or "InvalidAuthToken" in log or "Unauthenticated" in log:
        return (
            f"{where}: Ray refused the token; set RAY_AUTH_MODE (token or disabled) here as on the nodes of the "
            "cluster, and for token their token as RAY_AUTH_TOKEN or in ~/.ray/auth_token"
        )
    if "No node info found" in str(error.__cause__):
        return f"{where}: Ray answers there, but {_without_node(address, living(address))}"
    return f"{where}: {text}"


def _without_node(address: str, living: Sequence[str]) -> str:
    """What is wrong with an address whose cluster has no node for this process, and what to use."""
    host, port = nodes.parse_address(address)
    start = f"start one here: ray start --address {address}"
    if not living:
        return f"its cluster has no living node; {start}"
    if host.startswith("127.") and host not in living:
        return f"no living node of its cluster has this address; name its head: --address {living[0]}:{port}"
    others = f" and {len(living) - MAX_NAMED} more" if len(living) > MAX_NAMED else ""
    named = ", ".join(living[:MAX_NAMED]) + others
    return f"no living node of its cluster is on this machine; run the command on one of {named}, or {start}"


@contextlib.contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Write the standard error of this process to a file meanwhile: that of Ray's C++ too."""
    sys.stderr.flush()
    before = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


def _import(address: str) -> Any:
    os.environ.update(environment(address))
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UsageError(f"--engine ray: Ray is not installed; install: {INSTALL}") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def environment(address: str) -> dict[str, str]:
    """Variables that Ray reads when it is imported and connects."""
    # Files that a .gitignore leaves out travel too: a kernel of the user may be one.
    usage = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1"}
    if address:
        return usage | {"RAY_gcs_server_port_wait_time_s": f"{CONNECT_S:.0f}"}
    # Without a token in the environment, Ray writes one to the home directory, which later clusters then ask for.
    return usage | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


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
    # Of the other loopback addresses the driver must take the same one as its node.
    own = host.startswith("127.") and host != REPLACED
    return {"address": address, **({"_node_ip_address": host} if own else {})}
