"""Exponents, claims and longest sequences as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from attnbench import units
from attnbench.report.table import wrap
from attnbench.studies.max_seq import Longest
from attnbench.studies.scaling import Claim, Law

WIDTH = 80
HEADS = ("quantity", "axis", "predicted", "measured", "95 %", "local slopes", "verdict")


def laws(found: Sequence[Law], width: int | None) -> Iterator[str]:
    """One line a law, unwrapped where `width` is None; on a terminal its slopes stand below it."""
    rows = [_cells(law) for law in found]
    if width is None:
        yield from (line.rstrip() for line in _table([HEADS, *rows]))
        return
    heads, *lines = _table([HEADS[:5], *(row[:5] for row in rows)], gap=" ")
    yield f"{heads} verdict"
    for law, row, line in zip(found, rows, lines, strict=True):
        yield f"{line} {law.verdict.value}"
        yield from (
            "    " + piece for piece in wrap(f"slopes {row[5]}" + (f"; {law.why}" if law.why else ""), width - 4)
        )


def _table(rows: Sequence[tuple[str, ...]], gap: str = "  ") -> Iterator[str]:
    columns = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        yield gap.join(cell.ljust(wide) for cell, wide in zip(row, columns, strict=True))


def claims(found: Sequence[Claim], width: int | None) -> Iterator[str]:
    """One paragraph a claim: what it says, what it predicts, what was measured, and the verdict."""
    for claim in found:
        line = f"{claim.id}  {claim.says}: predicts {claim.predicts}; measured {claim.measured}: {claim.verdict.value}"
        yield from wrap(line, width, indent=4) if width else [line]


def tally(found: Sequence[Claim]) -> str:
    """`21 claims: 9 confirmed, 6 refuted`."""
    counts = Counter(claim.verdict.value for claim in found)
    return f"{len(found)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def longest(found: Sequence[Longest], limit: str, width: int | None) -> Iterator[str]:
    """One line a backend."""
    yield f"longest sequence that fits, {limit}"
    yield f"{'backend':<14}{'longest':>9}  {'peak':>9}  {'predicted':>9}  stopped by"
    for one in found:
        seq = str(one.seq) if one.seq else "none"
        why = f"{one.stopped_by} at {one.stopped_at}" if one.stopped_at else "nothing, up to the longest that is tried"
        line = (
            f"{one.arm.name:<14}{seq:>9}  {units.size(one.peak_bytes):>9}  {units.size(one.predicted_bytes):>9}  {why}"
        )
        yield line
        if one.reason and one.stopped_by not in ("memory", "time"):
            yield from wrap(f"  {one.reason}", width or WIDTH, indent=4)


def record(law: Law) -> dict[str, Any]:
    """One line of `scaling --json`."""
    return {
        "type": "law",
        **msgspec.to_builtins(law),
        "measured": law.measured.value,
        "low": law.measured.low,
        "high": law.measured.high,
        "verdict": law.verdict.value,
        "why": law.why,
    }


def longest_record(one: Longest) -> dict[str, Any]:
    """One line of `scaling --find-max-seq --json`."""
    return {
        "type": "max_seq",
        "backend": one.arm.name,
        "device": one.arm.device,
        "seq": one.seq or None,
        "peak_bytes": one.peak_bytes,
        "predicted_bytes": one.predicted_bytes,
        "stopped_by": one.stopped_by if one.stopped_at else None,
        "stopped_at": one.stopped_at or None,
        "reason": one.reason,
        "probes": one.probes,
    }


def _cells(law: Law) -> tuple[str, ...]:
    measured = law.measured
    ends = f"{measured.low:.2f}..{measured.high:.2f}" if measured.low is not None and measured.high is not None else "-"
    first, last = (x for x, _ in (law.points[-law.tail], law.points[-1]))
    slopes = [f"{slope:.2f}" for slope in law.slopes]
    return (
        f"{law.quantity:<5}{law.arm}",
        f"{law.axis} {units.short(first)}..{units.short(last)}",
        f"{law.predicted:g}",
        f"{measured.value:.2f}",
        ends,
        " ".join(slopes),
        law.verdict.value + (f": {law.why}" if law.why else ""),
    )
