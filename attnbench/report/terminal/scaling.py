"""Measured exponents, the claims that they confirm or refute, and the longest sequence that fits."""

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from attnbench import units
from attnbench.report.pivot import interval
from attnbench.report.terminal.text_layout import terminal_width, wrap
from attnbench.studies.max_seq import Longest
from attnbench.studies.scaling import Claim, Law

HEADINGS = ("quantity", "axis", "predicted", "measured", "95 %", "local slopes", "verdict")
PEAKS = "peak: measured, beside inputs and outputs; predicted: with them"


def laws(laws: Sequence[Law], width: int | None) -> Iterator[str]:
    """One line for each law, not wrapped if `width` is None; on a terminal its slopes are on the next line."""
    rows = [_cells(law) for law in laws]
    if width is None:
        yield from (line.rstrip() for line in _table([HEADINGS, *rows]))
        return
    heading, *lines = _table([HEADINGS[:5], *(row[:5] for row in rows)], gap=" ")
    yield f"{heading} verdict"
    for law, row, line in zip(laws, rows, lines, strict=True):
        yield f"{line} {law.verdict.value}"
        slopes = f"slopes {row[5]}" + (f"; {law.why}" if law.why else "")
        yield from (f"    {piece}" for piece in wrap(slopes, width - 4))


def _table(rows: Sequence[tuple[str, ...]], gap: str = "  ") -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))


def claims(claims: Sequence[Claim], width: int | None) -> Iterator[str]:
    """One paragraph for each claim: what it says and predicts, what was measured, and the verdict."""
    for claim in claims:
        line = f"{claim.id}  {claim.says}: predicts {claim.predicts}; measured {claim.measured}: {claim.verdict.value}"
        yield from wrap(line, width, indent=4) if width else [line]


def tally(claims: Sequence[Claim]) -> str:
    """`21 claims: 9 confirmed, 6 refuted`."""
    counts = Counter(claim.verdict.value for claim in claims)
    return f"{len(claims)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def record(law: Law) -> dict[str, object]:
    """One line of `scaling --json`."""
    measured = {"measured": law.measured.value, "low": law.measured.low, "high": law.measured.high}
    return {"type": "law", **msgspec.to_builtins(law), **measured, "verdict": law.verdict.value, "why": law.why}


def longest(results: Sequence[Longest], limit: str, width: int | None) -> Iterator[str]:
    """One line for each backend, and the reason if it is neither memory nor time."""
    yield f"longest sequence that fits, {limit}"
    yield f"{'backend':<14}{'longest':>9}  {'peak':>9}  {'predicted':>9}  stopped by"
    for result in results:
        seq = str(result.seq) if result.seq else "none"
        sizes = f"{units.size(result.peak_bytes):>9}  {units.size(result.predicted_bytes):>9}"
        stop = (
            f"{result.stopped_by} at {result.stopped_at}" if result.stopped_at else "nothing, up to the longest tried"
        )
        yield f"{result.arm.name:<14}{seq:>9}  {sizes}  {stop}"
        if result.reason and result.stopped_by not in ("memory", "time"):
            yield from wrap(f"  {result.reason}", width or terminal_width(), indent=4)
    yield from wrap(PEAKS, width or terminal_width(), indent=2)


def longest_record(result: Longest) -> dict[str, object]:
    """One line of `scaling --find-max-seq --json`."""
    names = ("peak_bytes", "predicted_bytes", "stopped_by", "stopped_at", "reason", "probes")
    values = {"seq": result.seq or None, **{name: getattr(result, name) for name in names}}
    if not result.stopped_at:
        values |= {"stopped_by": None, "stopped_at": None}
    return {"type": "max_seq", "backend": result.arm.name, "device": result.arm.device, **values}


def _cells(law: Law) -> tuple[str, ...]:
    measured = law.measured
    first, last = (x for x, _ in (law.points[-law.tail], law.points[-1]))
    return (
        f"{law.quantity:<5}{law.arm}",
        f"{law.axis} {units.short(first)}..{units.short(last)}",
        f"{law.predicted:g}",
        f"{measured.value:.2f}",
        interval(measured, 2),
        " ".join(f"{slope:.2f}" for slope in law.slopes),
        law.verdict.value + (f": {law.why}" if law.why else ""),
    )
