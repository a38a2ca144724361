"""The product of a suite's axes: which cells, in which order, and what is no problem."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench import suite
from attnbench.attention.choices import Dtype, Mode, Returns
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.errors import UsageError
from attnbench.suite import Cell, Impossible, ProblemTable, Suite, parse_filter
from attnbench.suite.cells import check
from tests.suite import table_of


def suite_of(*tables: ProblemTable) -> Suite:
    return Suite(name="made", tables=tables)


def expanded(*tables: ProblemTable, kind: str = "cpu", shard: str = "") -> list[Cell | Impossible]:
    selected = suite.parse_shard(shard)
    cells = suite.expand(suite_of(*tables), kind=kind, dtype=Dtype.FP32)
    return [cell for number, cell in enumerate(cells) if selected(number)]


def problems(**axes: Any) -> list[Problem]:
    return [cell.problem for cell in expanded(table_of(**axes)) if isinstance(cell, Cell)]


def shapes(**axes: Any) -> list[tuple[int, int, int]]:
    """(batch, seq_q, seq_kv) of every problem under one mask."""
    return [(p.batch, p.seq_q, p.seq_kv) for p in problems(mask=("none",), **axes)]


# -- defaults ----------------------------------------------------------------------------------------------------------


def test_length_alone_gives_the_documented_defaults() -> None:
    usual = {"seq_q": 8, "seq_kv": 8, "batch": 1, "heads": 8, "kv_heads": 8, "head_dim": 64, "head_dim_v": 64}
    assert expanded(table_of(seq=(8,))) == [
        Cell(Problem(mask=mask, dtype=Dtype.FP32, **usual), Mode.FWD) for mask in ("none", "causal")
    ]


def test_requests_give_the_batch_and_the_longest_lengths_and_are_causal() -> None:
    (problem,) = problems(requests=("2q1s8_q4",))
    assert (problem.batch, problem.seq_q, problem.seq_kv, problem.mask) == (3, 4, 8, "causal")
    assert [tuple(size) for size in problem.sizes] == [(1, 8), (1, 8), (4, 4)]
    with pytest.raises(UsageError, match="--x: requests beside batch: the requests give batch; leave batch out"):
        check(table_of(requests=("q4",), batch=(2,)), "--x")


def test_dtype_is_that_of_the_device_unless_named() -> None:
    tables = (table_of(seq=(8,), mask=("none",)), table_of(seq=(8,), mask=("none",), dtype=(Dtype.FP16,)))
    cells = suite.expand(suite_of(*tables), kind="cuda", dtype=Dtype.BF16)
    assert [cell.problem.dtype for cell in cells if isinstance(cell, Cell)] == [Dtype.BF16, Dtype.FP16]


def test_kv_heads_and_head_dim_v_follow() -> None:
    assert [(p.kv_heads, p.head_dim_v) for p in problems(seq=(8,), mask=("none",), heads=(4,), head_dim=(32,))] == [
        (4, 32)
    ]


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"seq": (8, 16)}, [(1, 8, 8), (1, 16, 16)]),
        ({"seq_q": (8, 16)}, [(1, 8, 8), (1, 16, 16)]),
        ({"seq_q": (1, 2), "seq_kv": (8, 16)}, [(1, 1, 8), (1, 1, 16), (1, 2, 8), (1, 2, 16)]),
        ({"seq": (8, 16), "seq_q": (1,)}, [(1, 1, 8), (1, 1, 16)]),
        ({"seq": (8, 16), "seq_kv": (4,)}, [(1, 8, 4), (1, 16, 4)]),
        ({"seq": (8,), "batch": (1, 2)}, [(1, 8, 8), (2, 8, 8)]),
        ({"seq": (8, 100, 512), "tokens": (256,)}, [(32, 8, 8), (2, 100, 100), (1, 512, 512)]),
        ({"seq_q": (1,), "seq_kv": (64,), "tokens": (256,)}, [(4, 1, 64)]),
        ({"lengths": ("q3_q5", "q4")}, [(2, 5, 5), (1, 4, 4)]),
    ],
)
def test_lengths_and_batch(axes: dict[str, Any], expected: list[tuple[int, int, int]]) -> None:
    assert shapes(**axes) == expected


@given(st.integers(1, 5000), st.integers(1, 10000))
def test_tokens_are_filled_but_not_exceeded_unless_by_one_sequence(seq: int, tokens: int) -> None:
    [(batch, _, _)] = shapes(seq=(seq,), tokens=(tokens,))
    assert batch * seq <= max(tokens, seq)
    assert (batch + 1) * seq > tokens


@given(
    st.fixed_dictionaries(
        {
            "seq": st.sets(st.integers(1, 64), min_size=1, max_size=3),
            "batch": st.sets(st.integers(1, 4), min_size=1, max_size=2),
            "heads": st.sets(st.sampled_from([4, 8]), min_size=1),
            "head_dim": st.sets(st.sampled_from([16, 41]), min_size=1),
            "dtype": st.sets(st.sampled_from([Dtype.FP32, Dtype.BF16]), min_size=1),
            "mask": st.sets(st.sampled_from(["none", "causal", "padding:0.3"]), min_size=1),
            "softcap": st.sets(st.sampled_from([None, 30.0]), min_size=1),
            "returns": st.sets(st.sampled_from(list(Returns)), min_size=1),
            "mode": st.sets(st.sampled_from(list(Mode)), min_size=1),
        }
    )
)
def test_cells_are_the_whole_product_each_once(axes: dict[str, set[Any]]) -> None:
    expected = set()
    for values in itertools.product(*axes.values()):
        combination = dict(zip(axes, values, strict=True))
        seq, mode, softcap = combination.pop("seq"), combination.pop("mode"), combination.pop("softcap")
        expected.add((Problem(seq_q=seq, seq_kv=seq, score=Score(softcap=softcap), **combination), mode))
    actual = [(cell.problem, cell.mode) for cell in expanded(table_of(**{k: tuple(v) for k, v in axes.items()}))]  # type: ignore[union-attr]
    assert len(actual) == len(expected)
    assert set(actual) == expected


def test_score_is_combined_with_scale_and_softcap_of_their_own() -> None:
    scores = {p.score for p in problems(seq=(8,), mask=("none",), score=("dot:softcap=30", "dot"), scale=(None, 1.0))}
    assert scores == {Score(softcap=30), Score(softcap=30, scale=1), Score(), Score(scale=1)}


# -- what is left out --------------------------------------------------------------------------------------------------


def test_table_is_there_for_its_kind_of_device_alone() -> None:
    tables = (table_of(seq=(8,), on="cpu"), table_of(seq=(16,), on="cuda"), table_of(seq=(32,)))
    lengths = {cell.problem.seq_q for cell in expanded(*tables, kind="cuda") if isinstance(cell, Cell)}
    assert lengths == {16, 32}


def test_exclusion_needs_all_of_its_conditions() -> None:
    long_and_full = (parse_filter("seq=16.."), parse_filter("mask=none"))
    actual = problems(seq=(8, 16, 32), exclude=(long_and_full,))
    assert {(p.seq_q, p.mask) for p in actual} == {(8, "none"), (8, "causal"), (16, "causal"), (32, "causal")}


def test_one_exclusion_of_several_is_enough() -> None:
    actual = problems(seq=(8, 16, 32), mask=("none",), exclude=((parse_filter("seq=8"),), (parse_filter("seq=32"),)))
    assert [p.seq_q for p in actual] == [16]


def test_exclusion_by_mode_leaves_the_other_modes() -> None:
    table = table_of(seq=(8,), mask=("none",), mode=(Mode.FWD, Mode.BWD), exclude=((parse_filter("mode=bwd"),),))
    assert [cell.mode for cell in expanded(table) if isinstance(cell, Cell)] == [Mode.FWD]


def test_excluded_combination_is_not_called_impossible() -> None:
    table = table_of(seq=(8,), heads=(12,), kv_heads=(4, 8), exclude=((parse_filter("kv_heads=8"),),))
    assert not any(isinstance(cell, Impossible) for cell in expanded(table))


def test_combination_that_is_no_problem_is_given_with_its_reason() -> None:
    cells = expanded(table_of(seq=(8,), mask=("none",), heads=(12,), kv_heads=(4, 8)))
    assert isinstance(cells[0], Cell)
    assert cells[1] == Impossible(
        "dtype=fp32 heads=12 kv_heads=8 head_dim=64 head_dim_v=64 mask=none batch=1 seq_q=8 seq_kv=8",
        "heads=12 is not a multiple of kv_heads=8; kv_heads may be [1, 2, 3, 4, 6, 12]",
    )


def test_impossible_combination_of_two_tables_is_given_once() -> None:
    table = table_of(seq=(8,), mask=("none",), heads=(12,), kv_heads=(8,))
    assert len(expanded(table, table)) == 1


def test_heads_that_cannot_be_shared_out_among_ranks_are_impossible() -> None:
    (cell,) = expanded(table_of(seq=(64,), mask=("none",), heads=(6,), tp=(4,)))
    assert isinstance(cell, Impossible)
    assert cell.reason == "heads=6 cannot be shared out among tp=4 ranks"


def test_document_mask_with_unequal_lengths_is_impossible() -> None:
    [impossible] = expanded(table_of(seq_q=(8,), seq_kv=(16,), mask=("document:2",)))
    assert isinstance(impossible, Impossible)
    assert "needs seq_q == seq_kv, not 8 and 16" in impossible.reason


def test_impossible_combination_is_given_once_for_all_modes() -> None:
    assert len(expanded(table_of(seq=(8,), mask=("none",), heads=(12,), kv_heads=(8,), mode=tuple(Mode)))) == 1


def test_problem_of_two_tables_is_given_once() -> None:
    cells = expanded(table_of(seq=(8, 16), mask=("none",)), table_of(seq=(16, 32), mask=("none",)))
    assert [cell.problem.seq_q for cell in cells if isinstance(cell, Cell)] == [8, 16, 32]


def test_problem_of_two_tables_is_given_again_for_new_backends_alone() -> None:
    first, second = (
        table_of(seq=(8,), mask=("none",), backend=names) for names in (("naive", "flex"), ("flex", "sdpa"))
    )
    assert [cell.backends for cell in expanded(first, second) if isinstance(cell, Cell)] == [
        ("naive", "flex"),
        ("sdpa",),
    ]


def test_backend_that_a_table_names_twice_stays_twice() -> None:
    [cell] = expanded(table_of(seq=(8,), mask=("none",), backend=("flex", "flex")))
    assert isinstance(cell, Cell)
    assert cell.backends == ("flex", "flex")


# -- size and shards ---------------------------------------------------------------------------------------------------


def test_product_beyond_a_million_cells_is_refused() -> None:
    with pytest.raises(UsageError, match="--x: 4,000,000 cells; at most 1,000,000"):
        check(table_of(seq=tuple(range(1, 2001)), heads=tuple(range(1, 2001))), "--x")


def test_cells_come_lazily() -> None:
    endless = table_of(seq=tuple(range(1, 1001)), batch=tuple(range(1, 1001)))
    assert isinstance(next(iter(suite.expand(suite_of(endless), kind="cpu", dtype=Dtype.FP32))), Cell)


@given(cells=st.integers(1, 40), shards=st.integers(1, 12))
def test_shards_have_every_cell_once_and_are_of_like_size(cells: int, shards: int) -> None:
    table = table_of(seq=tuple(range(1, cells + 1)), mask=("none",))
    parts = [expanded(table, shard=f"{k}/{shards}") for k in range(1, shards + 1)]
    assert sorted(str(cell) for part in parts for cell in part) == sorted(map(str, expanded(table)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_doubles_over_two_tables_are_in_one_shard_alone() -> None:
    tables = (table_of(seq=(8, 16, 24), mask=("none",)), table_of(seq=(16, 24, 32), mask=("none",)))
    actual = [cell for k in (1, 2) for cell in expanded(*tables, shard=f"{k}/2")]
    assert sorted(cell.problem.seq_q for cell in actual if isinstance(cell, Cell)) == [8, 16, 24, 32]


def test_shard_does_not_get_all_the_long_ones() -> None:
    table = table_of(seq=(8, 4096), mask=("none",), heads=(1, 2, 4, 8))
    lengths = {cell.problem.seq_q for cell in expanded(table, shard="1/2") if isinstance(cell, Cell)}
    assert lengths == {8, 4096}


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--shard: not K/N: '{text}'"):
        expanded(table_of(seq=(8,)), shard=text)
