"""The lengths of ragged batches: lists, distributions and files."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.attention.requests import short_lengths
from attnbench.errors import AttnbenchError
from attnbench.records.case import problem_label
from attnbench.suite.ragged import lengths


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


def test_a_label_of_many_lengths_is_short_and_distinct():
    values = lengths("lognormal:mean=1k:cv=1:n=64", "lengths")
    other = (*values[:-1], values[-1] + 1)
    assert short_lengths(values).startswith("64x97..5419~")
    assert short_lengths(values) != short_lengths(other)
    longest = max(values)
    label = problem_label(Problem(batch=64, seq_q=longest, lengths=values), Mode.FWD)
    assert label == f"b64 h8 q5419 kv5419 d64 none fp32 fwd lengths={short_lengths(values)}"
    short = Problem(batch=2, seq_q=5, lengths=(5, 3))
    assert problem_label(short, Mode.FWD) == "b2 h8 q5 kv5 d64 none fp32 fwd lengths=5-3"
