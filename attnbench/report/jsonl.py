"""JSON Lines: one object a (case, arm), then one summary. The keys are stable; docs/formats.md lists them."""

from __future__ import annotations

import math
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


def record(row: Row) -> dict[str, Any]:
    """One case."""
    return {"type": "case", **{key: _plain(row[key]) for key in KEYS}}


def line(value: dict[str, Any]) -> str:
    """One line, without its end."""
    return msgspec.json.encode(value).decode()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
