"""Pairwise covers of a grid: few rows in which every two values of two axes meet.

Most faults of a combination need two of its values (Kuhn, Wallace and Gallo, IEEE TSE 30(6), 2004), so a cover of all
pairs finds nearly what the whole grid finds, in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]
Pair = tuple[tuple[str, int], tuple[str, int]]


def cover(axes: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool] = lambda _: True) -> list[Row]:
    """Rows that hold every pair of values which some allowed row can hold. Deterministic.

    `allowed` gets rows in which axes may still be missing, and must not reject one that can be completed.
    """
    open_pairs = {pair: None for pair in pairs(axes) if _complete(axes, allowed, dict(pair))}
    rows = []
    while open_pairs:
        places = dict(next(iter(open_pairs)))
        for name in sorted(axes.keys() - places.keys(), key=list(axes).index):
            fitting = [n for n in range(len(axes[name])) if _complete(axes, allowed, {**places, name: n})]
            gains = {n: sum(_pair(name, n, other, m) in open_pairs for other, m in places.items()) for n in fitting}
            # Of equal values the one with most pairs left, so that no value is put off to the end.
            left = {n: sum((name, n) in pair for pair in open_pairs) for n in fitting}
            places[name] = max(fitting, key=lambda n: (gains[n], left[n]))
        for pair in combinations(sorted(places.items()), 2):
            open_pairs.pop(pair, None)
        rows.append({name: axes[name][places[name]] for name in axes})
    return rows


def pairs(axes: Mapping[str, Sequence[Any]]) -> Iterator[Pair]:
    """Every pair of values of two axes, as the names of the axes and the places of the values in them."""
    for one, other in combinations(sorted(axes), 2):
        yield from (((one, n), (other, m)) for n in range(len(axes[one])) for m in range(len(axes[other])))


def _pair(one: str, n: int, other: str, m: int) -> Pair:
    return ((one, n), (other, m)) if one < other else ((other, m), (one, n))


def _complete(axes: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool], places: dict[str, int]) -> bool:
    """Whether some allowed row holds these values."""
    if not allowed({name: axes[name][place] for name, place in places.items()}):
        return False
    missing = next((name for name in axes if name not in places), None)
    if missing is None:
        return True
    return any(_complete(axes, allowed, {**places, missing: place}) for place in range(len(axes[missing])))
