"""Comparison of stored runs, case by case."""

from __future__ import annotations

import csv as reader
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench import cli
from attnbench.analysis import comparison
from attnbench.analysis.comparison import Change
from attnbench.attention.problem import Problem
from attnbench.errors import NotComparableError
from attnbench.records.result import Procedure, Result, Status, sample
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.formats import comparison as report
from tests.samples import result


def run(name: str, *results: Result, **fields: Any) -> Run:
    """A run that is not on disk."""
    plain = {"schema_version": 1, "attnbench": "0", "created_at": "", "suite": "s", "fingerprint": "abc"}
    return Run(path=Path(name), manifest=Manifest(**{**plain, **fields}), results=list(results))


def at(seconds: float, seq: int = 64, peak: int | None = None, **fields: Any) -> list[Result]:
    """Three restarts of one case, half a percent apart."""
    found = []
    for restart in range(3):
        values = [seconds * (1 + 0.005 * restart)] * 5 if seconds else ()
        one = result(values, problem=Problem(seq_q=seq), restart=restart, **fields)
        samples = {**one.samples, "peak_memory": sample("B", [peak])} if peak is not None else one.samples
        found.append(msgspec.structs.replace(one, samples=samples))
    return found


def changes(old: Run, new: Run) -> dict[str, Change]:
    return {pair.label.split()[2]: pair.change for pair in comparison.compare(old, new).pairs}


def test_every_kind_of_change_is_named() -> None:
    bad = {"status": Status.INCORRECT, "reason": "off by 3"}
    old = run("old", *at(1e-3, 16), *at(1e-3, 32), *at(1e-3, 48), *at(1e-3, 64), *at(0, 80, **bad), *at(1e-3, 96))
    new = run("new", *at(2e-3, 16), *at(5e-4, 32), *at(1.001e-3, 48), *at(0, 64, **bad), *at(1e-3, 80), *at(1e-3, 112))
    assert changes(old, new) == {
        "q16": Change.SLOWER, "q32": Change.FASTER, "q48": Change.SAME, "q64": Change.BROKEN, "q80": Change.FIXED,
        "q96": Change.MISSING, "q112": Change.NEW,
    }  # fmt: skip
    pairs = comparison.compare(old, new).pairs
    assert [pair.change for pair in pairs[:4]] == [Change.BROKEN, Change.MISSING, Change.FIXED, Change.NEW]
    assert pairs[0].reason == "off by 3"
    assert abs(pairs[4].effect) >= abs(pairs[5].effect) >= abs(pairs[6].effect)


def test_swapping_the_runs_mirrors_every_ratio() -> None:
    old, new = run("old", *at(1e-3), *at(1e-3, 32)), run("new", *at(1.3e-3), *at(9e-4, 32))
    there, back = comparison.compare(old, new), comparison.compare(new, old)
    for one, other in zip(there.pairs, back.pairs, strict=True):
        assert one.ratio
        assert other.ratio
        assert one.ratio.value == pytest.approx(1 / other.ratio.value)
        assert {one.change, other.change} == {Change.SLOWER, Change.FASTER}
    assert there.geomeans["naive@cpu:threads=1"].value == pytest.approx((1.3 * 0.9) ** 0.5)


def test_one_restart_is_level_within_what_restarts_differ_by() -> None:
    old, new = run("old", result([1e-3] * 6)), run("new", result([1.01e-3] * 6))
    assert set(changes(old, new).values()) == {Change.SAME}


def test_two_machines_are_compared_only_when_asked_to() -> None:
    old, new = run("old", *at(1e-3)), run("new", *at(2e-3), fingerprint="xyz")
    with pytest.raises(NotComparableError, match="of two machines"):
        comparison.compare(old, new)
    crossed = comparison.compare(old, new, cross_machine=True)
    assert crossed.cross_machine
    assert "two machines" in "\n".join(report.text([crossed], "table", 80))


def test_another_procedure_is_no_comparison() -> None:
    old = run("old", *at(1e-3), procedures={"cpu": Procedure()})
    new = run("new", *at(1e-3), procedures={"cpu": Procedure(inputs="zeros")})
    with pytest.raises(NotComparableError, match="cpu inputs: normal then, zeros now"):
        comparison.compare(old, new)


def test_another_allocator_is_comparable_only_across_machines() -> None:
    old = run("old", *at(1e-3), procedures={"cpu": Procedure(allocator="glibc 2.36")})
    new = run("new", *at(1e-3), procedures={"cpu": Procedure(allocator="jemalloc")})
    with pytest.raises(NotComparableError, match=r"allocator: glibc 2\.36 then, jemalloc now"):
        comparison.compare(old, new)
    other = run("other", *at(1e-3), procedures={"cpu": Procedure(allocator="jemalloc")}, fingerprint="xyz")
    assert comparison.compare(old, other, cross_machine=True).pairs


def test_runs_without_a_common_case_are_refused() -> None:
    with pytest.raises(NotComparableError, match="no case in common"):
        comparison.compare(run("old", *at(1e-3, 16)), run("new", *at(1e-3, 32)))


def test_every_format_holds_the_same_figures() -> None:
    old = run("old", *at(1e-3, peak=2**20), *at(1e-3, 32, peak=2**20))
    new = run("new", *at(1.25e-3, peak=2**24), *at(1e-3, 32, peak=2**20))
    found = [comparison.compare(old, new)]
    table = "\n".join(report.text(found, "table", 80))
    assert "1.250" in table
    assert "peak memory 1.00 MiB -> 16.0 MiB" in table
    assert "naive@cpu:threads=1: 1.118x over 2 cases" in table
    assert max(map(len, table.splitlines())) <= 80
    rows = list(reader.DictReader(io.StringIO("\n".join(report.text(found, "csv", 80)))))
    lines = [json.loads(line) for line in report.text(found, "jsonl", 80)]
    assert [float(row["ratio"]) for row in rows] == [line["ratio"] for line in lines]
    assert [line["change"] for line in lines] == ["slower", "~"]
    markdown = "\n".join(report.text(found, "md", 80))
    assert markdown.count("\n| ") >= 3
    assert "slower (peak memory" in markdown


def test_one_run_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["compare", "last"]) == 2
    assert "at least two" in capsys.readouterr().err
