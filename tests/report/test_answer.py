"""The first screen of the twelve canned runs, as text."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import pytest

from attnbench.analysis.rows import rows_of
from attnbench.attention import requests
from attnbench.attention.problem import Problem
from attnbench.records.result import Cause, Result, Status, sample
from attnbench.report import pages, pivot
from attnbench.report.answer import Answer, GridCell
from attnbench.report.charts.figure import Note
from attnbench.report.formats import html, markdown
from attnbench.report.pages.page import report_data
from attnbench.report.pages.ranking import contests
from attnbench.studies import recommend
from tests.golden.made import measured, refused
from tests.report.canned import CANNED
from tests.samples import result, run, timed

HEADLINES = {
    "one_winner": "Use sdpa:flash here.",
    "tie": "sdpa:flash or sdpa:math: no difference found.",
    "split": "sdpa:flash for prefill, sdpa:math for decode.",
    "all_wrong": "Use none of these: every output of my.py:f is wrong.",
    "all_refused": "Nothing was measured: all 6 cases were refused.",
    "one_case": "sdpa:flash takes 2.00 ms: there is nothing to compare it with.",
    "decode_only": "Use sdpa:flash here.",
    "prefill_and_decode": "Use sdpa:flash here.",
    "two_machines": "Use sdpa:flash here.",
    "two_commits": "Use sdpa:flash here.",
    "many_rows": "sdpa:math below 1k, sdpa:flash from 1k on.",
    "right_to_left": "Use انتباه.py:انتبه here.",
}
LEADS = {
    "one_winner": ("Fastest in all 6 problems.", "Over all 6 it is 3.0× as fast as naive"),
    "tie": ("do not distinguish them in any of 3 problems", "sdpa:flash is 3.0× as fast as naive"),
    "split": ("For prefill sdpa:flash is fastest in all 3", "For decode sdpa:math is fastest in all 6"),
    "all_wrong": ("6 cases: 6 incorrect",),
    "all_refused": ("3 unsupported (no window)", "3 skipped (needs 512 GiB"),
    "one_case": (),
    "decode_only": ("Over all 6 it is 3.0× as fast as naive",),
    "prefill_and_decode": ("3.0× as fast as naive for prefill and 1.2× as fast as naive for decode",),
    "two_machines": ("machine-b against machine-a, on another machine:", "for Abacus", "for Babbage"),
    "two_commits": ("New against old: 3 slower", "3.0× as fast as naive for the old run", "2.5× as fast"),
    "many_rows": ("Below 1k sdpa:math is fastest in all 25 problems", "From 1k on sdpa:flash is fastest"),
    "right_to_left": ("Fastest in all 3 problems.",),
}
CHECKED = {
    "all_wrong": "All 6 outputs were checked against float64; all are wrong, so nothing was timed.",
    "all_refused": "",
    "one_case": "The output was checked against float64 before it was timed; it is right.",
    "many_rows": "All 200 outputs were checked against float64 before they were timed; all are right.",
}


@cache
def answer(name: str) -> Answer:
    return pages.contents(report_data(CANNED[name]()))[0]


def of(*results: Result) -> Answer:
    """The first screen of one run."""
    return pages.contents(report_data([run(*results)]))[0]


def case(backend: str, milliseconds: float | None, seq: int = 64, **fields: Any) -> Result:
    """A case in the rounds of its problem; without a time it failed or was cut."""
    problem = fields.pop("problem", Problem(seq_q=seq))
    times = [milliseconds * 1e-3 * (1 + 0.001 * n) for n in range(6)] if milliseconds else ()
    return result(
        times, backend, problem=problem, group=str(problem), facts={"reference": "naive@cpu:threads=1"}, **fields
    )


BUDGET: dict[str, Any] = {"status": Status.SKIPPED, "reason": "budget", "cause": Cause.BUDGET}
WRONG: dict[str, Any] = {"status": Status.INCORRECT, "reason": "out: 3 values are NaN"}


def cells(name: str) -> list[GridCell]:
    grid = answer(name).grid
    assert grid
    return [cell for _, line in grid.rows for cell in line if cell.kind != "absent"]


@pytest.mark.parametrize("name", CANNED)
def test_the_headline_says_what_to_use(name: str) -> None:
    assert answer(name).headline == HEADLINES[name]


@pytest.mark.parametrize("name", CANNED)
def test_the_lead_has_wins_ties_and_speed_ups(name: str) -> None:
    lead = answer(name).lead
    assert [text for text in LEADS[name] if text not in lead] == []
    assert not (name in ("split", "prefill_and_decode") and "Over all" in lead), "one mean over prefill and decode"


@pytest.mark.parametrize("name", CANNED)
def test_the_outputs_that_were_checked_are_counted(name: str) -> None:
    checked = answer(name).checked
    assert checked == CHECKED.get(name, checked)
    assert checked or name == "all_refused"


@pytest.mark.parametrize("name", CANNED)
def test_the_context_names_machine_shape_date_and_run(name: str) -> None:
    context = answer(name).context
    shown = ("Abacus", "fp32 forward", "8 heads of 64", "2 Jan 2026, 03:04 UTC", CANNED[name]()[0].path.name)
    assert [text for text in shown if text not in context] == []


def test_failures_stand_first_with_the_command_that_shows_them() -> None:
    failure, details = answer("all_wrong").failures
    assert (failure.text, failure.command) == ("my.py:f is wrong in 6 cases (error 5.2, allowed 1.5e-5)", "")
    assert (details.text, details.command) == ("", "attnbench show --failed results/all-wrong")
    failure, _ = answer("right_to_left").failures
    assert failure.text.startswith("קשב.py:קשב failed with an error in 1 case")


def test_the_grid_names_the_winner_and_its_figures() -> None:
    grid = answer("one_winner").grid
    assert grid
    assert (grid.axis, grid.columns) == ("sequence length", ("512", "1k", "2k"))
    assert [heading for heading, _ in grid.rows] == ["no mask", "causal mask"]
    first = grid.rows[0][1][0]
    assert (first.kind, first.arms, first.figure, first.detail) == ("best", ("sdpa:flash",), "3.0×", "2.00 ms")
    assert first.tip == "no mask, 512: sdpa:flash 2.00 ms, sdpa:math 3.00 ms, naive 6.00 ms"


def test_a_tie_names_both_and_their_interval() -> None:
    assert {cell.kind for cell in cells("tie")} == {"tied"}
    assert {cell.arms for cell in cells("tie")} == {("sdpa:flash", "sdpa:math")}
    assert {cell.figure for cell in cells("tie")} == {"tied at 3.0×"}


def test_six_decode_shapes_have_six_cells() -> None:
    assert len(cells("decode_only")) == 6
    assert len({cell.tip for cell in cells("decode_only")}) == 6


def test_a_problem_that_was_not_measured_says_why() -> None:
    assert {cell.kind for cell in cells("all_refused")} == {"missing"}
    assert all("no window" in cell.tip and "GiB" in cell.tip for cell in cells("all_refused"))


def test_one_backend_for_everything_is_ranked_by_its_cost() -> None:
    fixed = answer("split").fixed
    assert [choice.arm for choice in fixed][-1] == "naive"
    by_arm = {choice.arm: choice for choice in fixed}
    assert by_arm["sdpa:flash"].worst == pytest.approx(2.0)
    assert by_arm["sdpa:flash"].worst_at.startswith("decode, batch")
    assert {(choice.runs, choice.of) for choice in fixed} == {(9, 9)}
    assert answer("two_machines").fixed == ()
    assert answer("one_case").fixed == ()


def test_a_backend_that_is_wrong_elsewhere_is_not_to_be_used_here() -> None:
    screen = of(case("naive", 2), case("k.py:f", 1), case("naive", 4, 128), case("k.py:f", None, 128, **WRONG))
    assert screen.headline == "k.py:f is fastest or tied wherever it runs, and has no time in 1 problem."
    assert "No backend" not in screen.lead
    assert [failure.text for failure in screen.failures[:-1]] == ["k.py:f is wrong in 1 case: out: 3 values are NaN"]


def test_the_headline_names_what_was_compared_if_the_rest_was_cut() -> None:
    decode, prefill = Problem(seq_q=1, seq_kv=512), Problem(seq_q=512)
    screen = of(
        case("naive", 2, problem=decode), case("flex", 1, problem=decode),
        *(case(backend, None, problem=prefill, **BUDGET) for backend in ("naive", "flex")),
    )  # fmt: skip
    assert screen.headline == "Use flex for decode."
    assert "1 more was not measured" in screen.lead


def test_a_split_without_a_rule_counts_the_wins() -> None:
    winners = ("flex", "naive", "flex")
    screen = of(*(
        case(backend, 1 if backend == winner else 2, 64 * place)
        for place, winner in enumerate(winners, 1)
        for backend in ("naive", "flex")
    ))  # fmt: skip
    assert screen.headline == "flex wins 2 of 3 problems, naive 1."
    assert screen.lead == "No backend is fastest or tied in all 3 problems."


def test_masks_and_dtypes_split_the_answer_too() -> None:
    for axis, values, words in (
        ("mask", ("none", "causal"), ("for no mask", "for causal mask")),
        ("dtype", ("fp32", "bf16"), ("for fp32", "for bf16")),
    ):
        problems = [msgspec.convert({"seq_q": 64, axis: value}, Problem) for value in values]
        screen = of(*(
            case(backend, 1 if winner == backend else 2, problem=problem)
            for problem, winner in zip(problems, ("naive", "flex"), strict=True)
            for backend in ("naive", "flex")
        ))  # fmt: skip
        assert screen.headline == f"naive {words[0]}, flex {words[1]}."


def test_the_only_right_backend_is_named() -> None:
    screen = of(case("naive", 2), case("k.py:f", None, **WRONG))
    assert screen.headline == "Only naive gives right outputs: 2.00 ms."


def test_a_fast_reference_is_compared_with_the_next_backend() -> None:
    screen = of(*(case(name, time) for name, time in (("naive", 1), ("flex", 3), ("sdpa:math", 2))))
    assert screen.headline == "Use naive here."
    assert "It is 2.0× as fast as sdpa:math" in screen.lead


def test_times_of_a_busy_machine_are_to_be_read_with_care() -> None:
    stored = run(case("naive", 2), case("flex", 1), machine={"load": 3.7, "cores": 2})
    screen = pages.contents(report_data([stored]))[0]
    assert "load 3.7 on 2 cores" in screen.cautions[0].text


def test_noise_names_the_command_that_measures_again_without_the_folder() -> None:
    noisy = result([1e-3, 2e-3, 2e-3, 2e-3, 2e-3, 2e-3])
    stored = run(noisy, command="attnbench run --seq 64 --budget 25s -o there")
    (caution,) = pages.contents(report_data([stored]))[0].cautions
    assert caution.text.startswith("1 of 1 time is noisy.")
    assert caution.command == "attnbench run --seq 64 --restarts 6 --budget 0"


def test_each_command_of_a_merged_run_gets_the_restarts() -> None:
    noisy = result([1e-3, 2e-3, 2e-3, 2e-3, 2e-3, 2e-3])
    merged = "attnbench run --seq 64 --shard 1/2 -o a && attnbench run --seq 64 --shard 2/2 -o b"
    (caution,) = pages.contents(report_data([run(noisy, command=merged)]))[0].cautions
    assert caution.command == (
        "attnbench run --seq 64 --shard 1/2 --restarts 6 --budget 0 && "
        "attnbench run --seq 64 --shard 2/2 --restarts 6 --budget 0"
    )


NOT_HERE: dict[str, Any] = {"status": Status.UNAVAILABLE, "reason": "runs on cuda, not on cpu"}


def test_what_a_user_can_act_on_is_the_reason_of_a_problem_without_a_time() -> None:
    unavailable = [case(f"flash{n}", None, seq, **NOT_HERE) for n in range(3) for seq in (64, 128, 256)]
    cut = [case(backend, None, seq, **BUDGET) for backend in ("naive", "flex") for seq in (128, 256)]
    wrong = [case(backend, None, 256, **WRONG) for backend in ("a.py:f", "b.py:f")]
    stored = run(case("naive", 2), case("flex", 1), *unavailable, *cut, *wrong)
    screen, sections = pages.contents(report_data([stored]))
    assert screen.grid
    _, second, third = screen.grid.rows[0][1]
    assert (second.detail, third.detail) == ("not measured: budget spent", "2 wrong")
    assert "runs on cuda" in second.tip
    (speed,) = (section for section in sections if section.name == "speed")
    (times,) = (table for table in speed.tables if table.heading.startswith("Times"))
    assert [str(row[1]) for row in times.rows[1:]] == ["not measured: budget spent", "2 wrong"]
    (figure,) = (figure for figure in speed.figures if figure.name == "speedup")
    notes = {mark.text for panel in figure.panels for mark in panel.marks if isinstance(mark, Note)}
    assert {"not measured: budget spent", "2 wrong"} <= notes


def test_a_wrong_output_was_checked_and_not_timed() -> None:
    screen = of(case("naive", 2), case("k.py:f", None, **WRONG))
    assert screen.checked == "Both outputs were checked against float64; 1 is wrong and was not timed."


def noisy_case(backend: str, milliseconds: float, seq: int = 64) -> Result:
    """A case whose interval is as wide as its time."""
    result = case(backend, milliseconds, seq)
    values = [milliseconds * 1e-3 * factor for factor in (0.5, 1.0, 1.5, 0.6, 1.1, 1.9)]
    return msgspec.structs.replace(result, samples={"time": timed(values)})


def test_a_tie_shows_the_interval_of_the_backend_that_it_names_first_and_its_tip_the_others() -> None:
    screen = of(case("naive", 2), case("flex", 1), noisy_case("sdpa:math", 1.1))
    assert screen.grid
    (cell,) = screen.grid.rows[0][1]
    assert set(cell.arms) == {"flex", "sdpa:math"}
    intervals = dict(text.rsplit(" ", 1) for text in cell.tip.partition("the first are tied: ")[2].split(", "))
    assert set(intervals) == {"flex", "sdpa:math"}
    assert cell.figure in (f"tied: {intervals[cell.arms[0]]}", f"tied at {intervals[cell.arms[0]]}")
    low, high = intervals["sdpa:math"].removesuffix("×").split("..")
    assert float(low) < 1.5 < 2 < float(high)


def test_a_tie_with_the_reference_never_reads_as_a_win() -> None:
    screen = of(noisy_case("naive", 2), case("flex", 1.9))
    assert screen.grid
    (cell,) = screen.grid.rows[0][1]
    assert cell.kind == "tied"
    low, high = cell.figure.removeprefix("tied: ").removesuffix("×").split("..")
    assert float(low) <= 1 <= float(high)


def test_a_backend_that_failed_elsewhere_is_named_last_in_a_tie() -> None:
    tied = (case("naive", 9), case("k.py:f", 2), case("flex", 2.002), case("sdpa:math", 2.004))
    other = (case("naive", 9, 128), case("flex", 2, 128), case("sdpa:math", 2.002, 128))
    stored = run(*tied, *other, case("k.py:f", None, 128, **WRONG))
    data = report_data([stored])
    screen = pages.contents(data)[0]
    assert screen.headline == "flex or sdpa:math: no difference found."
    assert screen.grid
    assert screen.grid.rows[0][1][0].arms == ("flex", "sdpa:math", "k.py:f")
    assert [choice.tied for choice in recommend.dispatch(data.rows).choices] == [("sdpa:math",), ("sdpa:math",)]


def test_the_lead_names_a_backend_that_failed_elsewhere_last() -> None:
    screen = of(
        case("naive", 9), case("flex", 2), case("k.py:f", 2.002), case("sdpa:math", 2.004),
        case("naive", 9, 128), case("flex", 2, 128), case("k.py:f", None, 128, **WRONG), case("sdpa:math", 5, 128),
    )  # fmt: skip
    assert "tied with sdpa:math or k.py:f in the other one" in screen.lead


def test_no_number_of_the_lead_stands_for_two_things() -> None:
    measured = [case(name, time, seq) for name, time in (("naive", 2), ("flex", 1)) for seq in (64, 128, 256)]
    cut = [case(name, None, seq, **BUDGET) for name in ("naive", "flex") for seq in (512, 1024, 2048)]
    assert "3 more were not measured. Over the 3 measured problems it is 2.0×" in of(*measured, *cut).lead


def test_one_backend_for_the_only_problem_is_no_question() -> None:
    assert of(case("naive", 2), case("flex", 1)).fixed == ()


@pytest.mark.parametrize(
    ("problem", "place"),
    [
        (Problem(seq_q=64), "at length 64"),
        (Problem(seq_q=64, seq_kv=200), "for 64 queries over 200 keys"),
        (Problem(seq_q=1, seq_kv=200), "for 1 query over 200 keys"),
    ],
)
def test_the_place_of_a_memory_figure_is_in_words(problem: Problem, place: str) -> None:
    def sized(backend: str, time: float, size: float) -> Result:
        result = case(backend, time, problem=problem)
        return msgspec.structs.replace(result, samples={**result.samples, "total_memory": sample("B", [size])})

    screen = of(sized("naive", 2, 2e6), sized("flex", 1, 1e6))
    assert screen.lead.endswith(f"2.0× less memory than naive {place}.")


def served(text: str) -> Problem:
    sizes = requests.parse(text)
    queries, keys = map(max, zip(*sizes, strict=True))
    return Problem(seq_q=queries, seq_kv=keys, batch=len(sizes), requests=text)


def test_batches_of_requests_are_named_whole_and_not_by_their_longest_request() -> None:
    fastest = {"2q64_4q1s128": "naive", "q64s256": "flex", "4q8s512": "flex"}
    screen = of(*(
        case(backend, 1 if backend == winner else 2, problem=served(text))
        for text, winner in fastest.items()
        for backend in ("naive", "flex")
    ))  # fmt: skip
    assert screen.grid
    assert [heading for heading, _ in screen.grid.rows] == [
        "requests q64s256",
        "requests 2q64_4q1s128",
        "requests 4q8s512",
    ]  # by all their keys
    assert screen.headline == "flex wins 2 of 3 problems, naive 1."


def test_two_runs_of_the_same_problems_are_comparisons_not_more_problems() -> None:
    assert answer("two_commits").lead.count("all 6 comparisons of 3 problems") == 1


def test_the_sections_of_the_terminal_have_the_order_of_the_page() -> None:
    cases = [
        (seq, mask, dtype)
        for seq in (64, 128, 256)
        for mask, dtype in (("window:8", "bf16"), ("none", "fp32"), ("window:8", "fp32"), ("none", "bf16"))
    ]
    results = [
        measured(Problem(seq_q=seq, mask=mask, dtype=dtype), name, 1e-3)
        for seq, mask, dtype in cases
        for name in ("naive", "sdpa:flash")
    ]
    data = report_data([run(*results)])
    on_page = dict.fromkeys((contest.first.mask, contest.first.dtype) for contest in contests(data.rows, data.layout))
    sections = [tuple(section.heading.split()) for section in pivot.pivot(rows_of(results)).sections]
    assert sections == list(on_page)


def test_backticks_of_a_kernels_message_stay() -> None:
    reason = "call: ValueError: `scale` and `causal` are needed"
    failing = refused(Problem(seq_q=64), "my.py:f", Status.ERROR, reason)
    answer, sections = pages.contents(report_data([run(measured(Problem(seq_q=64), "naive", 1e-3), failing)]))
    assert f"my.py:f failed with an error in 1 case: {reason}" in html.page(answer, sections)
    assert r"ValueError: \`scale\` and \`causal\` are needed" in markdown.page(answer, sections)


def test_backticks_of_a_reason_in_the_counts_stay() -> None:
    """The counts stand below the headline where there is nothing to compare."""
    reason = "`scale` is needed"
    refusal = refused(Problem(seq_q=64), "my.py:f", Status.UNSUPPORTED, reason)
    answer, sections = pages.contents(report_data([run(measured(Problem(seq_q=64), "naive", 1e-3), refusal)]))
    assert "1 unsupported (`scale` is needed)" in html.page(answer, sections)
    assert r"1 unsupported (\`scale\` is needed)" in markdown.page(answer, sections)


def test_code_with_a_backtick_is_quoted_as_it_is() -> None:
    assert markdown._code("attnbench show 'a`b' | c") == r"`` attnbench show 'a`b' \| c ``"
    assert markdown._code("attnbench show") == "`attnbench show`"


def test_a_run_of_libraries_says_which_to_use_for_each_phase_and_dtype() -> None:
    """Decode has another winner in each dtype and a tie; prefill has two winners in fp32, and one backend in bf16."""
    decode = {
        "fp32": {"sdpa:flash": 3.0, "openvino:paged": 1.0}, "bf16": {"sdpa:flash": 3.0, "vllm-cpu": 1.0},
        "fp16": {"sdpa:flash": 3.0, "vllm-cpu": 1.0}, "fp8_e4m3": {"ort:gqa": 1.0, "ggml": 1.0},
    }  # fmt: skip
    results = [
        case(name, time, problem=Problem(seq_q=1, seq_kv=4096, mask="causal", dtype=dtype))
        for dtype, times in decode.items()
        for name, time in times.items()
    ]
    prefill = {64: {"sdpa:flash": 1.0, "ort:gqa": 2.0}, 128: {"sdpa:flash": 1.0, "ort:gqa": 2.0}}
    prefill[256] = {"sdpa:flash": 2.0, "ort:gqa": 1.0}
    results += [case(name, time, seq) for seq, times in prefill.items() for name, time in times.items()]
    results.append(case("naive", 1.0, problem=Problem(seq_q=64, dtype="bf16")))
    assert of(*results).lead.startswith(
        "For decode: openvino:paged in fp32, vllm-cpu in bf16 and fp16, ort:gqa or ggml in fp8_e4m3. "
        "For prefill: sdpa:flash (2 of 3) in fp32, only naive in bf16."
    )
    assert of(case("naive", 2.0), case("sdpa:flash", 1.0)).lead.startswith("Fastest in the only problem")


def test_of_backends_that_lead_in_some_problems_those_that_lead_most_are_named() -> None:
    times = {
        64: {"sdpa:flash": 1.0, "ort:gqa": 2.0, "ggml": 2.0},
        128: {"sdpa:flash": 2.0, "ort:gqa": 1.0, "ggml": 1.0},
        256: {"sdpa:flash": 2.0, "ort:gqa": 1.0, "ggml": 1.0},
    }
    results = [case(name, time, seq) for seq, of_seq in times.items() for name, time in of_seq.items()]
    results.append(case("naive", 1.0, problem=Problem(seq_q=64, dtype="bf16")))
    assert of(*results).lead.startswith(
        "For prefill: ort:gqa or ggml (fastest or tied in 2 of 3) in fp32, only naive in bf16."
    )
