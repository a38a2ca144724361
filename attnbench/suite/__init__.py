"""Suites: files and options become tables of axes, and tables become cells. No torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.suite.cells import (
        Cell,
        Impossible,
        ProblemTable,
        Suite,
        count_cases,
        expand,
        parse_shard,
        parse_shrink,
        shrunk,
    )
    from attnbench.suite.files import from_flags, load, override, schema, shipped
    from attnbench.suite.filters import Filter, keeps, parse_filter
    from attnbench.suite.keys import AXES, options_of
    from attnbench.suite.random_problems import draw

__all__ = ["AXES", "Cell", "Filter", "Impossible", "ProblemTable", "Suite", "count_cases", "draw", "expand"]
__all__ += [
    "from_flags",
    "keeps",
    "load",
    "options_of",
    "override",
    "parse_filter",
    "parse_shard",
    "parse_shrink",
    "schema",
    "shipped",
]
__all__ += ["shrunk"]


def __getattr__(name: str) -> object:
    # Imported on first use: `attnbench --help` reads AXES alone, and the modules after `keys` need numpy.
    for module in ("keys", "filters", "cells", "files", "random_problems") if name in __all__ else ():
        names = vars(import_module(f"attnbench.suite.{module}"))
        if name in names:
            return names[name]
    raise AttributeError(f"module 'attnbench.suite' has no attribute {name!r}")
