"""Attention along the edges of a graph, as in graph attention networks (https://arxiv.org/abs/1710.10903).

`graph:0.05` draws each edge {i, j} by a fixed hash of (draw, i, j); `graph:edges=FILE` reads two node numbers per line,
undirected. Pairs are counted from the adjacency matrix.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

from attnbench.attention.fixed_random import splitmix64
from attnbench.attention.terms import Booleans, Grid, Indices, Pattern, Predicate, Table, check_density, counter
from attnbench.errors import ProblemError

MAX_TOKENS = 16384  # the adjacency matrix is held whole


class GraphMask(Pattern, frozen=True):
    """Every node sees itself and its neighbours: a random graph of that density, or the edges of a file."""

    word = "graph"
    example = "graph:0.05"
    summary = "mask by the edges of a graph"
    is_square = True

    density: float = 0.0  # share of all possible edges
    edges: str = ""  # path of a file
    draw: int = 0  # another number selects other edges

    def __post_init__(self) -> None:
        if bool(self.density) == bool(self.edges):
            raise self.error("a density or a file of edges, as graph:0.05 or graph:edges=kg.txt")
        if self.density:
            check_density(self, self.density)

    def adjacency(self, grid: Grid) -> Booleans:
        """[seq, seq], True where visible."""
        return _read(self.edges, grid.seq_q) if self.edges else _draw(self.density, self.draw, grid.seq_q)

    def predicate(self, grid: Grid, table: Table) -> Predicate:
        adjacency = table(self.adjacency(grid))
        return lambda b, i, j: adjacency[i, j]

    def counts(self, grid: Grid, i: Indices, low: Indices, high: Indices) -> Indices:
        return counter(self.adjacency(grid))(i, low, high)

    def row_counts(self, grid: Grid, j: Indices, low: Indices, high: Indices) -> Indices:
        return self.counts(grid, j, low, high)  # edges have no direction

    def check(self, grid: Grid) -> None:
        super().check(grid)
        if grid.seq_q > MAX_TOKENS:
            raise self.error(f"{grid.seq_q} tokens; a graph has at most {MAX_TOKENS}")
        if self.edges:
            _read(self.edges, grid.seq_q)


@lru_cache(maxsize=4)
def _draw(density: float, draw: int, count: int) -> Booleans:
    adjacency = np.eye(count, dtype=bool)
    highest = np.uint64(min(int(density * 2**64), 2**64 - 1))
    for i in range(1, count):
        adjacency[i, :i] = splitmix64(draw, i, np.arange(i)) <= highest
    return adjacency | adjacency.T


@lru_cache(maxsize=4)
def _read(file: str, count: int) -> Booleans:
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"mask 'graph:edges={file}': cannot be read: {error}") from None
    adjacency = np.eye(count, dtype=bool)
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.replace(",", " ").split()
        if not columns or columns[0].startswith("#"):
            continue
        if len(columns) < 2 or not (columns[0].isdecimal() and columns[1].isdecimal()):
            raise ProblemError(f"{file}:{number}: not two node numbers: {line[:60]!r}")
        i, j = int(columns[0]), int(columns[1])
        if max(i, j) >= count:
            raise ProblemError(f"{file}:{number}: node {max(i, j)} of a graph of {count}: nodes are 0 to {count - 1}")
        adjacency[i, j] = adjacency[j, i] = True
    return adjacency
