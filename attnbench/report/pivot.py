"""The layout that tables of results share: one axis makes the lines, the arms make the columns."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, product
from statistics import median
from string import ascii_lowercase

import msgspec

from attnbench import units
from attnbench.analysis.rows import AXES, Place, Row, axes, leaders
from attnbench.analysis.stats import Estimate
from attnbench.attention import requests
from attnbench.attention.problem import Problem
from attnbench.records.case import spell
from attnbench.records.result import Status
from attnbench.report.reasons import MAX_FOOTNOTE, shortened, similar, without_numbers

# Axes that can make the lines, preferred in this order if they have equally many values.
NUMERIC: dict[str, Callable[[Row], tuple[int, ...]]] = {
    "seq": lambda row: (row.seq_q, row.seq_kv),
    "batch": lambda row: (row.batch,),
    "heads": lambda row: (row.heads, row.kv_heads),
    "head_dim": lambda row: (row.head_dim, row.head_dim_v),
}
_SECTIONS = ("dtype", "mode", "mask", "head_dim", "heads", "batch")  # in the order of the panels of a report
_IN_LABEL = {"seq_q", "seq_kv", "batch", "heads", "kv_heads", "head_dim", "head_dim_v", "mask", "dtype"}
_DEFAULTS = axes(Problem(seq_q=1))

MARKS = {
    "*": "fastest",
    "~": "tied with the fastest: the 95 % intervals do not distinguish them",
    "^": "its time and the reference's divide to another value: they are of different minutes; the speed-up counts",
    "!": "noisy: the median block took over 1.25 times the least",
    "?": "impossible, not ranked",
}

WIDE_TIE = 1.05  # from which ratio of two speed-ups a tie is explained
MAX_TIES = 3  # that are explained
MAX_HEADINGS = 3  # of tables without any time that are named

Words = dict[str, str]  # of one row: each axis as text
WordsOf = dict[int, Words]  # by the identity of the row


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One arm."""

    arm: str
    heading: tuple[str, ...]  # its name, and its device if there are several


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """The lines that share everything but the line axis."""

    heading: str
    lines: list[tuple[str, dict[str, Row]]]  # the label of a line, and its rows by arm

    @property
    def rows(self) -> list[Row]:
        return [row for _, cells in self.lines for row in cells.values()]

    @property
    def timed(self) -> bool:
        """Whether any of its cells has a time."""
        return any(row.time_s is not None for row in self.rows)


class Pivot(msgspec.Struct, frozen=True, kw_only=True):
    """Results laid out: the lines are lengths, or the axis that varies most; the columns are arms."""

    constant: str  # what all rows share
    axis: str  # the heading of the lines
    columns: list[Column]
    sections: list[Section]
    absent: list[tuple[str, str]]  # sections and arms without any time, and the reasons

    @property
    def of_times(self) -> "Pivot":
        """Without the sections that have no time."""
        return msgspec.structs.replace(self, sections=[section for section in self.sections if section.timed])


def pivot(rows: Sequence[Row]) -> Pivot:
    """Lay the rows out."""
    words = {id(row): _words(row) for row in rows}
    names = list(words[id(rows[0])]) if rows else []
    varying = [name for name in names if len({words[id(row)][name] for row in rows}) > 1]
    axis = _line_axis(rows, varying, words)
    beside = [name for name in varying if name != axis and _follows(rows, words, axis, name)]
    across = [name for name in varying if name != axis and name not in beside]
    constant = [words[id(rows[0])][name] for name in names if name not in varying and name != axis] if rows else []
    devices = list(dict.fromkeys(row.device for row in rows))
    measured = [row for row in rows if row.time_s is not None]
    arms = {row.arm for row in measured}
    sections = _sections(rows, words, axis, beside, across)
    return Pivot(
        constant=_join([*constant, *(devices if len(devices) == 1 else ())]),
        axis="requests" if axis == "seq" and rows and all(row.requests for row in rows) else axis,
        columns=_columns(measured),
        sections=sections,
        absent=[*_untimed(sections, arms), *_absent(rows, arms)],
    )


def why_briefly(row: Row) -> str:
    """Why a case has no time; of a failure the status alone, since `summary.failure_lines` has its reason."""
    return str(row.status) if row.status.failed else why(row)


def why(row: Row) -> str:
    """Status and reason of a case without a time."""
    if row.status == Status.OK:
        return "no finite reading"
    return f"{row.status}: {row.reason}" if row.reason else str(row.status)


class Footnotes:
    """Reasons by letter: equal reasons share one, in order of their first use."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}
        self._unused = ("".join(letters) for size in count(1) for letters in product(ascii_lowercase, repeat=size))

    def letter(self, text: str) -> str:
        """The letter of a reason: a to z, then aa, ab ..."""
        if text not in self._letters:
            self._letters[text] = next(self._unused)
        return self._letters[text]

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(letter, text) for text, letter in self._letters.items()]


def factor(value: float | None) -> str:
    """A ratio with two digits, as 5.8x; None as no text."""
    return "" if value is None else units.factor(value)


def interval(estimate: Estimate | None, digits: int, between: str = "..") -> str:
    """Both ends of the interval, or a dash."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.low:.{digits}f}{between}{estimate.high:.{digits}f}"


def mark(row: Row) -> str:
    """The keys of MARKS that apply to a row."""
    place = {Place.FASTEST: "*", Place.TIED: "~"}.get(row.place, "") if row.place else ""
    rest = {"^": row.quotient_outside, "!": row.noisy, "?": row.impossible}
    return place + "".join(symbol for symbol, applies in rest.items() if applies)


def legend(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The marks of these rows, each with its meaning."""
    marks = {symbol for row in rows for symbol in mark(row)}
    impossible = dict.fromkeys(row.impossible for row in rows if row.impossible)
    details = {"?": "; ".join(impossible)}
    return [
        (symbol, ": ".join(filter(None, (meaning, details.get(symbol)))))
        for symbol, meaning in MARKS.items()
        if symbol in marks
    ]


def wide_ties(rows: Sequence[Row]) -> list[str]:
    """`q64 kv64: flex with sdpa, whose speed-up over naive is 0.50x..1.1x`: each tie of speed-ups that are far apart.

    The interval is the wider one of the two, which makes the tie.
    """
    words = {id(row): _words(row) | {"device": row.device, "run": row.run} for row in rows}
    names = {row.arm: row.arm_name for row in rows}
    varying = [name for name in next(iter(words.values()), {}) if len({each[name] for each in words.values()}) > 1]
    texts = []
    for fastest, *others in leaders(rows):
        where = _join(words[id(fastest)][name] for name in varying)
        for row in others:
            if (fastest.speedup or 0.0) > WIDE_TIE * (row.speedup or math.inf):
                unsure, other = sorted((fastest, row), key=_width, reverse=True)
                low, high = factor(unsure.speedup_low), factor(unsure.speedup_high)
                ends = f"is {units.between(low, high)}" if low and high else "has no interval from one round"
                over = names.get(unsure.reference or "", "the reference")
                tie = f"{other.arm_name} with {unsure.arm_name}, whose speed-up over {over} {ends}"
                texts.append(f"{where}: {tie}" if where else tie)
    return texts[:MAX_TIES] + (
        [f"and {units.counted(len(texts) - MAX_TIES, 'more tie')}"] if len(texts) > MAX_TIES else []
    )


def _width(row: Row) -> float:
    return row.speedup_high / row.speedup_low if row.speedup_low and row.speedup_high else math.inf


def planning(rows: Sequence[Row]) -> str:
    """Planning a batch by backend, as `flex 12.1 ms (1.4 calls, 378 us a layer)`: medians over problems."""
    parts = []
    for arm in dict.fromkeys(row.arm_name for row in rows):
        planned = [(row.plan_s, row.time_s) for row in rows if row.arm_name == arm and row.plan_s and row.time_s]
        if planned:
            cost = f"{median(plan_s / time_s for plan_s, time_s in planned):.2g} calls"
            if layers := [row.plan_layer_s for row in rows if row.arm_name == arm and row.plan_layer_s]:
                cost += f", {units.seconds(median(layers))} a layer"
            parts.append(f"{arm} {units.seconds(median(plan_s for plan_s, _ in planned))} ({cost})")
    return ", ".join(parts)


def caption(rows: Sequence[Row]) -> str:
    """What a cell holds, and what its interval is over."""
    reference = references(rows)
    content = "time of a call" + (f" and speed-up over {reference}, paired by round" if reference else "")
    intervals = Counter(row.interval for row in rows if row.interval)
    if len(intervals) < 2:
        return content + "".join(f"; 95 % intervals are {interval}" for interval in intervals)
    (most, _), *others = intervals.most_common()
    parts = [most, *(f"of {units.counted(count, 'case')} {interval}" for interval, count in others)]
    return f"{content}; 95 % intervals are {'; '.join(parts)}"


def references(rows: Sequence[Row]) -> str:
    """The names of the arms that speed-ups are over."""
    names = {row.arm: row.arm_name for row in rows}
    arms = dict.fromkeys(row.reference for row in rows if row.reference)
    return " or ".join(dict.fromkeys(names.get(arm, arm) for arm in arms))


def _words(row: Row) -> Words:
    """Every axis as in the label of a case; an axis at its default is empty."""
    words = {
        "batch": "" if row.requests else f"b{row.batch}",
        "heads": f"h{row.heads}" + (f"/{row.kv_heads}" if row.kv_heads != row.heads else ""),
        "seq": requests.short(row.requests) if row.requests else f"q{row.seq_q} kv{row.seq_kv}",
        "head_dim": f"d{row.head_dim}" + (f"/{row.head_dim_v}" if row.head_dim_v != row.head_dim else ""),
        "mask": row.mask,
        "dtype": row.dtype,
        "mode": str(row.mode),
    }
    for name in AXES:
        if name not in _IN_LABEL and name != "requests":
            value = row.value(name)
            words[name] = "" if value == _DEFAULTS[name] else f"{name}={spell(value)}"
    if row.lengths:
        words["lengths"] = f"lengths={requests.short_lengths(tuple(map(int, row.lengths.split('-'))))}"
    return words


def _line_axis(rows: Sequence[Row], varying: list[str], words: WordsOf) -> str:
    numeric = [name for name in NUMERIC if name in varying]
    return max(numeric or varying or ["seq"], key=lambda name: len({words[id(row)][name] for row in rows}))


def _follows(rows: Sequence[Row], words: WordsOf, axis: str, name: str) -> bool:
    """Whether the line axis determines this one, as a fixed number of tokens determines the batch."""
    pairs = {(words[id(row)][axis], words[id(row)][name]) for row in rows}
    return len(pairs) == len({value for value, _ in pairs})


def _join(words: Iterable[str]) -> str:
    return " ".join(word for word in words if word)


def _columns(measured: Sequence[Row]) -> list[Column]:
    devices = _distinctions(dict.fromkeys(row.device for row in measured))
    headings = {
        row.arm: (row.arm_name, devices[row.device]) if len(devices) > 1 else (row.arm_name,) for row in measured
    }
    return [Column(arm=arm, heading=heading) for arm, heading in headings.items()]


def _distinctions(devices: Iterable[str]) -> dict[str, str]:
    """What tells each device from the others: `hardware=A` of `cpu:threads=1:hardware=A` where all have one thread."""
    parts = {device: device.split(":") for device in devices}
    shared = set[str]().union(*parts.values()).intersection(*parts.values())
    options = {device: [part for part in each if part not in shared] for device, each in parts.items()}
    if not all(rest and all("=" in part for part in rest) for rest in options.values()):
        shared = {part for part in shared if "=" in part}  # what is no option, as the number of a GPU, is never alone
        options = {device: [part for part in each if part not in shared] for device, each in parts.items()}
    return {device: ":".join(rest) for device, rest in options.items()}


def _sections(rows: Sequence[Row], words: WordsOf, axis: str, beside: list[str], across: list[str]) -> list[Section]:
    grouped: dict[str, dict[str, dict[str, Row]]] = {}
    equal_lengths = all(row.seq_q == row.seq_kv and not row.requests for row in rows)
    for row in sorted(rows, key=_order(rows, words, axis, across)):
        row_words = words[id(row)]
        heading = _join(row_words[name] for name in across)
        first = str(row.seq_q) if axis == "seq" and equal_lengths else row_words[axis]
        label = _join([first, *(row_words[name] for name in beside)])
        grouped.setdefault(heading, {}).setdefault(label, {})[row.arm] = row
    return [Section(heading=heading, lines=list(lines.items())) for heading, lines in grouped.items()]


def _order(rows: Sequence[Row], words: WordsOf, axis: str, across: list[str]) -> Callable[[Row], list[tuple[int, ...]]]:
    """A sort key, by section and then by line: numbers by size, words by their first appearance.

    Sections have the order of the panels of a report: they stand apart by dtype first.
    """
    across = sorted(across, key=lambda name: _SECTIONS.index(name) if name in _SECTIONS else len(_SECTIONS))
    seen = {name: list(dict.fromkeys(words[id(row)][name] for row in rows)) for name in (axis, *across)}

    def key(row: Row) -> list[tuple[int, ...]]:
        return [
            NUMERIC[name](row) if name in NUMERIC else (seen[name].index(words[id(row)][name]),)
            for name in (*across, axis)
        ]

    return key


def _untimed(sections: Sequence[Section], measured: set[str]) -> Iterator[tuple[str, str]]:
    """The sections without any time, with each reason and its number of cases, of arms that have times elsewhere."""
    left_out = [section for section in sections if not section.timed]
    rows = [row for section in left_out for row in section.rows if row.arm in measured]
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(without_numbers(why_briefly(row)), []).append(why_briefly(row))
    if kinds:
        headings = [section.heading for section in left_out]
        more = [f"{len(headings) - MAX_HEADINGS} more tables"] if len(headings) > MAX_HEADINGS else []
        counts = (f"{units.counted(len(reasons), 'case')} {_first(reasons)}" for reasons in kinds.values())
        yield ", ".join([*headings[:MAX_HEADINGS], *more]), "; ".join(counts)


def _absent(rows: Sequence[Row], measured: set[str]) -> list[tuple[str, str]]:
    """Arms without any time; those with the same reasons together."""
    several = len({row.device for row in rows}) > 1
    reasons: dict[str, dict[str, list[str]]] = {}  # by the name of the arm and by kind
    for row in rows:
        if row.arm not in measured:
            name, why_not = f"{row.arm_name}@{row.device}" if several else row.arm_name, why_briefly(row)
            reasons.setdefault(name, {}).setdefault(without_numbers(why_not), []).append(why_not)
    names_by_reasons: dict[tuple[str, ...], list[str]] = {}
    for name, texts in reasons.items():
        names_by_reasons.setdefault(tuple(map(_first, texts.values())), []).append(name)
    return [(", ".join(names), "; ".join(texts)) for texts, names in names_by_reasons.items()]


def _first(reasons: Sequence[str]) -> str:
    """The first of reasons that differ in numbers alone."""
    return shortened(reasons[0], MAX_FOOTNOTE) + similar(reasons)
