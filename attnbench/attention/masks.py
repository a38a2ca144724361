"""Masks as data: primitives that are pure predicates of indices, and compose by `and`.

A mask is written `term(+term)*`, a term `name(:value|:key=value)*`, as in `causal+window:512`. A key is visible if
every term allows it. `d` is the diagonal key of a row: `d = i + seq_kv - seq_q`, so causal is bottom-right aligned.
Each primitive also gives, for every row, the interval of keys that it allows: pairs are counted from intervals, in
O(batch * seq), never from a seq_q x seq_kv array.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.errors import ProblemError, UnknownNameError
from attnbench.ranges import integer

Indices = NDArray[np.int64]


class Grid(msgspec.Struct, frozen=True):
    """The shape on which a mask is laid. With `lengths` every sequence is a self-attention of its own length."""

    batch: int
    seq_q: int
    seq_kv: int
    lengths: tuple[int, ...] = ()

    @property
    def offset(self) -> int:
        """The diagonal key of row 0."""
        return self.seq_kv - self.seq_q


class Term(msgspec.Struct, frozen=True):
    """One condition on (batch, query index, key index). Subclasses are the primitives."""

    word: ClassVar[str]

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        """Whether row `i` of sequence `b` sees key `j`: index arrays in, booleans out, by broadcasting."""
        raise NotImplementedError

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        """The keys [low, high) that row `i` of sequence `b` sees; may reach beyond the sequence."""
        raise NotImplementedError

    def check(self, grid: Grid) -> None:
        """Raise ProblemError where the term makes no sense on this shape."""

    @property
    def text(self) -> str:
        """The term as a user types it, defaults left out."""
        values = [getattr(self, field.name) for field in msgspec.structs.fields(self) if not _is_default(self, field)]
        return ":".join([self.word, *map(_spell, values)])


class Causal(Term, frozen=True):
    """Keys up to the diagonal."""

    word = "causal"

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return j <= i + grid.offset

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, i + grid.offset + 1


class Window(Term, frozen=True):
    """Keys from `left` before the diagonal one to `right` after it, as flash-attn's `window_size`."""

    word = "window"
    left: int
    right: int = -1  # as `left`

    def __post_init__(self) -> None:
        if self.right == -1:
            msgspec.structs.force_setattr(self, "right", self.left)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        d = i + grid.offset
        return (j >= d - self.left) & (j <= d + self.right)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        d = i + grid.offset
        return d - self.left, d + self.right + 1

    @property
    def text(self) -> str:
        return f"window:{self.left}" + (f":{self.right}" if self.right != self.left else "")


class Prefix(Term, frozen=True):
    """The first `count` keys for every row, causal behind them (a prefix language model)."""

    word = "prefix"
    count: int

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return (j < self.count) | (j <= i + grid.offset)

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, np.maximum(self.count, i + grid.offset + 1)


class Document(Term, frozen=True):
    """Query and key in one document of a packed sequence: `count` near-equal ones, or the given `lengths`."""

    word = "document"
    lengths: tuple[int, ...]  # one number is a count of near-equal documents

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ProblemError(
                f"mask {self.text!r}: a count or lengths of at least 1, as document:8 or document:300-200"
            )

    def spans(self, grid: Grid) -> Indices:
        """The first index of every document, and the end of the last."""
        lengths = np.array(self.lengths)
        if len(lengths) == 1 and lengths[0] != grid.seq_q:
            count = int(lengths[0])
            lengths = np.full(count, grid.seq_q // count) + (np.arange(count) < grid.seq_q % count)
        return np.concatenate([[0], np.cumsum(lengths)])

    def owner(self, grid: Grid) -> Indices:
        """The document of every index."""
        spans = self.spans(grid)
        return np.repeat(np.arange(len(spans) - 1), np.diff(spans))

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        owner = self.owner(grid)
        return owner[i] == owner[j]

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        spans, owner = self.spans(grid), self.owner(grid)
        return spans[owner[i]], spans[owner[i] + 1]

    def check(self, grid: Grid) -> None:
        if grid.seq_q != grid.seq_kv:
            raise ProblemError(f"mask {self.text!r} needs seq_q == seq_kv, not {grid.seq_q} and {grid.seq_kv}")
        if len(self.lengths) == 1:
            if self.lengths[0] > grid.seq_q:
                raise ProblemError(f"mask {self.text!r}: more documents than the {grid.seq_q} tokens of the sequence")
        elif sum(self.lengths) != grid.seq_q:
            raise ProblemError(
                f"mask {self.text!r}: lengths add up to {sum(self.lengths)}, the sequence is {grid.seq_q}"
            )


class Padding(Term, frozen=True):
    """Keys below the length of their sequence; lengths fall linearly, `share` of all keys are padding."""

    word = "padding"
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.5:
            raise ProblemError(f"mask {self.text!r}: the share of padding lies in 0..0.5")

    def key_lengths(self, grid: Grid) -> Indices:
        """The number of real keys of every sequence: round(m (1 - 2F (b + 1/2) / batch)), half up, at least 1."""
        b = np.arange(grid.batch)
        real = grid.seq_kv * (1 - 2 * self.share * (b + 0.5) / grid.batch)
        return np.maximum(np.floor(real + 0.5).astype(np.int64), 1)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return j < self.key_lengths(grid)[b]

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, self.key_lengths(grid)[b]


class Ragged(Term, frozen=True):
    """Query and key below the length of their sequence. No word of the grammar: it stands for `lengths`."""

    word = "ragged"

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        lengths = np.array(grid.lengths)
        return (i < lengths[b]) & (j < lengths[b])

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        length = np.array(grid.lengths)[b]
        return 0, np.where(i < length, length, 0)


PRIMITIVES: dict[str, type[Term]] = {term.word: term for term in (Causal, Window, Prefix, Document, Padding)}


class Mask(msgspec.Struct, frozen=True):
    """Terms that all must allow a pair; no term at all is the mask `none`."""

    terms: tuple[Term, ...] = ()

    @property
    def text(self) -> str:
        """The canonical form: terms sorted, defaults dropped, equal masks equal."""
        one_sided = Causal() in self.terms
        spelled = [
            f"window:{term.left}" if one_sided and isinstance(term, Window) else term.text for term in self.terms
        ]
        return "+".join(sorted(spelled)) or "none"

    @property
    def words(self) -> frozenset[str]:
        """The primitives it is made of."""
        return frozenset(term.word for term in self.terms)

    def find(self, kind: type[Any]) -> Any:
        """The term of that class, or None."""
        return next((term for term in self.terms if isinstance(term, kind)), None)

    def check(self, grid: Grid) -> None:
        """Raise ProblemError where a term makes no sense on this shape."""
        for term in self.terms:
            term.check(grid)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        """Whether row `i` of sequence `b` sees key `j`, by broadcasting."""
        seen = np.ones(np.broadcast_shapes(np.shape(b), np.shape(i), np.shape(j)), dtype=bool)
        for term in self._all(grid):
            seen &= term.visible(grid, b, i, j)
        return seen

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Indices, Indices]:
        """The keys [low, high) that every row sees, within the sequence; high >= low."""
        shape = np.broadcast_shapes(np.shape(b), np.shape(i))
        low, high = np.zeros(shape, np.int64), np.full(shape, grid.seq_kv, np.int64)
        for term in self._all(grid):
            term_low, term_high = term.interval(grid, b, i)
            low, high = np.maximum(low, term_low), np.minimum(high, term_high)
        return low, np.maximum(low, high)

    def rows(self, grid: Grid) -> tuple[Indices, Indices]:
        """The interval of every row: two arrays [batch or 1, seq_q], one sequence where all are alike."""
        sequences = grid.batch if self._differs_by_sequence(grid) else 1
        return self.interval(grid, np.arange(sequences)[:, None], np.arange(grid.seq_q)[None, :])

    def pairs(self, grid: Grid) -> int:
        """Visible (query, key) pairs over the whole batch, for one head."""
        return _pairs(self, grid)

    def has_blind_rows(self, grid: Grid) -> bool:
        """Whether some row sees no key at all."""
        return _has_blind_rows(self, grid)

    def dense(self, grid: Grid) -> NDArray[np.bool_]:
        """The whole mask as booleans [batch or 1, seq_q, seq_kv], True where visible. For small shapes."""
        low, high = self.rows(grid)
        j = np.arange(grid.seq_kv)
        return (j >= low[..., None]) & (j < high[..., None])

    def _all(self, grid: Grid) -> tuple[Term, ...]:
        return (*self.terms, Ragged()) if grid.lengths else self.terms

    def _differs_by_sequence(self, grid: Grid) -> bool:
        return bool(grid.lengths) or any(isinstance(term, Padding) for term in self.terms)


@lru_cache(maxsize=4096)
def _pairs(mask: Mask, grid: Grid) -> int:
    low, high = mask.rows(grid)
    return int((high - low).sum()) * (grid.batch // int(low.shape[0]))


@lru_cache(maxsize=4096)
def _has_blind_rows(mask: Mask, grid: Grid) -> bool:
    low, high = mask.rows(grid)
    return bool((high <= low).any())


@lru_cache(maxsize=4096)
def parse(text: str) -> Mask:
    """Read `causal+window:512`. Raises ProblemError or UnknownNameError, naming the term."""
    if text.strip() in ("none", ""):
        return Mask()
    terms: dict[type[Term], Term] = {}
    for part in text.strip().split("+"):
        term = _parse_term(part.strip(), text)
        if type(term) in terms:
            raise ProblemError(f"mask {text!r}: {term.word} stands twice")
        terms[type(term)] = term
    return _canonical(terms, text)


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The canonical form of a mask's text."""
    return parse(text).text


def _canonical(terms: dict[type[Term], Term], text: str) -> Mask:
    """Equal sets of visible pairs, one form: a one-sided window is causal, and causal makes a window one-sided.

    A window that shows no key behind the diagonal leaves nothing of a prefix.
    """
    window = terms.get(Window)
    if Causal in terms and Prefix in terms:
        raise ProblemError(f"mask {text!r}: prefix holds causal already; write prefix alone")
    if isinstance(window, Window) and (Causal in terms or window.right == 0):
        terms[Causal], terms[Window] = Causal(), Window(window.left, 0)
        terms.pop(Prefix, None)  # which sees all that is causal, and so hides nothing more
    return Mask(tuple(terms[kind] for kind in PRIMITIVES.values() if kind in terms))


def _parse_term(part: str, text: str) -> Term:
    word, *values = part.split(":")
    if word == "none":
        raise ProblemError(f"mask {text!r}: none stands alone")
    if word not in PRIMITIVES:
        raise UnknownNameError("mask", word, ("none", *PRIMITIVES), where=f"mask {text!r}" if word != text else "")
    kind = PRIMITIVES[word]
    fields = msgspec.structs.fields(kind)
    names = [field.name for field in fields]
    given: dict[str, Any] = {}
    for position, value in enumerate(values):
        key, equals, rest = value.partition("=")
        name = key if equals else (names[position] if position < len(names) else "")
        if not name:
            raise ProblemError(f"mask {text!r}: {word} takes {len(names)} value(s), not {len(values)}")
        if name not in names:
            raise UnknownNameError(f"key of {word}", name, names, where=f"mask {text!r}")
        given[name] = _READERS[str(fields[names.index(name)].type)](rest if equals else value, text)
    if missing := [field.name for field in fields if field.required and field.name not in given]:
        raise ProblemError(f"mask {text!r}: {word} needs {missing[0]}, as in {EXAMPLES[word]}")
    return kind(**given)


def _read_integer(value: str, text: str) -> int:
    if value.startswith("-"):
        raise ProblemError(f"mask {text!r}: {value} is negative; write a number of keys, as in window:512")
    return integer(value, f"mask {text!r}")


def _read_lengths(value: str, text: str) -> tuple[int, ...]:
    return tuple(_read_integer(item, text) for item in value.split("-"))


def _read_share(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ProblemError(f"mask {text!r}: not a number: {value!r} (try 0.3)") from None


_READERS: dict[str, Callable[[str, str], Any]] = {
    str(int): _read_integer,
    str(float): _read_share,
    str(tuple[int, ...]): _read_lengths,
}
EXAMPLES = {"window": "window:512", "prefix": "prefix:64", "document": "document:8", "padding": "padding:0.3"}


def _is_default(term: Term, field: msgspec.structs.FieldInfo) -> bool:
    return not field.required and getattr(term, field.name) == field.default


def _spell(value: Any) -> str:
    return (
        "-".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
