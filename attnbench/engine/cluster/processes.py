"""What a driver needs of a cluster: its nodes, and processes on them that are called without waiting."""

from collections.abc import Sequence
from typing import Protocol

from attnbench.engine.cluster.nodes import ClusterDevice, ClusterNode

Reference = object  # to the reply of a call
Process = object  # a SlotProcess elsewhere


class ProcessLostError(Exception):
    """A process ended, or its node did; it says which."""


class Cluster(Protocol):
    """A cluster: Ray's, or one that a test scripts."""

    def nodes(self) -> list[ClusterNode]:
        """The nodes that are alive."""

    def start(self, device: ClusterDevice) -> Process:
        """Start a process on a device of a node. It owns the device, or the whole CPU of the node, until it ends."""

    def call(self, process: Process, method: str, *arguments: object) -> Reference:
        """Call a method of the process."""

    def ready(self, references: Sequence[Reference], timeout_s: float) -> list[Reference]:
        """The calls of these that ended, at least one unless the timeout passes."""

    def reply(self, reference: Reference) -> object:
        """What the method returned. Raises ProcessLostError."""

    def end(self, process: Process) -> None:
        """End the process and its workers."""
