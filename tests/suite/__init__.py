"""Tests of suites, with the table that they are made of."""

from __future__ import annotations

from typing import Any

from attnbench.suite import AXES, ProblemTable


def table_of(**keys: Any) -> ProblemTable:
    """A table with these axes and other keys."""
    axes = {name: values for name, values in keys.items() if name in AXES}
    return ProblemTable(axes=axes, **{name: value for name, value in keys.items() if name not in AXES})
