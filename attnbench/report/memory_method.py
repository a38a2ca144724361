"""How the memory of calls was measured, in words: two methods that a reader must not take for one."""

from collections.abc import Iterable

from attnbench import backends
from attnbench.analysis.rows import Row

ALLOCATOR = "the peak of torch's allocator"
PROCESS = "the high-water mark of the process"


def of_process(row: Row) -> bool:
    """Whether memory is the growth of the process in one call: the library has an allocator of its own."""
    on_cpu = row.device.partition(":")[0] == "cpu"
    return on_cpu and row.backend in backends.BUILTIN and backends.load(row.backend).outside_torch


def words(rows: Iterable[Row]) -> str:
    """`the peak of torch's allocator; of ort:gqa, the high-water mark of the process`; empty without memory."""
    arms = {row.arm_name: of_process(row) for row in rows if row.total_bytes is not None or row.peak_bytes is not None}
    others = [arm for arm, by_process in arms.items() if by_process]
    if not arms or len(others) == len(arms):
        return PROCESS if arms else ""
    return ALLOCATOR + (f"; of {', '.join(others)}, {PROCESS}" if others else "")
