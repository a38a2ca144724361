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
from attnbench.analysis import comparison, noise_floor
from attnbench.analysis.comparison import Change
from attnbench.analysis.noise_floor import ControlPair
from attnbench.attention.problem import Problem
from attnbench.errors import NotComparableError
from attnbench.records import ceilings
from attnbench.records.result import Cause, Procedure, Result, Status, sample
from attnbench.records.run_directory import Manifest, Run
from attnbench.report.formats import comparison as report
from tests.report.canned import CANNED
from tests.samples import result


def run(name: str, *results: Result, **fields: Any) -> Run:
    """A run that is not on disk."""
    plain = {"schema_version": 1, "attnbench": "0", "created_at": "", "suite": "s", "fingerprint": "abc"}
    return Run(path=Path(name), manifest=Manifest(**{**plain, **fields}), results=list(results))


def at(seconds: float, seq: int = 64, peak: int | None = None, **fields: Any) -> list[Result]:
    """Three restarts of one case, half a percent apart."""
    results = []
    for restart in range(3):
        values = [seconds * (1 + 0.005 * restart)] * 5 if seconds else ()
        measured = result(values, problem=Problem(seq_q=seq), restart=restart, **fields)
        samples = {**measured.samples, "peak_memory": sample("B", [peak])} if peak is not None else measured.samples
        results.append(msgspec.structs.replace(measured, samples=samples))
    return results


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
    old, new = run("old", *at(1e-3), *at(1e-3, 32)), run("new", *at(1.3e-3), *at(8e-4, 32))
    there, back = comparison.compare(old, new), comparison.compare(new, old)
    for pair, other in zip(there.pairs, back.pairs, strict=True):
        assert pair.ratio
        assert other.ratio
        assert pair.ratio.value == pytest.approx(1 / other.ratio.value)
        assert {pair.change, other.change} == {Change.SLOWER, Change.FASTER}
    assert there.geomeans["naive@cpu:threads=1"].value == pytest.approx((1.3 * 0.8) ** 0.5)


def once(seconds: float, seq: int = 64, **fields: Any) -> Result:
    """One restart with a narrow interval."""
    return result([seconds * (1 + 0.002 * (n % 3)) for n in range(9)], problem=Problem(seq_q=seq), **fields)


def test_no_single_restart_carries_a_verdict() -> None:
    """Two runs of the same code, where single restarts differ by more than their intervals explain."""
    drift = {16: 0.85, 32: 0.9, 48: 0.97, 64: 1.0, 80: 1.04, 96: 1.15, 112: 3.0}
    old = run("old", *(once(1e-3, seq) for seq in drift))
    new = run("new", *(once(1e-3 * factor, seq) for seq, factor in drift.items()))
    assert set(changes(old, new).values()) == {Change.SAME, Change.UNDECIDED}
    assert changes(old, new)["q64"] is Change.SAME
    text = "\n".join(report.text([comparison.compare(old, new)], "table", 80))
    assert "noise floor 10.0 %: assumed" in text
    assert "attnbench calibrate --floor" in text
    assert "undecided  an interval within one restart does not hold" in text
    assert text.endswith("attnbench run --restarts 6 --budget 0")
    assert "faster" not in text


def test_no_change_is_never_printed_beside_an_interval_that_excludes_one() -> None:
    for factor in (1.0, 1.01, 1.03, 1.08, 1.3, 0.97, 0.6):
        (pair,) = comparison.compare(run("old", *at(1e-3)), run("new", *at(1e-3 * factor))).pairs
        assert pair.ratio
        assert pair.ratio.low
        assert pair.ratio.high
        assert (pair.change is Change.SAME) == (pair.ratio.low <= 1 <= pair.ratio.high)


def test_a_wide_interval_around_one_is_undecided() -> None:
    wide = [result([1e-3 * (1 + n)], restart=n) for n in range(3)]
    assert set(changes(run("old", *wide), run("new", *wide)).values()) == {Change.UNDECIDED}


def test_a_case_that_neither_run_measured_is_not_missing() -> None:
    absent = {"status": Status.UNAVAILABLE, "reason": "not installed: xformers"}
    old, new = run("old", *at(1e-3), *at(0, 32, **absent)), run("new", *at(1e-3), *at(0, 48, **absent))
    assert changes(old, new) == {"q64": Change.SAME, "q32": Change.NOTHING, "q48": Change.NOTHING}


def test_cases_that_broke_are_one_line_above_the_table_for_each_kind_of_reason() -> None:
    lengths = (16, 32, 48)
    broken = [at(0, seq, status=Status.CRASHED, reason=f"SIGSEGV at 0x{seq:x}") for seq in lengths]
    old = run("old", *at(1e-3), *(each for seq in lengths for each in at(1e-3, seq)))
    new = run("new", *at(1e-3), *(each for case in broken for each in case))
    compared = comparison.compare(old, new)
    for kind in ("table", "md"):
        text = "\n".join(report.text([compared], kind, 80))
        assert text.count("naive@cpu:threads=1 is broken in 3 cases: SIGSEGV at 0x10") == 1
        assert text.count("SIGSEGV") == 1


def test_a_case_that_the_budget_cut_is_missing_and_not_broken() -> None:
    cut = {"status": Status.SKIPPED, "reason": "budget", "cause": Cause.BUDGET}
    old, new = run("old", *at(1e-3), *at(1e-3, 32)), run("new", *at(1e-3), *at(0, 32, **cut))
    assert changes(old, new)["q32"] is Change.MISSING
    assert changes(new, old)["q32"] is Change.NEW


def test_the_gate_of_the_earlier_commit_would_decide() -> None:
    request = {"axes": {"seq": "64"}, "backend": "naive", "suites": ("ci",)}
    old = run("old", once(1e-3), commit={"commit": "a" * 40, "dirty": False})
    new = run("new", once(1.05e-3), commit={"commit": "b" * 40, "dirty": False}, request=request)
    expected = f"attnbench gate ci --set seq=64 -b naive --base-ref {'a' * 12}"
    assert comparison.compare(old, new).commands == (expected,)
    changed = run("old", once(1e-3), commit={"commit": "a" * 40, "dirty": True})
    assert comparison.compare(changed, new).commands == (
        "attnbench run ci --set seq=64 -b naive --restarts 6 --budget 0",
    )
    assert comparison.compare(old, run("new", once(1e-3))).commands == ()  # nothing is undecided


def test_a_machine_with_noisier_controls_has_a_larger_noise_floor() -> None:
    control = ControlPair(device="cpu:threads=1", label="x", seconds=1e-3, effect=0.2, half_width=0.1, restarts=6)
    noise_floor.add("abc", [control])
    try:
        (pair,) = comparison.compare(run("old", *at(1e-3)), run("new", *at(1.15e-3))).pairs
        assert (pair.change, round(pair.floor or 0, 2)) == (Change.UNDECIDED, 0.22)
    finally:
        (ceilings.folder("abc") / "floor.jsonl").unlink()


def test_a_busy_machine_is_named() -> None:
    machine = {"cpu": "Abacus", "cores": 2, "load": 3.1}
    notes = comparison.compare(run("old", *at(1e-3), machine=machine), run("new", *at(1e-3))).notes
    assert "old began on a busy machine (load 3.1 on 2 cores): measure when it is idle" in notes


def test_what_all_cases_share_is_printed_once_and_one_case_is_no_cases() -> None:
    old = run("old", *at(1e-3), *at(1e-3, 32))
    text = "\n".join(report.text([comparison.compare(old, old)], "table", 80))
    assert text.splitlines()[1] == "b1 h8 d64 none fp32 fwd naive cpu:threads=1"
    assert "\nq32 kv32 " in text
    single = "\n".join(report.text([comparison.compare(run("a", *at(1e-3)), run("b", *at(1e-3)))], "table", 80))
    assert "over 1 case," in single
    assert single.endswith("1 case: 1 ~.")


@pytest.mark.parametrize("name", ["two_commits"])
def test_a_slower_commit_is_slower_and_the_rest_is_unchanged(name: str) -> None:
    old, new = CANNED[name]()
    slower = {pair.arm for pair in comparison.compare(old, new).pairs if pair.change is Change.SLOWER}
    assert slower == {"sdpa:flash@cpu"}
    assert {pair.change for pair in comparison.compare(old, new).pairs} == {Change.SLOWER, Change.SAME}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_but_a_command_is_wider_than_the_terminal(width: int) -> None:
    first, second = CANNED["two_commits"]()
    single = CANNED["one_case"]()[0]
    for old, new in ((first, second), (single, single), (first, single)):
        lines = report.text([comparison.compare(old, new)], "table", width)
        assert all(len(line) <= width for line in lines if "attnbench " not in line)


def test_two_machines_are_compared_only_when_asked_to() -> None:
    old, new = run("old", *at(1e-3)), run("new", *at(2e-3), fingerprint="xyz")
    with pytest.raises(NotComparableError, match=r"of two machines: .*; --cross-machine compares them anyway$"):
        comparison.compare(old, new)
    crossed = comparison.compare(old, new, cross_machine=True)
    assert crossed.cross_machine
    nodes = [run(name, *at(1e-3), tags={"node": name}) for name in ("a", "b")]
    with pytest.raises(NotComparableError, match=r"of two machines: .*/a\), .*/b\)"):
        comparison.compare(*nodes)
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


def test_runs_whose_common_cases_are_measured_in_one_alone_are_refused() -> None:
    cut = {"status": Status.SKIPPED, "reason": "budget", "cause": Cause.BUDGET}
    old, new = run("old", *at(1e-3, 16), *at(0, 32, **cut)), run("new", *at(0, 16, **cut), *at(1e-3, 32), *at(1e-3))
    words = r"no measured case in common \(1 in the earlier run alone, 2 in the later run alone\)"
    with pytest.raises(NotComparableError, match=words):
        comparison.compare(old, new)
    crashed = run("crashed", *at(0, 16, status=Status.CRASHED))
    assert changes(old, crashed)["q16"] is Change.BROKEN


def test_every_format_holds_the_same_figures() -> None:
    old = run("old", *at(1e-3, peak=2**20), *at(1e-3, 32, peak=2**20))
    new = run("new", *at(1.25e-3, peak=2**24), *at(1e-3, 32, peak=2**20))
    comparisons = [comparison.compare(old, new)]
    table = "\n".join(report.text(comparisons, "table", 80))
    assert "1.250" in table
    assert "peak memory 1.00 MiB -> 16.0 MiB" in table
    assert "naive@cpu:threads=1: new / old 1.118 over 2 cases" in table
    assert max(map(len, table.splitlines())) <= 80
    rows = list(reader.DictReader(io.StringIO("\n".join(report.text(comparisons, "csv", 80)))))
    lines = [json.loads(line) for line in report.text(comparisons, "jsonl", 80)]
    assert [float(row["ratio"]) for row in rows] == [line["ratio"] for line in lines]
    assert [line["change"] for line in lines] == ["slower", "~"]
    markdown = "\n".join(report.text(comparisons, "md", 80))
    assert markdown.count("\n| ") >= 3
    assert "slower (peak memory" in markdown


def test_one_run_is_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["compare", "last"]) == 2
    assert "at least two" in capsys.readouterr().err


def test_a_change_without_an_interval_is_undecided() -> None:
    old, new = run("old", result([1e-3])), run("new", result([2e-3]))
    (pair,) = comparison.compare(old, new).pairs
    assert (pair.change, pair.ratio and pair.ratio.value) == (Change.UNDECIDED, 2.0)
