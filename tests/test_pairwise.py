from __future__ import annotations

from itertools import combinations, product
from typing import Any

from tests.pairwise import cover

AXES: dict[str, Any] = {"a": "pqr", "b": (1, 2), "c": (True, False), "d": "wxyz"}


def met(rows: list[dict[str, Any]]) -> set[frozenset[tuple[str, Any]]]:
    return {frozenset(pair) for row in rows for pair in combinations(row.items(), 2)}


def everything(axes: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def test_every_pair_is_covered_by_few_rows() -> None:
    rows = cover(AXES)
    assert met(rows) == met(everything(AXES))
    assert len(rows) <= 14  # 12 at least; the whole grid has 48


def test_what_is_not_allowed_is_left_out_and_all_else_is_covered() -> None:
    def allowed(row: dict[str, Any]) -> bool:
        return not (row.get("a") == "p" and row.get("d") in ("w", "x")) and not (row.get("b") == 2 and row.get("c"))

    rows = cover(AXES, allowed)
    assert met(rows) == met([row for row in everything(AXES) if allowed(row)])


def test_many_switches_need_few_rows() -> None:
    switches = {str(n): (False, True) for n in range(10)}
    assert len(cover(switches)) <= 10  # of 1024
