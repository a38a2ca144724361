"""Memory of the whole process, for libraries that allocate outside torch."""

from __future__ import annotations

import pytest

from attnbench.machine.device import process_memory

MIB = 1024**2


def test_memory_that_a_call_frees_is_seen_in_each_call() -> None:
    """Memory that glibc keeps after the first call would hide the second one."""
    for _ in range(2):
        if (before := process_memory.reset()) is None:
            pytest.skip("this system has no high-water mark")
        block = b"x" * (64 * MIB)
        del block
        assert 63 * MIB <= process_memory.grown(before) <= 96 * MIB
