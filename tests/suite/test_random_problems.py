from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from attnbench import suite
from attnbench.attention.choices import Dtype
from attnbench.suite import Cell


@given(seed=st.integers(0, 2**32), longest=st.integers(1, 10_000))
def test_whatever_is_drawn_is_one_problem_within_the_lengths(seed: int, longest: int) -> None:
    axes = suite.draw(Random(seed), longest)
    (cell,) = suite.expand(suite.from_flags(axes), kind="cpu", dtype=Dtype.FP32)
    assert isinstance(cell, Cell), cell
    problem = cell.problem
    assert max(problem.seq_q, problem.seq_kv) <= longest
    assert problem.heads % problem.kv_heads == 0
    assert suite.draw(Random(seed), longest) == axes


def test_short_and_long_and_odd_lengths_are_drawn() -> None:
    random = Random(0)
    lengths = [int(suite.draw(random, 4096)["seq_q"]) for _ in range(400)]
    assert min(lengths) == 1
    assert max(lengths) > 2048
    assert sum(length % 2 for length in lengths) > 100
    assert len(set(lengths)) > 200


def test_every_mask_and_mode_is_drawn() -> None:
    random = Random(0)
    drawn = [suite.draw(random, 300) for _ in range(600)]
    words = {word.partition(":")[0] for axes in drawn for word in axes["mask"].split("+")}
    assert words == {"none", "causal", "window", "prefix", "document", "padding"}
    assert {axes["mode"] for axes in drawn} == {"fwd", "bwd"}
