"""JSON Lines: one object for each (case, arm), then one summary; docs/formats.md lists the keys, which are stable."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from attnbench.analysis.rows import Row, Value
from attnbench.records.result import Facts, Result
from attnbench.report.terminal.failures import DETAILS, is_listed

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


def failures(rows: Iterable[Row], results: Iterable[Result]) -> Iterator[Mapping[str, object]]:
    """The failed cases, each with the first trace and log of its restarts where there is one."""
    failed: dict[tuple[str, str], Facts] = {}
    for result in results:
        if is_listed(result):
            details = {name: result.facts[name] for name in DETAILS if name in result.facts}
            key = result.case.id, result.arm.id
            failed[key] = details | failed.get(key, {})
    for row in rows:
        if (row.case_id, row.arm) in failed:
            yield record(row) | failed[row.case_id, row.arm]


def line(value: Mapping[str, object]) -> str:
    """One line, without its end."""
    return msgspec.json.encode(value).decode()


def strict(value: T) -> T | None:
    """None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
