"""Two or more runs beside each other: as a table, Markdown, CSV or JSON Lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench import comparison, units
from attnbench.comparison import Change, Comparison, Pair
from attnbench.report import csv, jsonl
from attnbench.report.markdown import escape
from attnbench.report.table import width_of, wrap

FORMATS = ("table", "md", "csv", "jsonl")
MEMORY_WITHIN = 0.01  # of the peak, and a mebibyte: less is no change worth a word
MEMORY_WITHIN_BYTES = 2**20
PAIRS_MOST = 1000  # of a table for people
HEADS = ("old", "new", "new / old", "95 %", "")


def text(found: Sequence[Comparison], format_: str, width: int) -> Iterator[str]:
    """Lines in one of FORMATS."""
    if format_ == "csv":
        rows = comparison.rows(found)
        yield csv.text(rows, rows[0] if rows else ()).rstrip("\n")
    elif format_ == "jsonl":
        yield from (jsonl.line({"type": "comparison", **row}) for row in comparison.rows(found))
    else:
        for one in found:
            yield from _markdown(one) if format_ == "md" else _table(one, width)


def tally(one: Comparison) -> str:
    """`12 cases: 8 ~, 3 slower, 1 new.`"""
    counts = Counter(pair.change.value for pair in one.pairs)
    words = {Change.NOTHING.value: "ok in neither"}
    said = [f"{count} {words.get(change, change)}" for change, count in counts.most_common()]
    return f"{len(one.pairs)} cases: {', '.join(said)}."


def _table(one: Comparison, width: int) -> Iterator[str]:
    yield from wrap(f"{one.new} against {one.old}" + (CROSSED if one.cross_machine else ""), width, indent=2)
    yield ""
    rows = [(pair, _cells(pair)) for pair in _shown(one)]
    wide = [max([width_of(head), *(width_of(cells[place]) for _, cells in rows)]) for place, head in enumerate(HEADS)]
    label_most = max(24, width - sum(wide) - 2 * len(wide))
    label = min(label_most, max((width_of(_name(pair)) for pair, _ in rows), default=4))
    yield (
        "case".ljust(label) + "".join(f"  {head.rjust(size)}" for head, size in zip(HEADS, wide, strict=True))
    ).rstrip()
    for pair, cells in rows:
        first, *rest = wrap(_name(pair), label)
        yield (
            first.ljust(label) + "".join(f"  {cell.rjust(size)}" for cell, size in zip(cells, wide, strict=True))
        ).rstrip()
        yield from (f"  {piece}" for piece in rest)
        yield from (f"    {line}" for note in _notes(pair) for line in wrap(note, width - 4))
    yield ""
    yield from _more(one)
    yield from _means(one)
    yield tally(one)


def _markdown(one: Comparison) -> Iterator[str]:
    yield f"## {escape(one.new)} against {escape(one.old)}" + (CROSSED if one.cross_machine else "")
    yield ""
    yield f"| case | {' | '.join(HEADS[:4])} | change |"
    yield "|---|---:|---:|---:|---:|---|"
    for pair in _shown(one):
        notes = "; ".join(_notes(pair))
        cells = [*_cells(pair)[:4], pair.change.value + (f" ({notes})" if notes else "")]
        yield f"| {escape(_name(pair))} | {' | '.join(map(escape, cells))} |"
    yield ""
    yield from (f"{line}  " for line in (*_more(one), *_means(one)))
    yield tally(one)
    yield ""


CROSSED = " (two machines: nothing here is a regression)"


def _name(pair: Pair) -> str:
    return f"{pair.label}@{pair.arm.partition('@')[2]}" if "@" in pair.arm else pair.label


def _cells(pair: Pair) -> tuple[str, ...]:
    ratio = pair.ratio
    if ratio is None:
        return units.seconds(pair.old_s), units.seconds(pair.new_s), "-", "-", pair.change.value
    ends = f"{ratio.low:.3f}..{ratio.high:.3f}" if ratio.low is not None and ratio.high is not None else "-"
    return units.seconds(pair.old_s), units.seconds(pair.new_s), f"{ratio.value:.3f}", ends, pair.change.value


def _notes(pair: Pair) -> Iterator[str]:
    if pair.reason and pair.change in (Change.BROKEN, Change.MISSING, Change.NOTHING):
        yield pair.reason
    old, new = pair.old_peak, pair.new_peak
    if old is not None and new is not None and abs(new - old) > max(MEMORY_WITHIN * old, MEMORY_WITHIN_BYTES):
        yield f"peak memory {units.size(old)} -> {units.size(new)}"


def _shown(one: Comparison) -> list[Pair]:
    """Without those that are ok in neither run, which the tally counts and CSV has."""
    return [pair for pair in one.pairs if pair.change is not Change.NOTHING][:PAIRS_MOST]


def _more(one: Comparison) -> Iterator[str]:
    if len(_shown(one)) == PAIRS_MOST:
        yield f"the first {PAIRS_MOST}, largest effects first; --format csv has all {len(one.pairs)}"


def _means(one: Comparison) -> Iterator[str]:
    for arm, mean in sorted(one.geomeans.items()):
        ends = f" ({mean.low:.3f}..{mean.high:.3f})" if mean.low is not None and mean.high is not None else ""
        yield f"{arm}: {mean.value:.3f}x over {mean.count} cases, geometric mean{ends}"
