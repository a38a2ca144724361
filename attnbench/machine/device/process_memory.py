"""Memory of this process by its high-water mark, for libraries that do not use torch's allocator. Linux only.

The kernel counts pages of 4 KiB, and counts some of each thread late: the figure is right to about half a mebibyte.
"""

import contextlib
import ctypes
import re
from pathlib import Path

METHOD = "high-water mark"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset() -> int | None:
    """Return free memory to the system, and set the mark to what is in use: that many bytes; None where it cannot be.

    Without the first step a call would reuse memory that an earlier one has freed, and show no growth.
    """
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")  # https://docs.kernel.org/filesystems/proc.html
        return _bytes("VmRSS")
    return None


def grown(before: int) -> int:
    """Bytes by which the mark is above `before`."""
    return max(_bytes("VmHWM") - before, 0)


def _bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match, name
    return 1024 * int(match[1])
