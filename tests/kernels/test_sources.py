"""Rules that the source of the kernels keeps, because breaking them shows on a GPU alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "attnbench" / "kernels").glob("*.py"))


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of `tl.<name>`, and where it stands."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and isinstance(called, ast.Attribute) and ast.unparse(called) == f"tl.{name}":
                yield f"{path.name}:{node.lineno}", node


def given(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def test_masked_loads_say_what_stands_for_the_rest() -> None:
    loads = list(calls("load"))
    assert len(loads) > 20
    # Without `other` it is 0 in the interpreter, and anything on a GPU.
    assert [place for place, call in loads if "mask" in given(call) and "other" not in given(call)] == []


def test_products_name_their_precision() -> None:
    products = list(calls("dot"))
    assert len(products) >= 8
    # Products of float32 are TF32 by default on a GPU, and exact in the interpreter.
    assert [place for place, call in products if "input_precision" not in given(call)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_tuned_at_call_time(path: Path) -> None:
    assert "autotune" not in path.read_text(encoding="utf-8").replace("`@triton.autotune`", "")


def test_no_product_takes_a_transposed_accumulator() -> None:
    # Triton 3.4 to 3.7.0 miscompile it for Hopper; only tiles as they were read may be transposed.
    transposed = [ast.unparse(call.args[0]) for _, call in calls("trans")]
    assert set(transposed) == {"k_KD", "k_KT", "q_QD", "dout_QE", "v_KE"}
