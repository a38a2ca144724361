"""Terms whose keys are no single run: dilated, strided, by blocks, Longformer, BigBird, graphs.

Each counts the keys of a row between two bounds in closed form or from its blocks, so that pairs are exact in
O(seq) or O(blocks), also under causal, window, document and padding. No pattern depends on a library's generator:
random ones rank blocks by a fixed hash of (draw, row, column), the same for every head.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attnbench.attention import bands
from attnbench.attention.terms import Grid, Indices, Term, part
from attnbench.errors import ProblemError

GRAPH_MOST = 16384  # tokens of a random graph: every pair is drawn once


class Pattern(Term, frozen=True):
    """Keys here and there: `counts` says how many lie between two bounds."""

    holds_causal: ClassVar[bool] = False

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, grid.seq_kv

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        """The visible keys of row `i` in [low, high), which lies within the sequence; arrays that broadcast."""
        raise NotImplementedError


def _needs_square(term: Term, grid: Grid) -> None:
    if grid.seq_q != grid.seq_kv:
        raise ProblemError(f"mask {term.text!r} needs seq_q == seq_kv, not {grid.seq_q} and {grid.seq_kv}")


def _at_least(term: Term, name: str, least: int) -> None:
    if getattr(term, name) < least:
        raise ProblemError(f"mask {term.text!r}: {name.rstrip('_')}={getattr(term, name)}: at least {least}")


def _multiples(first: Any, step: int, low: Any, high: Any) -> Any:
    """How many of first, first +- step, first +- 2 step ... lie in [low, high)."""
    return np.maximum((high - 1 - first) // step - (low - 1 - first) // step, 0)


def _common(low: Any, high: Any, other_low: Any, other_high: Any) -> Any:
    """The length of what two runs have in common."""
    return np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0)


class Dilated(Pattern, frozen=True):
    """Every `step`-th key, counted from the diagonal one in both directions (as in LongNet and dilated windows)."""

    word = "dilated"
    example = "dilated:4"
    step: int

    def __post_init__(self) -> None:
        _at_least(self, "step", 1)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return (i + grid.offset - j) % self.step == 0

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        return np.asarray(_multiples(i + grid.offset, self.step, low, high))


class Strided(Pattern, frozen=True):
    """The last `stride` keys up to the diagonal, every `stride`-th before (Sparse Transformer, arXiv 1904.10509)."""

    word = "strided"
    example = "strided:128"
    holds_causal = True
    stride: int

    def __post_init__(self) -> None:
        _at_least(self, "stride", 1)

    def shrunk(self, share: float) -> Strided:
        return Strided(part(self.stride, share))

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        back = i + grid.offset - j
        return (back >= 0) & ((back < self.stride) | (back % self.stride == 0))

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        d = i + grid.offset
        near = _common(low, high, d - self.stride + 1, d + 1)
        return np.asarray(near + _multiples(d, self.stride, low, np.minimum(high, d - self.stride + 1)))


class Longformer(Pattern, frozen=True):
    """A window of `width` keys round the diagonal, and `global` first tokens that see and are seen by all.

    arXiv 2004.05150. `width` is the whole width without the diagonal key, as in published configs, and even.
    """

    word = "longformer"
    example = "longformer:512"
    width: int
    global_: int = 1

    def __post_init__(self) -> None:
        _at_least(self, "width", 0)
        _at_least(self, "global_", 0)
        if self.width % 2:
            raise ProblemError(
                f"mask {self.text!r}: width={self.width} is the whole width, half to each side: an even number"
            )

    def shrunk(self, share: float) -> Longformer:
        return Longformer(2 * part(self.width // 2, share), self.global_)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return (abs(i - j) <= self.width // 2) | (i < self.global_) | (j < self.global_)

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        half = self.width // 2
        window = _common(low, high, i - half, i + half + 1)
        first = _common(low, high, 0, self.global_)
        both = _common(np.maximum(low, i - half), np.minimum(high, i + half + 1), 0, self.global_)
        return np.where(i < self.global_, high - low, window + first - both)

    def check(self, grid: Grid) -> None:
        _needs_square(self, grid)
        if self.global_ > grid.seq_q:
            raise ProblemError(
                f"mask {self.text!r}: {self.global_} global tokens, beyond the {grid.seq_q} of the sequence"
            )


# -- by blocks ---------------------------------------------------------------------------------------------------------


class Blocks(Pattern, frozen=True):
    """Whole blocks of queries and keys; `kept` says which."""

    @property
    def size(self) -> int:
        """Tokens of a block."""
        raise NotImplementedError

    def kept(self, grid: Grid) -> NDArray[np.bool_]:
        """[block rows, block columns], True for a block that is kept."""
        raise NotImplementedError

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return self.kept(grid)[i // self.size, j // self.size]

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        kept = self.kept(grid)
        before = np.zeros((kept.shape[0], kept.shape[1] + 1), np.int64)
        np.cumsum(kept, axis=1, out=before[:, 1:])
        padded = np.pad(kept, ((0, 0), (0, 1)))
        row = i // self.size

        def below(bound: Indices) -> Any:
            column = bound // self.size
            return before[row, column] * self.size + padded[row, column] * (bound % self.size)

        return np.asarray(below(high) - below(low))

    def shape(self, grid: Grid) -> tuple[int, int]:
        """Block rows and block columns."""
        return -(-grid.seq_q // self.size), -(-grid.seq_kv // self.size)


class BlockSparse(Blocks, frozen=True):
    """A share `density` of all blocks: in each block row the diagonal one, and those that rank lowest by the hash.

    max(1, round(density C)) of the C blocks in which causal, window and prefix leave a visible pair.
    """

    word = "blocksparse"
    example = "blocksparse:0.25"
    unspelled = frozenset({"under"})
    density: float
    block: int = 128
    draw: int = 0
    under: tuple[Term, ...] = ()  # the bands that it stands with

    def __post_init__(self) -> None:
        _at_least(self, "block", 1)
        if not 0 < self.density <= 1:
            raise ProblemError(f"mask {self.text!r}: density={self.density:g} lies outside (0, 1]")

    @property
    def size(self) -> int:
        return self.block

    def kept(self, grid: Grid) -> NDArray[np.bool_]:
        return _sparse_blocks(self, Grid(1, grid.seq_q, grid.seq_kv))


class BigBird(Blocks, frozen=True):
    """A window of `window` blocks, the first and last block in both directions, `random` others in each block row.

    arXiv 2007.14062. `global` blocks: half of them the first ones, half the last.
    """

    word = "bigbird"
    example = "bigbird"
    block: int = 64
    window: int = 3
    global_: int = 2
    random: int = 3
    draw: int = 0

    def __post_init__(self) -> None:
        _at_least(self, "block", 1)
        for name in ("window", "global_", "random"):
            _at_least(self, name, 0)
        if self.window % 2 == 0 and self.window:
            raise ProblemError(f"mask {self.text!r}: window={self.window} blocks round the diagonal one: an odd number")

    @property
    def size(self) -> int:
        return self.block

    def kept(self, grid: Grid) -> NDArray[np.bool_]:
        return _bird_blocks(self, Grid(1, grid.seq_q, grid.seq_kv))

    def check(self, grid: Grid) -> None:
        _needs_square(self, grid)


@lru_cache(maxsize=64)
def _sparse_blocks(term: BlockSparse, grid: Grid) -> NDArray[np.bool_]:
    rows, columns = term.shape(grid)
    i = np.arange(grid.seq_q)
    low, high = bands.interval(term.under, grid, np.zeros(1, np.int64), i)
    starts = np.arange(0, grid.seq_q, term.block)
    seeing = high > low
    first = np.minimum.reduceat(np.where(seeing, low, grid.seq_kv), starts) // term.block
    stop = -(-np.maximum.reduceat(np.where(seeing, high, 0), starts) // term.block)
    column = np.arange(columns)
    candidates = (column >= first[:, None]) & (column < stop[:, None])
    rank = hashed(term.draw, np.arange(rows)[:, None], column[None, :])
    last = np.minimum(starts + term.block, grid.seq_q) - 1
    diagonal = np.clip((last + grid.offset) // term.block, first, np.maximum(stop - 1, first))
    inside = diagonal < columns
    rank[np.arange(rows)[inside], diagonal[inside]] = 0
    rank[~candidates] = np.iinfo(np.uint64).max
    count = np.maximum(np.floor(term.density * candidates.sum(1) + 0.5).astype(np.int64), 1)
    edge = np.take_along_axis(np.sort(rank, axis=1), count[:, None] - 1, axis=1)
    return (rank <= edge) & candidates


@lru_cache(maxsize=64)
def _bird_blocks(term: BigBird, grid: Grid) -> NDArray[np.bool_]:
    rows, columns = term.shape(grid)
    first, last = -(-term.global_ // 2), term.global_ // 2
    kept = np.zeros((rows, columns), bool)
    for edge in (kept, kept.T):
        edge[:first] = edge[max(0, len(edge) - last) :] = True
    row = np.arange(rows)
    steps = np.arange(-(term.window // 2), term.window // 2 + 1 if term.window else 0)
    ends = np.concatenate([np.arange(min(first, columns)), np.arange(max(0, columns - last), columns)])
    taken = np.concatenate([row[:, None] + steps, np.broadcast_to(ends, (rows, len(ends)))], axis=1)
    taken[(taken < 0) | (taken >= columns)] = columns
    for column in taken.T:
        inside = column < columns
        kept[row[inside], column[inside]] = True
    free = columns - kept.sum(axis=1)
    for number in range(term.random):
        left = free - number
        drawing = left > 0
        place = (hashed(term.draw, row, number) % np.maximum(left, 1).astype(np.uint64)).astype(np.int64)
        taken = np.append(taken, _free_column(taken, place, columns)[:, None], axis=1)
        taken[~drawing, -1] = columns
        kept[row[drawing], taken[drawing, -1]] = True
    return kept


def _free_column(taken: Indices, place: Indices, columns: int) -> Indices:
    """The free column at that place among the free ones of each row; `taken` [rows, some], `columns` for none."""
    ordered = np.sort(taken, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = columns  # one that stands twice is one
    for column in np.sort(ordered, axis=1).T:
        place = place + (column <= place)
    return place


def hashed(*parts: Any) -> NDArray[np.uint64]:
    """A fixed hash of integers that broadcast: splitmix64 (Steele, Lea and Flood 2014), part after part."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for number in parts:
            state = np.atleast_1d(state ^ np.asarray(number).astype(np.uint64))  # then in place: it may be large
            state += np.uint64(0x9E3779B97F4A7C15)
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
                state ^= state >> np.uint64(shift)
                state *= np.uint64(factor)
    return state.reshape(np.broadcast_shapes(*map(np.shape, parts)))


# -- graphs ------------------------------------------------------------------------------------------------------------


class Graph(Pattern, frozen=True):
    """Every node sees itself and its neighbours: a random graph of that density, or the edges of a file.

    `graph:0.05` draws each edge {i, j} by the hash; `graph:edges=FILE` reads two node numbers a line, undirected.
    """

    word = "graph"
    example = "graph:0.05"
    density: float = 0.0
    edges: str = ""
    draw: int = 0

    def __post_init__(self) -> None:
        if bool(self.density) == bool(self.edges):
            raise ProblemError(f"mask {self.text!r}: a density or a file of edges, as graph:0.05 or graph:edges=kg.txt")
        if self.density and not 0 < self.density <= 1:
            raise ProblemError(f"mask {self.text!r}: density={self.density:g} lies outside (0, 1]")

    def adjacency(self, grid: Grid) -> NDArray[np.bool_]:
        """[seq, seq], True where visible."""
        return _read_graph(self.edges, grid.seq_q) if self.edges else _draw_graph(self.density, self.draw, grid.seq_q)

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return self.adjacency(grid)[i, j]

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        before = np.zeros((grid.seq_q, grid.seq_kv + 1), np.int32)
        np.cumsum(self.adjacency(grid), axis=1, out=before[:, 1:])
        return np.asarray(before[i, high] - before[i, low], dtype=np.int64)

    def check(self, grid: Grid) -> None:
        _needs_square(self, grid)
        if grid.seq_q > GRAPH_MOST:
            raise ProblemError(f"mask {self.text!r}: {grid.seq_q} tokens; a graph has at most {GRAPH_MOST}")
        if self.edges:
            _read_graph(self.edges, grid.seq_q)


@lru_cache(maxsize=4)
def _draw_graph(density: float, draw: int, count: int) -> NDArray[np.bool_]:
    found = np.eye(count, dtype=bool)
    below = np.uint64(min(int(density * 2**64), 2**64 - 1))
    for i in range(1, count):
        found[i, :i] = hashed(draw, i, np.arange(i)) <= below
    return found | found.T


@lru_cache(maxsize=4)
def _read_graph(file: str, count: int) -> NDArray[np.bool_]:
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"mask 'graph:edges={file}': cannot be read: {error}") from None
    found = np.eye(count, dtype=bool)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise ProblemError(f"{file}:{number}: not two node numbers: {line[:60]!r}")
        i, j = int(words[0]), int(words[1])
        if max(i, j) >= count:
            raise ProblemError(f"{file}:{number}: node {max(i, j)} of a graph of {count}: nodes are 0 to {count - 1}")
        found[i, j] = found[j, i] = True
    return found


class Dense(Term, frozen=True):
    """Hides nothing: the mask beside it is handed over as a boolean tensor, which shows what materialising costs."""

    word = "dense"
    example = "dense+causal"

    def visible(self, grid: Grid, b: Any, i: Any, j: Any) -> Any:
        return np.True_

    def interval(self, grid: Grid, b: Indices, i: Indices) -> tuple[Any, Any]:
        return 0, grid.seq_kv
