"""Suites at a share of their size: what shrinks, what does not, and that every shipped one then runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from attnbench import api, suite
from attnbench.attention import masks
from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.attention.terms import Grid
from attnbench.engine import sweep
from attnbench.engine.runner import SilentObserver
from attnbench.errors import UsageError
from attnbench.records.result import Status
from attnbench.suite import Cell, Impossible


def small(problem: Problem, share: float) -> Problem:
    (cell,) = suite.shrunk([Cell(problem, "fwd")], share)
    assert isinstance(cell, Cell)
    return cell.problem


def test_lengths_batch_and_the_mask_shrink_and_heads_do_not() -> None:
    problem = Problem(seq_q=1000, seq_kv=2000, batch=8, heads=12, kv_heads=4, head_dim=80, mask="causal+window:511")
    wanted = Problem(seq_q=250, seq_kv=500, batch=2, heads=12, kv_heads=4, head_dim=80, mask="causal+window:128")
    assert small(problem, 0.25) == wanted


def test_nothing_shrinks_to_nothing() -> None:
    assert small(Problem(seq_q=1, seq_kv=3, mask="window:1"), 0.01) == Problem(seq_q=1, mask="window:1")


def test_requests_shrink_one_by_one() -> None:
    (problem,) = (
        cell.problem
        for cell in suite.expand(suite.from_flags({"requests": "2q100s2000_q8"}), kind="cpu", dtype=Dtype.FP32)
        if isinstance(cell, Cell)
    )
    assert [tuple(size) for size in small(problem, 0.1).sizes] == [(10, 200), (10, 200), (1, 1)]


@given(st.lists(st.integers(5, 300), min_size=2, max_size=6), st.floats(0.2, 1.0))
def test_documents_still_add_up(lengths: list[int], share: float) -> None:
    mask = masks.parse("document:" + "-".join(map(str, lengths)))
    total = max(1, int(sum(lengths) * share + 0.5))
    mask.shrunk(share).check(Grid(1, total, total))


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ("longformer:512:2", "longformer:128:2"), ("strided:128", "strided:32"), ("prefix:64", "prefix:16"),
        ("blocksparse:0.25", "blocksparse:0.25"), ("dilated:4", "dilated:4"), ("padding:0.3", "padding:0.3"),
        ("document:8", "document:8"), ("window:3:0", "causal+window:1"),
        ("tree:0-0-1-1-3-3-2-2", "tree:0-0"), ("blockdiffusion:16", "blockdiffusion:4"), ("natten:63:8", "natten:15:2"),
        ("natten:7x9:4:2:56x64", "natten:1x9:1x4:2:14x64"), ("sta:3:8:shape=64x64", "sta:3:2x8:16x64"),
        ("sta:3:64", "sta:3:16"),
    ],
)  # fmt: skip
def test_what_a_mask_counts_in_tokens_shrinks(mask: str, wanted: str) -> None:
    assert masks.parse(mask).shrunk(0.25).text == wanted


def test_doubles_are_left_out() -> None:
    cells = [Cell(Problem(seq_q=n), "fwd") for n in (100, 101, 200)]
    assert [cell.problem.seq_q for cell in suite.shrunk(cells, 0.1) if isinstance(cell, Cell)] == [10, 20]


def test_documents_that_vanish_are_impossible_and_say_so() -> None:
    (cell,) = suite.shrunk([Cell(Problem(seq_q=12, mask="document:9-1-1-1"), "fwd")], 0.1)
    assert isinstance(cell, Impossible)
    assert "shrunk to 0.1" in cell.text


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "nan", "half"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--shrink {text}: not a share"):
        suite.parse_shrink(text)


@pytest.mark.parametrize("name", suite.shipped())
def test_every_cell_of_every_suite_has_a_small_form(name: str) -> None:
    for kind in ("cpu", "cuda"):
        whole = suite.expand(suite.load(name), kind=kind, dtype=Dtype.FP32)
        assert any(isinstance(cell, Cell) for cell in suite.shrunk(whole, 0.25))


@pytest.mark.slow  # it judges no time, so it need not run alone
def test_every_suite_runs_at_a_small_share(tmp_path: Path) -> None:
    """All in one sweep, so that one worker starts; what `naive` refuses, nobody runs.

    The smallest batch of each kind of problem of a suite, in the shortest blocks.
    """
    request = api.request(
        *suite.shipped(), shrink="0.003", backend="naive", device="cpu:threads=1", rounds="1", budget="0"
    )
    ready = sweep.prepare(request)
    smallest_last = sorted(ready.cells, key=lambda cell_and_arms: -cell_and_arms[0].problem.batch)
    ready = sweep.replan(ready, {_kind(cell): (cell, arms) for cell, arms in smallest_last}.values())
    procedures = {kind: replace(procedure, block_s=1e-4) for kind, procedure in ready.settings.procedures.items()}
    ready = replace(ready, settings=replace(ready.settings, procedures=procedures))
    run = sweep.run(ready, SilentObserver(), directory=tmp_path / "run").run
    assert run.manifest.suite.endswith("-shrunk-0.003")
    assert len(run.results) > 200
    assert not [(result.case.label, result.reason) for result in run.results if result.status is not Status.OK]


def _kind(cell: Cell) -> tuple[object, ...]:
    """What a problem is besides its lengths."""
    problem = cell.problem
    names = set(problem.__struct_fields__) - {"seq_q", "seq_kv", "batch", "requests", "mask"}
    terms = tuple(term.partition(":")[0] for term in problem.mask.split("+"))
    fields = [getattr(problem, name) for name in sorted(names)]
    return (*fields, cell.mode, terms, problem.seq_q == 1, problem.seq_q == problem.seq_kv, bool(problem.requests))
