"""Graphs, random and from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attnbench.attention import masks
from attnbench.attention.masks.graph import GraphMask
from attnbench.attention.terms import Grid
from attnbench.errors import ProblemError


def test_a_random_graph_is_symmetric_with_that_density():
    adjacency = masks.parse("graph:0.2").find(GraphMask).adjacency(Grid(1, 200, 200))
    assert np.array_equal(adjacency, adjacency.T)
    assert adjacency.diagonal().all()
    assert masks.parse("graph:0.2").seen_keys(Grid(1, 200, 200)) == 200
    edges = np.triu(adjacency, 1).sum()
    assert abs(edges - 0.2 * 19900) < 5 * (19900 * 0.2 * 0.8) ** 0.5


def test_a_graph_from_a_file(tmp_path: Path):
    file = tmp_path / "kg.txt"
    file.write_text("# edges\n0 1\n3,1\n\n")
    seen = masks.parse(f"graph:edges={file}").dense(Grid(1, 4, 4))[0]
    expected = np.eye(4, dtype=bool)
    for i, j in ((0, 1), (3, 1)):
        expected[i, j] = expected[j, i] = True
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize(
    ("lines", "message"),
    [("0 9\n", "kg.txt:1: node 9 of a graph of 4: nodes are 0 to 3"), ("0 1\nx y\n", "kg.txt:2: not two node numbers")],
)
def test_error_in_a_file_names_the_line(tmp_path: Path, lines: str, message: str):
    file = tmp_path / "kg.txt"
    file.write_text(lines)
    with pytest.raises(ProblemError, match=message):
        masks.parse(f"graph:edges={file}").check(Grid(1, 4, 4))
