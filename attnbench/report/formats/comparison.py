"""The comparison of two or more runs as a table, Markdown, CSV or JSON Lines."""

from collections import Counter
from collections.abc import Iterator, Sequence

from attnbench import units
from attnbench.analysis import comparison
from attnbench.analysis.comparison import MIN_RESTARTS, Change, Comparison, Pair
from attnbench.report.formats import csv, jsonl
from attnbench.report.formats.markdown import escape, table
from attnbench.report.pivot import interval
from attnbench.report.summary import broken_lines
from attnbench.report.terminal.text_layout import aligned, shared_words, wrap

MEMORY_TOLERANCE = 0.01  # of the peak; a smaller change of memory, or one below a mebibyte, is not mentioned
MEMORY_TOLERANCE_BYTES = 2**20
MAX_PAIRS = 1000  # of a table for people
HEADINGS = ("old", "new", "new / old", "95 %", "")
CROSSED = " (measured on two machines, so no difference is a regression)"
MEANINGS = {
    Change.SAME: "the interval holds 1 and is within the noise floor",
    Change.NEW: "measured in the later run alone",
    Change.MISSING: "measured in the earlier run alone",
    Change.BROKEN: "was ok, and no longer is",
    Change.FIXED: "is ok, and was not",
}
SINGLE = "an interval within one restart does not hold what differs between restarts"
OPEN = "the interval is neither beyond the noise floor nor around 1 within it"
NOISY = "noisy: the median block took over 1.25 times the least"


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
    return f"{units.counted(len(pairs.pairs), 'case')}: {', '.join(parts)}."


def _table(pairs: Comparison, width: int) -> Iterator[str]:
    heading = f"{pairs.new} against {pairs.old}" + (CROSSED if pairs.cross_machine else "")
    yield from wrap(heading, width, indent=2)
    shown = _shown(pairs)
    for failure in _failures(shown):
        yield from wrap(failure, width, indent=2)
    common, labels = shared_words([_label(pair) for pair in shown])
    yield from wrap(common, width) if common else ()
    yield ""
    head, *lines = aligned("case", HEADINGS, list(zip(labels, map(_cells, shown), strict=True)), width)
    yield from head
    for pair, row in zip(shown, lines, strict=True):
        yield from row
        yield from (f"    {piece}" for note in _notes(pair) for piece in wrap(note, width - 4))
    yield ""
    for text in (*_legend(shown), *_footer(pairs), tally(pairs)):
        yield from wrap(text, width, indent=2)
    yield from _commands(pairs, width)


def _markdown(pairs: Comparison) -> Iterator[str]:
    yield f"## {escape(pairs.new)} against {escape(pairs.old)}" + (CROSSED if pairs.cross_machine else "")
    yield ""
    shown = _shown(pairs)
    if failures := _failures(shown):
        yield from (*(f"- {escape(failure)}" for failure in failures), "")
    common, labels = shared_words([_label(pair) for pair in shown])
    yield from (f"Common to all: {escape(common)}.", "") if common else ()
    rows = []
    for label, pair in zip(labels, shown, strict=True):
        *figures, change = _cells(pair)
        notes = "; ".join(_notes(pair))
        rows.append((label, *map(str.strip, figures), change + (f" ({notes})" if notes else "")))
    yield table(("case", *HEADINGS[:4], "change"), rows, (False, True, True, True, True, False))
    yield from (f"{escape(line)}  " for line in (*_legend(shown), *_footer(pairs)))
    yield tally(pairs)
    if pairs.commands:
        yield from ("", f"What would decide{pairs.advice}:", "", "```sh", *pairs.commands, "```")
    yield ""


def _failures(shown: Sequence[Pair]) -> list[str]:
    return broken_lines((pair.arm, pair.reason) for pair in shown if pair.change is Change.BROKEN)


def _label(pair: Pair) -> str:
    """The case, its arm and its device as separate words."""
    return f"{pair.name.removesuffix(f'@{pair.device}')} {pair.device}"


def _cells(pair: Pair) -> tuple[str, ...]:
    ratio = f"{pair.ratio.value:.3f}" if pair.ratio else "-"
    times = (
        f"{units.seconds(time_s)}{'!' if noisy else ' '}"
        for time_s, noisy in ((pair.old_s, pair.old_noisy), (pair.new_s, pair.new_noisy))
    )
    return *times, ratio, interval(pair.ratio, 3), pair.change.value


def _legend(shown: Sequence[Pair]) -> Iterator[str]:
    """What the columns and the marks of a table mean."""
    if any(pair.ratio for pair in shown):
        yield "new / old is the ratio of the two times: above 1 is slower"
    for change, meaning in MEANINGS.items():
        if any(pair.change is change for pair in shown):
            yield f"{change.value}  {meaning}"
    undecided = [pair for pair in shown if pair.change is Change.UNDECIDED]
    single = any(pair.restarts < MIN_RESTARTS for pair in undecided)
    several = any(pair.restarts >= MIN_RESTARTS for pair in undecided)
    if undecided:
        yield f"undecided  {'; '.join([SINGLE] * single + [OPEN] * several)}"
    if any(pair.old_noisy or pair.new_noisy for pair in shown):
        yield f"!  {NOISY}"


def _commands(pairs: Comparison, width: int) -> Iterator[str]:
    """The commands unwrapped, so that they can be copied."""
    if pairs.commands:
        yield from wrap(f"what would decide the undecided cases{pairs.advice}:", width)
        yield from (f"  {command}" for command in pairs.commands)


def _notes(pair: Pair) -> Iterator[str]:
    if pair.reason and pair.change is Change.MISSING:
        yield pair.reason
    old, new = pair.old_peak, pair.new_peak
    if old is not None and new is not None and abs(new - old) > max(MEMORY_TOLERANCE * old, MEMORY_TOLERANCE_BYTES):
        yield f"peak memory {units.size(old)} -> {units.size(new)}"


def _shown(pairs: Comparison) -> list[Pair]:
    """Without the cases that are ok in neither run, which the tally counts and CSV has."""
    return [pair for pair in pairs.pairs if pair.change is not Change.NOTHING][:MAX_PAIRS]


def _footer(pairs: Comparison) -> Iterator[str]:
    """What was left out, the noise floor, and the geometric means."""
    if len(_shown(pairs)) == MAX_PAIRS:
        yield f"the first {MAX_PAIRS}, largest effects first; --format csv has all {len(pairs.pairs)}"
    yield from pairs.notes
    for arm, mean in sorted(pairs.geomeans.items()):
        ends = f" ({interval(mean, 3)})" if mean.low is not None and mean.high is not None else ""
        yield f"{arm}: new / old {mean.value:.3f} over {units.counted(mean.count, 'case')}, geometric mean{ends}"
