"""One gate at a time on a machine: two at once would disturb each other's times."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout

from attnbench import units
from attnbench.attention import user_folders
from attnbench.errors import LockedError, StoreError

FILE = "gate.lock"  # in the user's cache folder


@contextlib.contextmanager
def alone(note: Callable[[str], None], timeout_s: float) -> Iterator[None]:
    """Wait until no other gate of this user measures here, and `note` that. LockedError after `timeout_s` seconds.

    Without a cache folder that can be written nothing is locked.
    """
    lock = _locked(note, timeout_s)
    try:
        yield
    finally:
        if lock:
            lock.release()


def _locked(note: Callable[[str], None], timeout_s: float) -> FileLock | None:
    try:
        file = user_folders.cache() / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        holder = file.read_text(encoding="utf-8") if file.exists() else ""
        lock = FileLock(file, timeout=0, fallback_to_soft=False)
        lock.acquire()
    except Timeout:
        note(f"another gate, process {holder}, measures on this machine: this one waits for its end")
        try:
            lock.acquire(timeout=-1 if math.isinf(timeout_s) else timeout_s)
        except Timeout:
            problem = f"another gate, process {holder}, has measured for {units.seconds(timeout_s)}"
            raise LockedError(f"{problem}: run one gate after the other, or wait longer with --budget") from None
    except (OSError, StoreError):
        return None
    file.write_text(str(os.getpid()), encoding="utf-8")
    return lock
