"""Prints the rows of the axes in docs/formats.md: `python tools/axes.py`."""

from __future__ import annotations

from attnbench.suite import AXES

if __name__ == "__main__":
    print("\n".join(axis.row for axis in AXES.values()))
