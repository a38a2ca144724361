"""The pivot that tables share: which axis makes the rows, which the blocks, and what stands in a cell."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import msgspec

from attnbench.attention.problem import Problem
from attnbench.frame import AXES, Place, Row, axes
from attnbench.result import Status

Key = Callable[[Row], Hashable]

# Axes that make the rows, first choice first where they have as many values.
NUMERIC: dict[str, Key] = {
    "seq": lambda row: (row["seq_q"], row["seq_kv"]),
    "batch": lambda row: row["batch"],
    "heads": lambda row: (row["heads"], row["kv_heads"]),
    "head_dim": lambda row: (row["head_dim"], row["head_dim_v"]),
}
_SHOWN = {"seq_q", "seq_kv", "batch", "heads", "kv_heads", "head_dim", "head_dim_v", "mask", "dtype"}
_DEFAULTS = axes(Problem(seq_q=1))


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One arm."""

    arm: str
    heading: tuple[str, ...]  # name, and device where there are several


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that share everything but the row axis."""

    heading: str
    lines: list[tuple[str, dict[str, Row]]]  # the label of a row, and its cells by arm


class Pivot(msgspec.Struct, frozen=True, kw_only=True):
    """Results laid out: rows are sequence lengths, or what varies most; columns are arms."""

    constant: str  # what all rows share
    axis: str
    columns: list[Column]
    blocks: list[Block]
    absent: list[tuple[str, str]]  # arms without a single time, and why


def pivot(rows: Sequence[Row]) -> Pivot:
    """Lay the rows out."""
    words = {id(row): _words(row) for row in rows}
    names = list(words[id(rows[0])]) if rows else []
    varying = [name for name in names if len({words[id(row)][name] for row in rows}) > 1]
    axis = _row_axis(rows, varying, words)
    beside = [name for name in varying if name != axis and _follows(rows, words, axis, name)]
    across = [name for name in varying if name != axis and name not in beside]
    constant = [words[id(rows[0])][name] for name in names if name not in varying and name != axis] if rows else []
    measured = [row for row in rows if row["time_s"] is not None]
    return Pivot(
        constant=_join([*constant, *_only(row["device"] for row in rows)]),
        axis=axis,
        columns=_columns(measured),
        blocks=_blocks(rows, words, axis, beside, across),
        absent=_absent(rows, {row["arm"] for row in measured}),
    )


def _words(row: Row) -> dict[str, str]:
    """Every axis in the words of a case's label; an axis at its default says nothing."""
    heads = f"h{row['heads']}" + (f"/{row['kv_heads']}" if row["kv_heads"] != row["heads"] else "")
    width = f"d{row['head_dim']}" + (f"/{row['head_dim_v']}" if row["head_dim_v"] != row["head_dim"] else "")
    words = {
        "batch": f"b{row['batch']}",
        "heads": heads,
        "seq": f"q{row['seq_q']} kv{row['seq_kv']}",
        "head_dim": width,
        "mask": str(row["mask"]),
        "dtype": str(row["dtype"]),
        "mode": str(row["mode"]),
    }
    for name in AXES:
        if name not in _SHOWN:
            words[name] = "" if row[name] == _DEFAULTS[name] else f"{name}={_spell(row[name])}"
    return words


def _spell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row_axis(rows: Sequence[Row], varying: list[str], words: dict[int, dict[str, str]]) -> str:
    numeric = [name for name in NUMERIC if name in varying]
    candidates = numeric or varying or ["seq"]
    return max(candidates, key=lambda name: len({words[id(row)][name] for row in rows}))


def _follows(rows: Sequence[Row], words: dict[int, dict[str, str]], axis: str, name: str) -> bool:
    """Whether the row axis decides this one, as a fixed number of tokens decides the batch."""
    pairs = {(words[id(row)][axis], words[id(row)][name]) for row in rows}
    return len(pairs) == len({value for value, _ in pairs})


def _join(words: Iterable[str]) -> str:
    return " ".join(word for word in words if word)


def _only(values: Iterable[str]) -> list[str]:
    distinct = list(dict.fromkeys(values))
    return distinct if len(distinct) == 1 else []


def _columns(measured: Sequence[Row]) -> list[Column]:
    several = len({row["device"] for row in measured}) > 1
    arms = {row["arm"]: row for row in measured}
    places = [(row["arm_name"], row["device"]) for row in arms.values()]
    columns = []
    for arm, place in zip(arms, places, strict=True):
        heading = place if several else place[:1]
        if places.count(place) > 1:  # another interpreter, path or environment: only the id tells
            heading = tuple(arm.split("@"))
        columns.append(Column(arm=arm, heading=heading))
    return columns


def _blocks(
    rows: Sequence[Row], words: dict[int, dict[str, str]], axis: str, beside: list[str], across: list[str]
) -> list[Block]:
    grouped: dict[str, dict[str, dict[str, Row]]] = {}
    plain = all(row["seq_q"] == row["seq_kv"] for row in rows)
    for row in sorted(rows, key=_order(rows, words, axis, across)):
        own = words[id(row)]
        heading = _join(own[name] for name in across)
        head = str(row["seq_q"]) if axis == "seq" and plain else own[axis]
        label = _join([head, *(own[name] for name in beside)])
        grouped.setdefault(heading, {}).setdefault(label, {})[row["arm"]] = row
    return [Block(heading=heading, lines=list(lines.items())) for heading, lines in grouped.items()]


def _order(rows: Sequence[Row], words: dict[int, dict[str, str]], axis: str, across: list[str]) -> Callable[[Row], Any]:
    """Numbers by size, words by their first appearance; blocks first, then rows."""
    seen = {name: list(dict.fromkeys(words[id(row)][name] for row in rows)) for name in (axis, *across)}

    def key(row: Row) -> list[Any]:
        return [
            NUMERIC[name](row) if name in NUMERIC else seen[name].index(words[id(row)][name])
            for name in (*across, axis)
        ]

    return key


def _absent(rows: Sequence[Row], measured: set[str]) -> list[tuple[str, str]]:
    several = len({row["device"] for row in rows}) > 1
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["arm"] not in measured:
            reasons.setdefault(row["arm"] if several else row["arm_name"], {})[why(row)] = None
    merged: dict[tuple[str, ...], list[str]] = {}
    for name, found in reasons.items():
        merged.setdefault(tuple(found), []).append(name)
    return [(", ".join(names), "; ".join(found)) for found, names in merged.items()]


def why(row: Row) -> str:
    """Status and reason of a case that has no time."""
    if row["status"] == Status.OK:
        return "no finite reading"
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


class Notes:
    """Footnotes: equal reasons share a letter, in the order in which they are met."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, text: str) -> str:
        """The letter of that reason: a to z, then aa, ab ..."""
        if text not in self._letters:
            number, letters = len(self._letters), ""
            while number >= 0:
                number, rest = divmod(number, 26)
                letters = chr(ord("a") + rest) + letters
                number -= 1
            self._letters[text] = letters
        return self._letters[text]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Letter and reason."""
        return [(letter, text) for text, letter in self._letters.items()]


def factor(value: float | None) -> str:
    """A ratio in two digits: 5.8x, 12x, 0.83x."""
    if value is None:
        return ""
    decimals = 0 if value >= 9.95 else 1 if value >= 0.995 else 2 if value >= 0.0995 else 3
    return f"{value:.{decimals}f}x"


def mark(row: Row) -> str:
    """`*` fastest, `~` tied with the fastest, `!` noisy, `?` impossible."""
    place = {Place.FASTEST: "*", Place.TIED: "~"}.get(row["place"], "")
    return place + ("!" if row["noisy"] else "") + ("?" if row["impossible"] else "")


def references(rows: Sequence[Row]) -> str:
    """The names of the arms that speed-ups are against."""
    names = {str(row["arm"]): str(row["arm_name"]) for row in rows}
    found = dict.fromkeys(str(row["reference"]) for row in rows if row["reference"])
    return " or ".join(dict.fromkeys(names.get(arm, arm) for arm in found))
