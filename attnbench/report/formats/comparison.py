"""The comparison of two or more runs as a table, Markdown, CSV or JSON Lines."""

from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.analysis import comparison
from attnbench.analysis.comparison import Change, Comparison, Pair
from attnbench.report.formats import csv, jsonl
from attnbench.report.formats.markdown import escape, table
from attnbench.report.pivot import interval
from attnbench.report.terminal.text_layout import aligned, wrap

MEMORY_TOLERANCE = 0.01  # of the peak; a smaller change of memory, or one below a mebibyte, is not mentioned
MEMORY_TOLERANCE_BYTES = 2**20
MAX_PAIRS = 1000  # of a table for people
HEADINGS = ("old", "new", "new / old", "95 %", "")
CROSSED = " (measured on two machines, so no difference is a regression)"


def text(comparisons: Sequence[Comparison], format_: str, width: int) -> Iterator[str]:
    """Lines in one of FORMATS."""
    if format_ == "csv":
        rows = comparison.rows(comparisons)
        yield csv.text(rows, rows[0] if rows else ()).rstrip("\n")
    elif format_ == "jsonl":
        yield from (jsonl.line({"type": "comparison", **row}) for row in comparison.rows(comparisons))
    else:
        for pairs in comparisons:
            yield from _markdown(pairs) if format_ == "md" else _table(pairs, width)


def tally(pairs: Comparison) -> str:
    """`12 cases: 8 ~, 3 slower, 1 new.`"""
    counts = Counter(pair.change for pair in pairs.pairs)
    names = {Change.NOTHING: "ok in neither"}
    parts = [f"{count} {names.get(change, change.value)}" for change, count in counts.most_common()]
    return f"{len(pairs.pairs)} cases: {', '.join(parts)}."


def _table(pairs: Comparison, width: int) -> Iterator[str]:
    heading = f"{pairs.new} against {pairs.old}" + (CROSSED if pairs.cross_machine else "")
    yield from wrap(heading, width, indent=2)
    yield ""
    shown = _shown(pairs)
    head, *lines = aligned("case", HEADINGS, [(pair.name, _cells(pair)) for pair in shown], width)
    yield from head
    for pair, row in zip(shown, lines, strict=True):
        yield from row
        yield from (f"    {piece}" for note in _notes(pair) for piece in wrap(note, width - 4))
    yield ""
    yield from _footer(pairs)
    yield tally(pairs)


def _markdown(pairs: Comparison) -> Iterator[str]:
    yield f"## {escape(pairs.new)} against {escape(pairs.old)}" + (CROSSED if pairs.cross_machine else "")
    yield ""
    rows = []
    for pair in _shown(pairs):
        *figures, change = _cells(pair)
        notes = "; ".join(_notes(pair))
        rows.append((pair.name, *figures, change + (f" ({notes})" if notes else "")))
    yield table(("case", *HEADINGS[:4], "change"), rows, (False, True, True, True, True, False))
    yield from (f"{line}  " for line in _footer(pairs))
    yield tally(pairs)
    yield ""


def _cells(pair: Pair) -> tuple[str, ...]:
    ratio = f"{pair.ratio.value:.3f}" if pair.ratio else "-"
    return units.seconds(pair.old_s), units.seconds(pair.new_s), ratio, interval(pair.ratio, 3), pair.change.value


def _notes(pair: Pair) -> Iterator[str]:
    if pair.reason and pair.change in (Change.BROKEN, Change.MISSING, Change.NOTHING):
        yield pair.reason
    old, new = pair.old_peak, pair.new_peak
    if old is not None and new is not None and abs(new - old) > max(MEMORY_TOLERANCE * old, MEMORY_TOLERANCE_BYTES):
        yield f"peak memory {units.size(old)} -> {units.size(new)}"


def _shown(pairs: Comparison) -> list[Pair]:
    """Without the cases that are ok in neither run, which the tally counts and CSV has."""
    return [pair for pair in pairs.pairs if pair.change is not Change.NOTHING][:MAX_PAIRS]


def _footer(pairs: Comparison) -> Iterator[str]:
    """What was left out, and the geometric means."""
    if len(_shown(pairs)) == MAX_PAIRS:
        yield f"the first {MAX_PAIRS}, largest effects first; --format csv has all {len(pairs.pairs)}"
    for arm, mean in sorted(pairs.geomeans.items()):
        ends = f" ({interval(mean, 3)})" if mean.low is not None and mean.high is not None else ""
        yield f"{arm}: {mean.value:.3f}x over {mean.count} cases, geometric mean{ends}"
