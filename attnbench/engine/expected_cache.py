"""Expected values of earlier runs, in the user's cache: the oracle computes those of a problem once on a machine.

An entry is found only by the same problem, inputs, seed, code, torch and machine. The cache is bounded; what other runs
may be reading stays.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import msgspec

from attnbench.attention import user_folders
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Similarity
from attnbench.errors import StoreError
from attnbench.machine import identity
from attnbench.records.case import canonical
from attnbench.worker.protocol import EXPECTED_FILE

DRAFT = "draft-"  # begins the name of a directory that is not complete
MAX_BYTES = 2 * 1024**3
IN_USE_S = 3600.0  # an entry that was read so recently is not deleted
PART_S = 24 * 3600.0  # an entry that covers a part of the rows is computed again after a day
CODE = ("attention/**/*.py", "worker/expected_values.py", "worker/reference_outputs.py", "worker/tolerances.py")


class _Selection(msgspec.Struct):
    share: float = 1.0


class _Stored(msgspec.Struct):
    """What is read here of a record of expected values."""

    selection: _Selection


def folder() -> Path:
    """The directory of the cache."""
    return user_folders.cache() / "expected"


def entry(problem: Problem, mode: Mode, seed: int, inputs: str, budget_s: float) -> Path | None:
    """The directory of these values, whether it is there or not; None for what depends on a user's file."""
    if inputs.startswith("file:") or problem.score.similarity is Similarity.FILE:
        return None
    with contextlib.suppress(StoreError):  # no home directory
        return folder() / _key(problem, mode, seed, inputs, budget_s)
    return None


def _key(problem: Problem, mode: Mode, seed: int, inputs: str, budget_s: float) -> str:
    key = [canonical(problem), mode.value, seed, inputs, budget_s, identity.code_digest(CODE), _installation()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def stored(directory: Path) -> float | None:
    """The share of rows that the values in `directory` cover; None if they are not there or too old."""
    try:
        record = directory / EXPECTED_FILE
        share = msgspec.json.decode(record.read_bytes(), type=_Stored).selection.share
        if share < 1 and time.time() - record.stat().st_mtime > PART_S:
            return None
        directory.touch()
    except (OSError, msgspec.MsgspecError):
        return None
    return share


def draft(name: str) -> Path | None:
    """A new directory in the cache for values that are being computed; None where the cache cannot be written."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{DRAFT}{name}-", dir=folder()))
    except (OSError, StoreError):
        return None


def keep(written: Path, directory: Path) -> Path:
    """Give a draft that is complete its place; return where it is then."""
    with contextlib.suppress(OSError):
        shutil.rmtree(directory, ignore_errors=True)
        return written.rename(directory)
    return written


def make_room(limit_bytes: int = MAX_BYTES) -> None:
    """Delete drafts that were left, and beyond the limit the entries that were not read for longest."""
    with contextlib.suppress(OSError, StoreError):
        total, now = 0, time.time()
        for path in sorted(folder().iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            total += sum(file.stat().st_size for file in path.iterdir())
            if (total > limit_bytes or path.name.startswith(DRAFT)) and now - path.stat().st_mtime > IN_USE_S:
                shutil.rmtree(path, ignore_errors=True)


@cache
def _installation() -> list[str]:
    packages = identity.packages()
    return [identity.fingerprint()[0], *(packages.get(name, "") for name in ("torch", "numpy"))]
