"""The nodes of a cluster and the hardware that a run chooses among them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from attnbench.errors import UnknownNameError, UsageError

LABEL = "attnbench-hardware"  # of a node: the class of hardware that it has, in place of what Ray detected
ACCELERATOR = "ray.io/accelerator-type"
CPU = "cpu"


class ClusterNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the cluster."""

    id: str
    name: str  # its address, and where two nodes share one, the start of the id
    hardware: str  # the class: H100, cpu, or the label of the node
    cpus: float
    gpus: int = 0

    @property
    def kind(self) -> str:
        """The kind of its device."""
        return "cuda" if self.gpus else "cpu"


class ClusterDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What measures one group at a time: a GPU of a node, or its CPU."""

    node: ClusterNode
    number: int = 0

    @property
    def id(self) -> str:
        """Differs from that of every other device; a node that is started again has new ones."""
        return f"{self.node.id}#{self.number}"

    @property
    def name(self) -> str:
        """The name of the node, with the number of the GPU where there are several."""
        return f"{self.node.name}#{self.number + 1}" if self.node.gpus > 1 else self.node.name


def of_ray(entries: Sequence[Mapping[str, Any]]) -> list[ClusterNode]:
    """The usable nodes among those that Ray lists: alive, with at least a core."""
    alive = [each for each in entries if each["Alive"] and each["Resources"].get("CPU", 0.0) >= 1.0]
    addresses = [str(each["NodeManagerAddress"]) for each in alive]
    nodes = []
    for each, address in zip(alive, addresses, strict=True):
        gpus = int(each["Resources"].get("GPU", 0))
        name = address if addresses.count(address) == 1 else f"{address}-{each['NodeID'][:6]}"
        hardware = _hardware(each["Labels"], each["Resources"], gpus)
        nodes.append(
            ClusterNode(id=each["NodeID"], name=name, hardware=hardware, cpus=each["Resources"]["CPU"], gpus=gpus)
        )
    return sorted(nodes, key=lambda node: node.name)


def _hardware(labels: Mapping[str, str], resources: Iterable[str], gpus: int) -> str:
    """https://docs.ray.io/en/latest/ray-core/scheduling/labels.html; `accelerator_type:` stands in older clusters."""
    if name := labels.get(LABEL):
        return name
    if not gpus:
        return CPU
    types = (name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    return labels.get(ACCELERATOR) or next(types, "GPU")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of a cluster. Raises UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--address: not HOST:PORT: {text!r} (try the address that ray start --head prints)")
    return host, int(port)


def devices(nodes: Iterable[ClusterNode]) -> list[ClusterDevice]:
    """What these nodes measure on: each GPU, or the CPU of a node without one."""
    return [ClusterDevice(node=node, number=number) for node in nodes for number in range(max(node.gpus, 1))]


def chosen(nodes: Sequence[ClusterNode], names: Sequence[str]) -> tuple[str, ...]:
    """The classes of hardware of a run, without names the only one. Raises UsageError for one that no node has."""
    there = sorted({node.hardware for node in nodes})
    if not there:
        raise UsageError("--engine ray: no node of the cluster has a free core: start some with ray start --num-cpus N")
    for name in names:
        if name not in there:
            raise UnknownNameError("node with hardware", name, there, where="--hardware")
    if not names and len(there) > 1:
        raise UsageError(f"--hardware is missing: the cluster has {', '.join(there)}; name one or several")
    return tuple(dict.fromkeys(names)) or (there[0],)
