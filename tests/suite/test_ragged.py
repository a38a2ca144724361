"""The lengths of ragged batches: lists, distributions and files."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from attnbench import backends, suite
from attnbench.attention import cost
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import short_lengths
from attnbench.errors import AttnbenchError, UsageError
from attnbench.records.case import Case, problem_label
from attnbench.suite.cells import ProblemTable, Suite, check
from attnbench.suite.keys import AXES
from attnbench.suite.ragged import lengths
from attnbench.suite.readers import ragged


def test_a_list_and_a_file_are_read_as_written(tmp_path):
    (tmp_path / "lengths.txt").write_text("300\n1k\n\n12\n")
    assert lengths("300-1k-12", "--set lengths") == (300, 1024, 12)
    assert lengths(f"file:{tmp_path}/lengths.txt", "--set lengths") == (300, 1024, 12)


@pytest.mark.parametrize(("mean", "cv"), [(1024, 1.0), (1024, 0.3), (256, 0.5)])
def test_a_distribution_has_its_mean_and_its_variation(mean, cv):
    values = lengths(f"lognormal:mean={mean}:cv={cv}:n=4096", "lengths")
    assert fmean(values) == pytest.approx(mean, rel=0.01)
    assert pstdev(values) / fmean(values) == pytest.approx(cv, rel=0.05)
    # The median of a log-normal distribution is the mean over sqrt(1 + cv^2).
    assert sorted(values)[2048] == pytest.approx(mean / math.sqrt(1 + cv * cv), rel=0.01)


def test_without_variation_all_lengths_are_the_mean():
    assert lengths("lognormal:mean=1k:cv=0:n=3", "lengths") == (1024, 1024, 1024)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("300-x", "not an integer: 'x'"),
        ("lognormal:mean=1k:n=64", "has no cv: use lognormal:mean=1k:cv=1:n=64"),
        ("lognormal:mean=1k:cv=x:n=64", "cv=x: a number from 0 to 100"),
        ("lognormal:mean=1k:cv=-1:n=64", "cv=-1: a number from 0 to 100"),
        ("lognormal:mean=1k:cv=1:n=0", "n from 1 to 65,536"),
        ("lognormal:mean=1k:cv=1:seed=3", "no key of lognormal 'seed'; there are mean, cv, n"),
        (
            "file:missing.txt",
            "file:missing.txt: No such file or directory; use a text file with one length in each line",
        ),
        ("file:empty.txt", "empty.txt has no length: write one in each line"),
        ("file:long.txt", "long.txt has 65,537 lengths: at most 65,536"),
        ("file:wrong.txt", "wrong.txt:2: not an integer: 'ten'"),
    ],
)
def test_a_mistake_is_named_with_what_to_use(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "long.txt").write_text("1\n" * 65_537)
    (tmp_path / "wrong.txt").write_text("3\nten\n")
    with pytest.raises(AttnbenchError) as caught:
        lengths(word, "--set lengths")
    assert message in str(caught.value)
    assert "--set lengths" in str(caught.value)


def test_lengths_are_requests_with_as_many_queries_as_keys():
    table = ProblemTable(axes={"lengths": ragged("1k-3-3,2", "lengths"), "mask": ("none",)})
    cells = suite.expand(Suite(name="x", tables=(table,)), kind="cpu", dtype=Dtype.FP32)
    problems = [(problem.batch, problem.seq_q, problem.requests) for problem, *_ in cells]
    assert problems == [(3, 1024, "q1k_2q3"), (1, 2, "q2")]


@pytest.mark.parametrize(("batch", "possible"), [(2, True), (3, False)])
def test_a_batch_beside_lengths_must_be_their_number(batch, possible):
    flags = suite.from_flags({"lengths": "5-3", "batch": str(batch), "mask": "none"})
    (cell,) = suite.expand(flags, kind="cpu", dtype=Dtype.FP32)
    assert isinstance(cell, suite.Cell) == possible


@pytest.mark.parametrize("key", ["lengths", "requests"])
def test_what_a_batch_of_requests_decides_is_not_given_beside_it(key):
    flag, value = ("--requests q8s1k", "q8s1k") if key == "requests" else ("--set lengths=5-3", "5-3")
    with pytest.raises(UsageError, match=f"{flag} beside --seq 1k: the {key} give seq; leave --seq out"):
        suite.from_flags({key: value, "seq": "1k"})
    with pytest.raises(UsageError, match=f"x: {key} beside tokens"):
        check(ProblemTable(axes={key: ("q5",), "tokens": (8,)}), "x")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["none", "causal", "window:2"]))
def test_a_padded_batch_of_an_earlier_version_is_read_and_counted_and_not_measured(values, mask):
    """Its label and id are as they were; its pairs by brute force."""
    stored = {"seq_q": max(values), "batch": len(values), "heads": 2, "lengths": values, "mask": mask}
    problem = msgspec.convert(stored, Problem)
    left, right = {"none": (9, 9), "causal": (9, 0), "window:2": (2, 2)}[mask]
    pairs = sum(-left <= j - i <= right for n in values for i in range(n) for j in range(n))
    assert cost.pairs(problem) == 2 * pairs
    label = problem_label(problem, Mode.FWD)
    assert label.endswith(f"{mask} fp32 fwd lengths={'-'.join(map(str, values))}")
    case = Case(problem=problem, backend="naive")
    packed = replace(problem, lengths=(), requests=AXES["requests"].of(problem))
    assert case.id != Case(problem=packed, backend="naive").id
    assert "is not measured any more" in backends.load("naive").objections(case, "cpu")[0]


def test_the_id_of_a_stored_ragged_batch_is_as_it_was():
    case = Case(problem=Problem(seq_q=5, batch=2, lengths=(5, 3), mask="causal"), backend="naive")
    assert case.id == "7ba50c569a20"


def test_a_label_of_many_lengths_is_short_and_distinct():
    values = lengths("lognormal:mean=1k:cv=1:n=64", "lengths")
    other = (*values[:-1], values[-1] + 1)
    assert short_lengths(values).startswith("64x97..5419~")
    assert short_lengths(values) != short_lengths(other)
