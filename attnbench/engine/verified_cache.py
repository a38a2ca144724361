"""Cases that this machine has verified in full: a later run of the same code verifies them in brief.

Only built-in backends in this environment are remembered. A key holds the case, the device, the inputs, every file of
this package, the versions of all libraries and the machine; whatever differs is verified in full again.
"""

import contextlib
import hashlib
import json
from functools import cache
from pathlib import Path

from attnbench import backends
from attnbench.attention import user_folders
from attnbench.engine import expected_cache
from attnbench.errors import StoreError
from attnbench.machine import identity
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Procedure

FILE = "verified.txt"  # a key per line, the latest last
MAX_KEYS = 100_000


class VerifiedCases:
    """The keys in the user's cache. A cache that cannot be read or written holds nothing."""

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        with contextlib.suppress(OSError, StoreError, UnicodeDecodeError):
            self._keys = dict.fromkeys(_file().read_text(encoding="ascii").split())

    def holds(self, case: Case, arm: Arm, procedure: Procedure) -> bool:
        """Whether the case was verified in full before."""
        return _key(case, arm, procedure) in self._keys

    def add(self, case: Case, arm: Arm, procedure: Procedure) -> None:
        """Remember a case that was verified in full."""
        key = _key(case, arm, procedure)
        if not key or key in self._keys:
            return
        self._keys[key] = None
        with contextlib.suppress(OSError, StoreError):
            file = _file()
            file.parent.mkdir(parents=True, exist_ok=True)
            if len(self._keys) > MAX_KEYS:
                self._keys = dict.fromkeys(list(self._keys)[MAX_KEYS // 2 :])
                file.write_text("".join(f"{key}\n" for key in self._keys), encoding="ascii")
            else:
                with file.open("a", encoding="ascii") as lines:
                    lines.write(f"{key}\n")


def _file() -> Path:
    return user_folders.cache() / FILE


def _key(case: Case, arm: Arm, procedure: Procedure) -> str:
    """Empty for what may change without a trace: files of users, other environments and import paths."""
    seed, inputs = procedure.seed, procedure.inputs
    fixed = arm.backend in backends.BUILTIN and not (arm.python or arm.path)
    if not fixed or expected_cache.entry(case.problem, case.mode, seed, inputs, 0.0) is None:
        return ""
    key = [case.id, arm.device, arm.env, seed, inputs, _code()]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """A digest of this package, the libraries and the machine."""
    digest = hashlib.sha256(json.dumps([identity.fingerprint()[0], identity.packages()]).encode())
    digest.update(identity.code_digest().encode())
    return digest.hexdigest()
