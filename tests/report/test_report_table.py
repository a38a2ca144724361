"""The pivot and its text: lines, sections, columns and cells."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from attnbench.analysis import rows as frame
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.result import Status, sample
from attnbench.report import summary
from attnbench.report.formats import markdown
from attnbench.report.pivot import MARKS, Footnotes, caption, factor, legend, mark, pivot, wide_ties
from attnbench.report.terminal import pivot_table
from attnbench.report.terminal.text_layout import terminal_width
from tests.golden.made import measured, refused, results
from tests.report.test_answer import case, noisy_case


def rows_of(*measurements):
    return frame.rows_of(measurements)


def labels(layout):
    return [label for block in layout.sections for label, _ in block.lines]


def test_lengths_make_the_lines_and_masks_the_sections():
    layout = pivot(frame.rows_of(results()))
    assert (layout.axis, layout.constant) == ("seq", "b1 h8 d64 fp32 fwd cpu")
    assert [block.heading for block in layout.sections] == ["none", "causal"]
    assert labels(layout) == ["512", "1024", "4096"] * 2


def test_lines_are_sorted_by_number():
    layout = pivot(rows_of(*(measured(Problem(seq_q=seq), "naive", 1e-3) for seq in (4096, 64, 512))))
    assert labels(layout) == ["64", "512", "4096"]


def served(batch: str, size: int, longest: int) -> Problem:
    return Problem(seq_q=1, seq_kv=longest, batch=size, requests=batch)


def test_lines_of_requests_are_headed_so():
    batches = [measured(served("8q1s256", 8, 256), "naive", 1e-3), measured(served("q1s9_q1s64", 2, 64), "naive", 1e-3)]
    assert (pivot(rows_of(*batches)).axis, labels(pivot(rows_of(*batches)))) == ("requests", ["q1s9_q1s64", "8q1s256"])
    assert pivot(rows_of(*batches, measured(Problem(seq_q=64), "naive", 1e-3))).axis == "seq"


def test_planning_is_below_the_table_in_calls():
    """Medians of two batches: 3 and 5 ms of planning, and 6 and 2.5 calls."""
    batches = [served("8q1s256", 8, 256), served("q1s9_q1s64", 2, 64)]
    results = [measured(each, "flex", call_s) for each, call_s in zip(batches, (5e-4, 2e-3), strict=True)]
    for result, plan_s in zip(results, (3e-3, 5e-3), strict=True):
        result.samples["plan"] = sample("s", [plan_s])
    naive = [measured(each, "naive", 1e-3) for each in batches]
    text = " ".join(pivot_table.text(rows_of(*naive, *results), 200).split())
    assert "planned once for a batch, for all its layers, and not in its time: flex 4.00 ms (4.2 calls)" in text
    assert "planned once" not in pivot_table.text(rows_of(*naive))


def test_planning_has_the_share_of_a_layer_where_a_suite_states_their_number():
    result = measured(served("8q1s256", 8, 256), "flex", 5e-4)
    result.samples["plan"], result.facts["layers"] = sample("s", [3e-3]), 32
    (row,) = rows_of(result)
    assert row.plan_layer_s == pytest.approx(3e-3 / 32)
    assert "flex 3.00 ms (6 calls, 93.8 us a layer)" in " ".join(pivot_table.text(rows_of(result)).split())


def test_the_axis_with_most_values_makes_the_lines():
    measurements = [
        measured(Problem(seq_q=seq, batch=batch), "naive", 1e-3) for seq in (64, 128) for batch in (1, 2, 4)
    ]
    layout = pivot(rows_of(*measurements))
    assert (layout.axis, labels(layout)) == ("batch", ["b1", "b2", "b4"] * 2)
    assert [block.heading for block in layout.sections] == ["q64 kv64", "q128 kv128"]


def test_a_batch_that_the_length_determines_is_in_its_label():
    measurements = [measured(Problem(seq_q=seq, batch=8192 // seq), "naive", 1e-3) for seq in (512, 1024, 2048)]
    layout = pivot(rows_of(*measurements))
    assert (len(layout.sections), labels(layout)) == (1, ["512 b16", "1024 b8", "2048 b4"])


def test_decode_and_prefill_share_one_section():
    measurements = [measured(Problem(seq_q=q, seq_kv=kv), "naive", 1e-3) for q, kv in ((1, 4096), (1, 512), (512, 512))]
    assert labels(pivot(rows_of(*measurements))) == ["q1 kv512", "q1 kv4096", "q512 kv512"]


def test_modes_and_scores_that_vary_are_named():
    from attnbench.attention.scores import Score

    capped = Problem(seq_q=64, score=Score(softcap=30.0))
    measurements = [measured(capped, "naive", 1e-3), measured(Problem(seq_q=64), "naive", 1e-3, mode=Mode.BWD)]
    text = pivot_table.text(rows_of(*measurements), 80)
    assert "softcap=30" in text
    assert "bwd" in text


@pytest.mark.parametrize(
    ("devices", "headings"),
    [
        (("cpu:threads=1:hardware=A", "cpu:threads=1:hardware=B"), ("hardware=A", "hardware=B")),
        (("cpu:threads=1", "cpu:threads=2"), ("threads=1", "threads=2")),
        (("cpu", "cpu:threads=1"), ("cpu", "cpu:threads=1")),
        (("cuda:0", "cuda:1"), ("cuda:0", "cuda:1")),
        (("cpu:hardware=A", "cuda:0:hardware=A"), ("cpu", "cuda:0")),
    ],
)
def test_a_heading_has_what_tells_its_device_from_the_others(devices: tuple[str, ...], headings: tuple[str, ...]):
    measurements = [measured(Problem(seq_q=64), "naive", 1e-3, device=device) for device in devices]
    columns = pivot(rows_of(*measurements)).columns
    assert [column.heading for column in columns] == [("naive", heading) for heading in headings]


def test_two_devices_are_named_in_the_headings():
    measurements = [measured(Problem(seq_q=64), "naive", 1e-3, device=device) for device in ("cpu:threads=1", "cuda:0")]
    layout = pivot(rows_of(*measurements))
    assert [column.heading for column in layout.columns] == [("naive", "cpu:threads=1"), ("naive", "cuda:0")]


def test_copies_of_an_arm_are_two_columns():
    measurements = [measured(Problem(seq_q=64), "sdpa", 1e-3, copy=copy) for copy in (1, 2)]
    assert [column.heading for column in pivot(rows_of(*measurements)).columns] == [("sdpa",), ("sdpa#2",)]


def test_the_best_is_starred_and_bold_and_ties_are_neither():
    rows = frame.rows_of(results())
    bold = [piece for line in pivot_table.lines(rows, 80) for piece, is_bold in line if is_bold and piece]
    assert bold == ["4.00 ms 6.0x", "*", "64.0 ms 6.0x", "*"] * 2
    assert pivot_table.text(rows, 80).count("1.00 ms 6.0x~") == 4


def test_a_speedup_is_marked_where_the_two_times_divide_to_something_outside_its_interval():
    """flex was timed in a later pass, when the machine was slower: 1.50 ms, against 6.60 ms of naive in the rounds."""
    text = pivot_table.text(frame.rows_of(results()), 80)
    assert text.count("1.50 ms 4.4x^") == 1
    assert "divide to another value" in text
    assert text.count("paired by round") == 1
    paired = pivot_table.text([row for row in frame.rows_of(results()) if row.backend != "flex"], 80)
    assert "^" not in paired


def test_equal_reasons_share_a_footnote():
    text = pivot_table.text(frame.rows_of(results()), 80)
    assert text.count("- a\n") == 2
    assert text.count("needs 16.1 GiB, limit 9.6 GiB") == 1


def test_a_backend_without_a_single_time_is_named_below():
    text = pivot_table.text(frame.rows_of(results()), 80)
    assert text.count("xformers") == 2
    assert "-  xformers: unavailable: not installed: xformers" in text


def test_a_run_without_any_time_has_a_table():
    measurements = refused(Problem(seq_q=64), "flex", Status.SKIPPED, "budget")
    assert "-  flex: skipped: budget" in pivot_table.text(rows_of(measurements), 80)
    assert pivot_table.text([], 80) == "no results\n"


def test_reasons_of_an_arm_without_a_time_that_differ_in_numbers_alone_are_one():
    refusals = [refused(Problem(seq_q=n), "naive", Status.SKIPPED, f"needs {n} GiB, limit 9.6 GiB") for n in (64, 96)]
    assert "-  naive: skipped: needs 64 GiB, limit 9.6 GiB (and 1 similar)\n" in pivot_table.text(
        rows_of(*refusals), 80
    )


def test_a_reason_of_ten_thousand_characters_is_cut_between_words():
    words = "the mask is not supported " * 400
    refusals = [
        refused(Problem(seq_q=64), "naive", Status.UNSUPPORTED, words), measured(Problem(seq_q=64), "flex", 1e-3),
        measured(Problem(seq_q=96), "naive", 1e-3), refused(Problem(seq_q=96), "flex", Status.UNSUPPORTED, words),
        refused(Problem(seq_q=64), "xformers", Status.UNSUPPORTED, words),
    ]  # fmt: skip
    text = pivot_table.text(rows_of(*refusals), 80)
    assert text.count("not supported ...") + text.count("is not ...") + text.count("the mask ...") >= 2
    assert len(text) < 1500


def test_three_hundred_backends_fit_the_width():
    problem = Problem(seq_q=777)
    rows = rows_of(*(measured(problem, f"backend-{number}", 1e-3 * (1 + number)) for number in range(300)))
    text = pivot_table.text(rows, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"backend-{number}" in text for number in range(300))


def test_an_impossible_time_is_marked_and_not_ranked():
    measurements = [measured(Problem(seq_q=64), "naive", 0.0), measured(Problem(seq_q=64), "sdpa", 1e-3)]
    rows = rows_of(*measurements)
    assert [row.place for row in rows] == [None, "alone"]
    assert "?  impossible, not ranked: a call in 0 s" in pivot_table.text(rows, 80)


def test_columns_that_do_not_fit_go_below():
    text = pivot_table.text(frame.rows_of(results()), 48)
    assert text.count("(continued)") == 2
    assert sorted(re.findall(r"[\d.]+ ms [\d.]+x", text)) == sorted(
        re.findall(r"[\d.]+ ms [\d.]+x", pivot_table.text(frame.rows_of(results()), 200))
    )


def test_the_width_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "132")
    assert terminal_width() == 132
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert terminal_width() == 80


def test_a_reason_cannot_steer_the_terminal():
    reason = "\x1b[2Jboom\r\nmore\x07"
    refusal = rows_of(refused(Problem(seq_q=64), "flex", Status.UNSUPPORTED, reason))
    assert "unsupported: [2Jboom more\n" in pivot_table.text(refusal, 80)
    failure = rows_of(refused(Problem(seq_q=64), "flex", Status.ERROR, reason))
    assert summary.failure_lines(failure) == ["flex failed with an error in 1 case: [2Jboom more"]


# By number: for its own categories of characters hypothesis looks at all there are, which takes seconds.
VISIBLE = (
    st.sampled_from("ab  /-:.,1%\xe9\u0301\u200d\ufe0f\u6f22\uff21\ufdfa\u05d0\U0001f600\U0001f469")
    | st.integers(0xA0, 0xD7FF).map(chr)
    | st.integers(0xE000, 0x10FFFF).map(chr)
)
CONTROL = st.sampled_from([chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))])


@settings(max_examples=40)
@given(
    reason=st.text(VISIBLE | CONTROL, max_size=300),
    name=st.text(VISIBLE, min_size=1, max_size=60),
    mask=st.sampled_from(("none", "causal+window:511", "document:" + "-".join(["8"] * 64))),
    width=st.integers(80, 120),
)
@example(reason="\u6f22 " * 150, name="\u6f22" * 60, mask="none", width=80)
def test_no_line_is_wider_than_the_given_width(reason, name, mask, width):
    measurements = [
        measured(Problem(seq_q=512, mask=mask), name, 1e-3),
        measured(Problem(seq_q=512), "naive", 12345.678),
        refused(Problem(seq_q=512), name, Status.ERROR, reason),
    ]
    assert max(map(cell_len, pivot_table.text(rows_of(*measurements), width).splitlines())) <= width


def test_styled_and_plain_text_say_the_same():
    rows = frame.rows_of(results())
    assert [line.rstrip() for line in pivot_table.styled(rows, 80).plain.splitlines()] == pivot_table.text(
        rows, 80
    ).splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.84, "5.8x"), (9.96, "10x"), (123.4, "123x"), (0.996, "1.0x"), (0.834, "0.83x"), (0.0213, "0.021x"), (None, "")],
)
def test_a_ratio_has_two_digits(value, text):
    assert factor(value) == text


def test_footnotes_go_on_after_z():
    notes = Footnotes()
    letters = [notes.letter(str(number)) for number in range(29)]
    assert (letters[0], letters[25:]) == ("a", ["z", "aa", "ab", "ac"])


def test_markdown_tables_explain_every_mark_that_they_show():
    rows = frame.rows_of(results())
    text = markdown.tables(rows)
    marks = {symbol for row in rows for symbol in mark(row)}
    assert marks == set("*~^!")
    assert [text.count(f"- {markdown.escape(symbol)} ") for symbol in MARKS] == [1, 1, 1, 1, 0]


def test_a_section_has_the_columns_and_lines_that_it_fills():
    shapes = [("none", "naive", 64), ("none", "naive", 128), ("causal", "naive", 64), ("causal", "naive", 128)]
    shapes.append(("causal", "flex", 64))
    measurements = (measured(Problem(seq_q=seq, mask=mask), name, 1e-3) for mask, name, seq in shapes)
    table = pivot_table.text(rows_of(*measurements), width=30)
    assert table.count("flex") == 1
    continued = table.split("causal (continued)")[1].split("\n\n")[0]
    assert (" 64" in continued, "128" in continued) == (True, False)


def test_keys_of_a_row_are_those_of_the_batch():
    (row,) = rows_of(measured(Problem(seq_q=64, seq_kv=128, batch=2), "naive", 1e-3))
    assert row.tokens_kv == 256
    (row,) = rows_of(measured(served("q1s9_q1s64", 2, 64), "naive", 1e-3))
    assert row.tokens_kv == 73


def test_a_tie_far_behind_the_fastest_has_its_interval_in_the_legend():
    """A reader would not expect a tie of 2.0x and 1.4x."""
    near = frame.rows_of([case("naive", 2), case("flex", 1), case("sdpa:math", 1.001)])
    assert wide_ties(near) == []
    far = frame.rows_of([case("naive", 2), case("flex", 1), noisy_case("sdpa:math", 1.4)])
    assert [row.place for row in far] == ["behind", "tied", "tied"]
    ends = f"{factor(far[2].speedup_low)}..{factor(far[2].speedup_high)}"
    tie = f"flex with sdpa:math, whose speed-up over naive is {ends}"
    assert wide_ties(far) == [tie]
    assert dict(legend(far))["~"] == MARKS["~"]
    assert f"\n~  {MARKS['~']}\n   {tie}\n" in pivot_table.text(far, 200)
    assert f"\n- {tie}\n" in markdown.tables(far)


def test_the_legend_names_the_problems_of_ties_and_the_backend_with_the_wide_interval():
    """It may be the fastest itself."""
    lengths = (64, 128, 256, 512)
    cases = [
        each
        for seq in lengths
        for each in (case("naive", 2, seq), noisy_case("flex", 1, seq), case("sdpa:math", 1.2, seq))
    ]
    first, *_, last = wide_ties(frame.rows_of(cases))
    assert first.startswith("q64 kv64: sdpa:math with flex, whose speed-up over naive is ")
    assert last == "and 1 more tie"


def test_intervals_over_restarts_and_within_one_are_counted():
    """As after a budget that cut the second restart."""
    lengths = ((64, 2), (128, 2), (256, 2), (512, 1), (1024, 1))
    measurements = [
        measured(Problem(seq_q=seq), "naive", 1e-3, restart=restart)
        for seq, count in lengths
        for restart in range(count)
    ]
    end = "95 % intervals are over 2 restarts"
    assert caption(rows_of(*measurements)).endswith(f"{end}; of 2 cases within one restart")
    assert caption(rows_of(*measurements[:6])).endswith(end)
