"""JSON Lines: one object for each (case, arm), then one summary; docs/formats.md lists the keys, which are stable."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from attnbench.analysis.rows import Row, Value

T = TypeVar("T")
KEYS = (
    "case_id", "label", "arm", "backend", "device", "mode", "status", "reason", "time_s", "time_low_s", "time_high_s",
    "interval", "rounds", "restarts", "noisy", "speedup", "reference", "flops", "bytes", "flop_per_s", "peak_bytes",
    "max_abs_err", "first_call_s", "compile_s", "mask_build_s",
)  # fmt: skip


def record(row: Row, metrics: Sequence[str] = ()) -> dict[str, Value]:
    """One case; with metrics also their values, what bounds the case, and its notes."""
    more = (*metrics, "bound", "notes") if metrics else ()
    return {"type": "case", **{key: strict(row.value(key)) for key in (*KEYS, *more)}}


def impossible(text: str, reason: str) -> dict[str, Value]:
    """A cell of the suite that makes no valid problem: planned, and skipped."""
    return {"type": "case", **dict.fromkeys(KEYS), "label": text, "status": "skipped", "reason": reason}


def line(value: Mapping[str, object]) -> str:
    """One line, without its end."""
    return msgspec.json.encode(value).decode()


def strict(value: T) -> T | None:
    """None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
