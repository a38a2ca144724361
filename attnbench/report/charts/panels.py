"""The panels of a chart: which axis goes to the right, and which others need a panel for each value.

A panel and a value of its axis name one problem, so no chart draws two problems at one place or joins problems that
differ in more than the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from attnbench import units
from attnbench.analysis.rows import AXES, Row, Value, phase
from attnbench.attention import requests
from attnbench.errors import UsageError

MIN_LENGTHS = 3  # values of a length that make it the axis, even if another number has more
PHASE = "phase"  # derived: how the queries relate to the keys
TOKENS = "tokens_kv"  # derived: the keys of all requests
_NUMBERS = ("seq_kv", "batch", "heads", "head_dim")  # candidates for the axis, the first of equals
# Numbers that follow another one by convention. They need no panel where that one determines them.
_LEADERS: dict[str, tuple[str, ...]] = {
    "requests": (TOKENS,),
    "kv_heads": ("heads",),
    "head_dim_v": ("head_dim",),
    "scale": ("head_dim",),
}
_LEADERS |= {"lengths": ("seq_kv", "batch"), PHASE: ("requests",)}
_LEADERS |= dict.fromkeys(("batch", "seq_q", "seq_kv", "shared_prefix"), ("requests", TOKENS))
_FIRST = ("run", "device", "dtype", "mode", PHASE, "mask", "head_dim", "heads", "kv_heads", "batch")
_LENGTHS = ("seq_q", "seq_kv")
OF_LENGTHS = (*_LENGTHS, TOKENS)  # axes in tokens, at which a problem is named by its lengths
COLUMNS = (*_FIRST, *_LENGTHS, *(name for name in AXES if name not in (*_FIRST, *_LENGTHS)))
FACETS = ("backend", *COLUMNS)  # that a user can choose
OLD_AND_NEW = ("old", "new")  # names of two runs of one machine
_NOUNS = {  # of one and of several
    "heads": ("{} head", "{} heads"),
    "kv_heads": ("{} key head", "{} key heads"),
    "seq_q": ("{} query", "{} queries"),
    "seq_kv": ("{} key", "{} keys"),
    TOKENS: ("{} key in the batch", "{} keys in the batch"),
}
MODES = {"fwd": "forward", "bwd": "backward", "fwd_bwd": "forward and backward"}


class PanelLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The axis of a chart and the columns that distinguish its panels."""

    axis: str
    columns: tuple[str, ...]

    def panel(self, row: Row) -> tuple[Value, ...]:
        """The values that distinguish the row's panel."""
        return tuple(column_value(row, name) for name in self.columns)

    def heading(self, row: Row) -> str:
        """The panel in words: `causal mask, batch 4`; empty if there is only one."""
        return ", ".join(words(name, column_value(row, name)) for name in self.columns)

    def place(self, row: Row) -> tuple[str, str]:
        """The panel in words and the value of the axis; of a batch of requests all of them, in place of the longest."""
        if not (row.requests and self.axis in OF_LENGTHS):
            return self.heading(row), axis_value(self.axis, row.value(self.axis))
        others = tuple(name for name in self.columns if name != "requests")
        return PanelLayout(axis=self.axis, columns=others).heading(row), requests.short(row.requests)

    def panels(self, rows: Iterable[Row]) -> dict[tuple[Value, ...], list[Row]]:
        """The rows of each panel, panels in the order that every chart uses: numbers by size, words as they appear."""
        groups: dict[tuple[Value, ...], list[Row]] = {}
        for row in rows:
            groups.setdefault(self.panel(row), []).append(row)
        places: list[dict[Value, int]] = [{} for _ in self.columns]
        for key in groups:
            for seen, value in zip(places, key, strict=True):
                seen.setdefault(value, len(seen))

        def order(key: tuple[Value, ...]) -> list[tuple[float, int]]:
            ranks = zip(key, places, strict=True)
            return [(float(v) if isinstance(v, int | float) else -1.0, seen[v]) for v, seen in ranks]

        return {key: groups[key] for key in sorted(groups, key=order)}


def layout(
    rows: Sequence[Row], axis: str = "", facets: Sequence[str] | None = None, by: str = "arm_name"
) -> PanelLayout:
    """The layout of these rows: by default the axis that varies most, and a panel for all else that varies.

    `facets` are the columns that a user chose, `by` the one that has a line for each value. Raises UsageError if two
    problems would share a place.
    """
    axis = axis or axis_of(rows)
    if facets is None:
        return PanelLayout(axis=axis, columns=_varying(rows, axis, by))
    chosen = PanelLayout(axis=axis, columns=tuple(facets))
    if absent := [name for name in _varying(rows, axis, by) if not _determined(rows, name, chosen)]:
        named, more = (["backend" if name == "arm_name" else name for name in names] for names in (facets, absent))
        raise UsageError(
            f"--facet {','.join(named)}: cases that differ in {', '.join(more)} would be drawn at one place; "
            f"use --facet {','.join((*named, *more))}, or choose cases with --only"
        )
    return chosen


def axis_of(rows: Sequence[Row]) -> str:
    """The key length if it takes MIN_LENGTHS values, else the number that takes the most; of requests all keys."""
    if len({row.requests for row in rows}) > 1 and all(row.requests for row in rows):
        return TOKENS
    counts = {name: len({row.value(name) for row in rows}) for name in _NUMBERS}
    return "seq_kv" if counts["seq_kv"] >= MIN_LENGTHS else max(counts, key=lambda name: counts[name])


def axis_title(axis: str, rows: Sequence[Row]) -> str:
    """The axis in words: `sequence length` where all problems have as many queries as keys."""
    if axis in _LENGTHS and {phase(row) for row in rows} == {"prefill"}:
        return "sequence length"
    titles = {"seq_q": "number of queries", "seq_kv": "number of keys", TOKENS: "number of keys of all requests"}
    title = titles.get(axis, axis.replace("_", " "))
    return f"{title} of the longest request" if axis in _LENGTHS and all(row.requests for row in rows) else title


def axis_value(axis: str, value: Value) -> str:
    """A value of the axis as a tick: lengths as 512, 1k, 2k."""
    if isinstance(value, int | float) and axis in OF_LENGTHS:
        return units.short(value)
    if isinstance(value, int | float) and axis not in AXES:
        return units.rate(value, "").strip()
    return f"{value:g}" if isinstance(value, float) else str(value)


def column_value(row: Row, name: str) -> Value:
    """The value of a column, or of the derived one."""
    return phase(row) if name == PHASE else row.value(name)


def words(name: str, value: Value) -> str:
    """A value with what it is: `causal mask`, `batch 4`, `forward`."""
    if name == "run" and value in OLD_AND_NEW:
        return f"the {value} run"
    if name in ("run", "device", "dtype", "arm_name", PHASE):
        return str(value)
    if name == "mode":
        return MODES[str(value)]
    if name == "requests":
        return f"requests {requests.short(str(value))}" if value else "no requests"
    if name == "mask":
        return "no mask" if value == "none" else f"{value} mask"
    text = axis_value(name, value) if name in OF_LENGTHS else str(value)
    if name in _NOUNS:
        return _NOUNS[name][value != 1].format(text)
    return f"{name.replace('_', ' ')} {text}"


def shared(rows: Sequence[Row], names: Sequence[str] = _FIRST) -> list[str]:
    """In words, the columns that have one value in all rows."""
    first = rows[:1]
    return [
        words(name, column_value(row, name))
        for row in first
        for name in names
        if column_value(row, name) not in ("", None) and len({column_value(other, name) for other in rows}) == 1
    ]


def _varying(rows: Sequence[Row], axis: str, by: str) -> tuple[str, ...]:
    """The columns that vary beside the axis; the phase stands for the number of queries where it suffices."""
    candidates = COLUMNS if by == "arm_name" else ("arm_name", *COLUMNS)
    names = [
        name for name in candidates if name not in (axis, by) and len({column_value(row, name) for row in rows}) > 1
    ]
    for name, leaders in _LEADERS.items():
        if name in names and _function(rows, name, [leader for leader in leaders if leader in (axis, *names)]):
            names.remove(name)
    # The phase and one length determine the other. A figure of the problem, such as its FLOPs, may too.
    for name, leader in (("seq_q", "seq_kv"), ("seq_kv", "seq_q")):
        known = [other for other in (axis, *names) if other in (leader, PHASE) or axis not in AXES]
        if name in names and _function(rows, name, [other for other in known if other != name]):
            names.remove(name)
    return tuple(names)


def _determined(rows: Sequence[Row], name: str, chosen: PanelLayout) -> bool:
    return name in chosen.columns or _function(rows, name, [chosen.axis, *chosen.columns])


def _function(rows: Sequence[Row], name: str, leaders: Sequence[str]) -> bool:
    """Whether the values of `leaders` determine that of `name`."""
    seen: dict[tuple[Value, ...], Value] = {}
    return bool(leaders) and all(
        seen.setdefault(tuple(column_value(row, leader) for leader in leaders), value) == value
        for row, value in ((row, column_value(row, name)) for row in rows)
    )


def along(group: Iterable[Row], axis: str) -> list[list[Row]]:
    """The rows of one panel at each value of the axis, in its order."""
    places: dict[float, list[Row]] = {}
    for row in group:
        places.setdefault(row.number(axis) or 0.0, []).append(row)
    return [places[place] for place in sorted(places)]
