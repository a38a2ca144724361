"""Calibrates the nodes of a cluster, all at the same time, each by a process on each of its devices."""

import time
from collections.abc import Iterator, Sequence

import msgspec

from attnbench.engine.cluster import cluster_sweep, nodes
from attnbench.engine.cluster.nodes import ClusterDevice
from attnbench.engine.cluster.processes import Cluster, ProcessLostError, Reference
from attnbench.engine.cluster.slot_process import DeviceRates
from attnbench.engine.request import Request

POLL_S = 0.5  # between two looks at Ctrl-C
ANSWER_S = 180.0  # for a node that another job uses


class NodeRates(msgspec.Struct, frozen=True, kw_only=True):
    """The peak rates of the devices of a node; or what is wrong with it."""

    name: str  # of the node, or of its GPU
    hardware: str
    rates: tuple[DeviceRates, ...] = ()
    problem: str = ""


def calibrate(cluster: Cluster, request: Request, method: str, *arguments: object) -> Iterator[NodeRates]:
    """The rates of each node as it ends: of the classes of the request, or of all.

    `method` of a process is called with its devices and these arguments. Raises UsageError.
    """
    devices = nodes.devices(cluster_sweep.nodes_of(cluster, request))
    processes = {device: cluster.start(device) for device in devices}
    try:
        answers = {cluster.call(process, "describe"): device for device, process in processes.items()}
        until, calls = time.monotonic() + ANSWER_S, dict[Reference, ClusterDevice]()
        while answers and time.monotonic() < until:
            for device, reply in _replies(cluster, answers):
                if isinstance(reply, ProcessLostError):
                    yield _of(device, problem=str(reply))
                    continue
                text = cluster_sweep.device_of(request, device.node)
                calls[cluster.call(processes[device], method, text, *arguments)] = device
        for device in answers.values():
            yield _of(device, problem=f"is used by another job, or does not answer ({ANSWER_S:.0f} s)")
        while calls:
            for device, reply in _replies(cluster, calls):
                if isinstance(reply, list):
                    yield _of(device, rates=tuple(reply))
                else:
                    yield _of(device, problem=str(reply))
    finally:
        for process in processes.values():
            cluster.end(process)


def _replies(cluster: Cluster, calls: dict[Reference, ClusterDevice]) -> Iterator[tuple[ClusterDevice, object]]:
    """Take the replies that are there out of the calls, with their devices; a loss is a reply too."""
    for reference in cluster.ready(list(calls), POLL_S):
        device = calls.pop(reference)
        try:
            yield device, cluster.reply(reference)
        except ProcessLostError as error:
            yield device, error


def _of(device: ClusterDevice, rates: Sequence[DeviceRates] = (), problem: str = "") -> NodeRates:
    return NodeRates(name=device.name, hardware=device.node.hardware, rates=tuple(rates), problem=problem)
