"""Times of single kernels by CUPTI, through NVIDIA's cupti-python (https://docs.nvidia.com/cupti-python)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

INSTALL = "pip install 'cupti-python>=13'"
LEAST = 13
BUFFER_BYTES = 8 * 1024**2


def objection() -> str | None:
    """Why kernels cannot be timed by CUPTI here, with what would help; None if they can."""
    try:
        version = metadata.version("cupti-python")
    except metadata.PackageNotFoundError:
        return f"timing mode cupti needs cupti-python: {INSTALL}"
    if int(version.partition(".")[0]) < LEAST:
        return f"timing mode cupti needs cupti-python {LEAST}, and {version} is installed: {INSTALL}"
    try:
        from cupti import cupti  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"timing mode cupti: cupti-python {version} does not import: {error}"
    return None


def device_seconds(work: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Seconds of all kernels, copies and fills of `work`, added up; the gaps between them do not count."""
    from cupti import cupti

    spans_ns: list[int] = []

    def buffer() -> tuple[int, int]:
        return BUFFER_BYTES, 0  # 0: as many records as fit

    def collect(activities: list[Any]) -> None:
        spans_ns.extend(activity.end - activity.start for activity in activities)

    kinds = (cupti.ActivityKind.CONCURRENT_KERNEL, cupti.ActivityKind.MEMCPY, cupti.ActivityKind.MEMSET)
    # Registered anew for every reading, because torch's profiler puts its own in their place.
    cupti.activity_register_callbacks(buffer, collect)
    enabled = []
    try:
        for kind in kinds:
            cupti.activity_enable(kind)
            enabled.append(kind)
        work()
        synchronize()
        cupti.activity_flush_all(1)
    finally:
        for kind in enabled:
            cupti.activity_disable(kind)
    if not spans_ns:
        raise RuntimeError("CUPTI saw no kernel of this call: another profiler may hold it")
    return sum(spans_ns) / 1e9
