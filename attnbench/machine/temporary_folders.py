"""Temporary folders of this process, and the removal of those that killed processes left behind."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

LOCK = ".attnbench-owner"  # locked while the owner lives
UNLOCKED = ".new-"  # begins the name of a folder whose lock its owner has not yet taken: others must not take it before


@contextlib.contextmanager
def owned_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder within `with`. Folders with this prefix whose owner was killed are removed before."""
    _remove_abandoned(prefix)
    folder = Path(tempfile.mkdtemp(prefix=UNLOCKED + prefix))
    try:
        with FileLock(folder / LOCK, timeout=0, thread_local=False):
            folder = folder.rename(folder.with_name(folder.name.removeprefix(UNLOCKED)))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if (folder / LOCK).is_file():
            with contextlib.suppress(OSError), FileLock(folder / LOCK, timeout=0):  # a Timeout is an OSError
                shutil.rmtree(folder, ignore_errors=True)
