"""What the Ray engine adds to a group, by `python -m tools.cluster_overhead [GROUPS]`.

A Ray of its own on this machine measures small problems on one device. The overhead of a group is the time from the end
of the group before it to its own end, both at the driver, less the time that the node measured.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from attnbench.engine import sweep
from attnbench.engine.cluster import cluster_sweep, ray_cluster
from attnbench.engine.cluster.nodes import ClusterDevice, ClusterNode
from attnbench.engine.cluster.processes import Cluster, Process, Reference
from attnbench.engine.cluster.slot_process import GroupMeasured
from attnbench.engine.runner import SilentObserver
from attnbench.engine.sweep import Request

GROUPS = 500
HEADS = 5  # numbers of heads, times which there are lengths


class TimedCluster:
    """A cluster that notes when each group ends, and how long the node measured it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.ends: list[tuple[float, float]] = []

    def nodes(self) -> list[ClusterNode]:
        """The nodes that are alive."""
        return self._cluster.nodes()

    def start(self, device: ClusterDevice) -> Process:
        """Start a process on a device of a node."""
        return self._cluster.start(device)

    def call(self, process: Process, method: str, *arguments: object) -> Reference:
        """Call a method of the process."""
        return self._cluster.call(process, method, *arguments)

    def ready(self, references: Sequence[Reference], timeout_s: float) -> list[Reference]:
        """The calls of these that ended."""
        return self._cluster.ready(references, timeout_s)

    def reply(self, reference: Reference) -> object:
        """What the method returned; the end of a group is noted."""
        reply = self._cluster.reply(reference)
        if isinstance(reply, GroupMeasured):
            self.ends.append((time.perf_counter(), reply.seconds))
        return reply

    def end(self, process: Process) -> None:
        """End the process."""
        self._cluster.end(process)


def overheads_s(ends: Sequence[tuple[float, float]]) -> list[float]:
    """The overhead of each group but the first: `ends` are the times of their ends, and their durations on the node."""
    return [end - before - seconds for (before, _), (end, seconds) in itertools.pairwise(ends)]


def main() -> None:
    """Print the median and the 95th percentile."""
    groups = int(sys.argv[1]) if len(sys.argv) > 1 else GROUPS
    lengths = ",".join(str(8 + number) for number in range(-(-groups // HEADS)))
    heads = ",".join(str(1 + number) for number in range(HEADS))
    request = Request(
        axes={"seq": lengths, "heads": heads, "mask": "none"}, backend="naive", device="cpu:threads=1",
        rounds="2..2", budget="0",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ray_cluster.connected("", Path(folder)) as cluster:
        timed = TimedCluster(cluster)
        planned, engine = cluster_sweep.prepare(timed, request)
        sweep.run(planned, SilentObserver(), directory=Path(folder) / "run", start=engine.start)
    added_ms = [1e3 * seconds for seconds in overheads_s(timed.ends)]
    p95 = statistics.quantiles(added_ms, n=20)[-1]
    local_ms = 1e3 * statistics.median(seconds for _, seconds in timed.ends)
    print(
        f"{len(timed.ends)} groups, each {local_ms:.0f} ms on the node (median); "
        f"the engine adds {statistics.median(added_ms):.1f} ms (median), {p95:.1f} ms (95th percentile)"
    )


if __name__ == "__main__":
    main()
