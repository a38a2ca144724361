"""What this machine measured before: seconds of calls and of compilations, from which the next run is predicted.

Speeds are stored in the user's cache by machine, beside its calibration.
"""

import contextlib
from pathlib import Path

import msgspec

from attnbench.errors import StoreError
from attnbench.records import ceilings
from attnbench.records.result import Record

VERSION = 3


class Speeds(Record, frozen=True, kw_only=True):
    """Seconds by arm, and how far the predictions of groups were off."""

    version: int = VERSION
    # By backend, device, dtype and mode, and by kind of problem: of these, one call for each half octave of its sizes,
    # oldest first: the sizes (`analysis.workload.Workload`) and the seconds.
    calls: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {}
    compile_s: dict[str, float] = {}  # by backend and device
    ratio: float = 1.0  # seconds of groups beside their calls, over what was predicted
    call_ratio: float = 1.0  # the same of their calls


def _file(fingerprint: str) -> Path:
    return ceilings.folder(fingerprint) / "speeds.json"


def load(fingerprint: str) -> Speeds:
    """The stored speeds of a machine; none if nothing was measured, or in another version of this format."""
    try:
        stored = msgspec.json.decode(_file(fingerprint).read_bytes(), type=Speeds)
    except (OSError, StoreError, msgspec.MsgspecError):
        return Speeds()
    return stored if stored.version == VERSION else Speeds()


def save(fingerprint: str, speeds: Speeds) -> None:
    """Store the speeds. A cache that cannot be written costs only the next prediction."""
    with contextlib.suppress(OSError, StoreError):
        path = _file(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.encode(speeds))
        draft.replace(path)
