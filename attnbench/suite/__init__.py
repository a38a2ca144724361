"""What is to be measured: suite files and options -> tables of axes -> cells, one after another. No torch."""

from __future__ import annotations

from attnbench.suite.cells import Cell, Impossible, Suite, Table, expand
from attnbench.suite.draw import draw
from attnbench.suite.files import from_flags, load, override, schema, shipped
from attnbench.suite.filters import Filter, keeps, parse_filter
from attnbench.suite.keys import AXES
from attnbench.suite.shrink import parse_shrink, shrunk

__all__ = [
    "AXES",
    "Cell",
    "Filter",
    "Impossible",
    "Suite",
    "Table",
    "draw",
    "expand",
    "from_flags",
    "keeps",
    "load",
    "override",
    "parse_filter",
    "parse_shrink",
    "schema",
    "shipped",
    "shrunk",
]
