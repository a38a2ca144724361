"""JSON Lines: one object a (case, arm), then one summary. The keys are stable; docs/formats.md lists them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from attnbench.frame import Row

KEYS = (
    "case_id",
    "label",
    "arm",
    "backend",
    "device",
    "mode",
    "status",
    "reason",
    "time_s",
    "time_low_s",
    "time_high_s",
    "interval",
    "rounds",
    "launches",
    "noisy",
    "speedup",
    "reference",
    "flops",
    "bytes",
    "flop_per_s",
    "peak_bytes",
    "max_abs_err",
    "first_call_s",
    "compile_s",
    "mask_build_s",
)


def record(row: Row, metrics: Sequence[str] = ()) -> dict[str, Any]:
    """One case; with metrics, those too, what binds it, and what a reader must know of it."""
    more = (*metrics, "bound", "notes") if metrics else ()
    return {"type": "case", **{key: plain(row[key]) for key in (*KEYS, *more)}}


def impossible(text: str, reason: str) -> dict[str, Any]:
    """A cell of a product that is no problem: planned, and skipped."""
    return {"type": "case", **dict.fromkeys(KEYS), "label": text, "status": "skipped", "reason": reason}


def line(value: dict[str, Any]) -> str:
    """One line, without its end."""
    return msgspec.json.encode(value).decode()


def plain(value: Any) -> Any:
    """What strict JSON can hold: no NaN, no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
