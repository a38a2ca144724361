"""The pivot and its text: what makes rows, blocks and columns, and what stands in a cell."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from attnbench import frame
from attnbench.attention.problem import Mode, Problem
from attnbench.report import table
from attnbench.report.pivot import Notes, factor, pivot
from attnbench.result import Status
from tests.golden.made import measured, refused, results


def rows_of(*made):
    return frame.rows(made)


def labels(laid):
    return [label for block in laid.blocks for label, _ in block.lines]


def test_lengths_make_the_rows_and_masks_the_blocks():
    laid = pivot(frame.rows(results()))
    assert (laid.axis, laid.constant) == ("seq", "b1 h8 d64 fp32 fwd cpu")
    assert [block.heading for block in laid.blocks] == ["none", "causal"]
    assert labels(laid) == ["512", "1024", "4096"] * 2


def test_rows_are_sorted_by_number_whatever_was_measured_first():
    laid = pivot(rows_of(*(measured(Problem(seq_q=seq), "naive", 1e-3) for seq in (4096, 64, 512))))
    assert labels(laid) == ["64", "512", "4096"]


def test_the_axis_with_most_values_makes_the_rows():
    made = [measured(Problem(seq_q=seq, batch=batch), "naive", 1e-3) for seq in (64, 128) for batch in (1, 2, 4)]
    laid = pivot(rows_of(*made))
    assert (laid.axis, labels(laid)) == ("batch", ["b1", "b2", "b4"] * 2)
    assert [block.heading for block in laid.blocks] == ["q64 kv64", "q128 kv128"]


def test_a_batch_that_follows_the_length_stands_beside_it():
    made = [measured(Problem(seq_q=seq, batch=8192 // seq), "naive", 1e-3) for seq in (512, 1024, 2048)]
    laid = pivot(rows_of(*made))
    assert (len(laid.blocks), labels(laid)) == (1, ["512 b16", "1024 b8", "2048 b4"])


def test_decode_and_prefill_share_one_block():
    made = [measured(Problem(seq_q=q, seq_kv=kv), "naive", 1e-3) for q, kv in ((1, 4096), (1, 512), (512, 512))]
    assert labels(pivot(rows_of(*made))) == ["q1 kv512", "q1 kv4096", "q512 kv512"]


def test_modes_and_scores_that_vary_are_named():
    from attnbench.attention.scores import Score

    capped = Problem(seq_q=64, score=Score(softcap=30.0))
    made = [measured(capped, "naive", 1e-3), measured(Problem(seq_q=64), "naive", 1e-3, mode=Mode.BWD)]
    text = table.text(rows_of(*made), 80)
    assert "softcap=30" in text
    assert "bwd" in text


def test_two_devices_stand_in_the_headings():
    made = [measured(Problem(seq_q=64), "naive", 1e-3, device=device) for device in ("cpu:threads=1", "cuda:0")]
    laid = pivot(rows_of(*made))
    assert [column.heading for column in laid.columns] == [("naive", "cpu:threads=1"), ("naive", "cuda:0")]


def test_twins_are_two_columns():
    made = [measured(Problem(seq_q=64), "sdpa", 1e-3, twin=twin) for twin in (1, 2)]
    assert [column.heading for column in pivot(rows_of(*made)).columns] == [("sdpa",), ("sdpa#2",)]


def test_the_best_is_starred_and_bold_and_ties_are_neither():
    rows = frame.rows(results())
    bold = [piece for line in table.lines(rows, 80) for piece, is_bold in line if is_bold and piece]
    assert bold == ["4.00 ms 6.0x", "*", "64.0 ms 6.0x", "*"] * 2
    assert table.text(rows, 80).count("1.00 ms 6.0x~") == 4


def test_equal_reasons_share_a_footnote():
    text = table.text(frame.rows(results()), 80)
    assert text.count("- a\n") == 2
    assert text.count("needs 16.1 GiB, limit 9.6 GiB") == 1


def test_a_backend_without_a_single_time_is_named_below():
    text = table.text(frame.rows(results()), 80)
    assert text.count("xformers") == 2
    assert "-  xformers: unavailable: not installed: xformers" in text


def test_a_run_of_refusals_alone_has_a_table():
    made = refused(Problem(seq_q=64), "flex", Status.SKIPPED, "budget")
    assert "-  flex: skipped: budget" in table.text(rows_of(made), 80)
    assert table.text([], 80) == "no results\n"


def test_an_impossible_time_is_marked_and_not_ranked():
    made = [measured(Problem(seq_q=64), "naive", 0.0), measured(Problem(seq_q=64), "sdpa", 1e-3)]
    rows = rows_of(*made)
    assert [row["place"] for row in rows] == [None, "alone"]
    assert "?  impossible, not ranked: a call in 0 s" in table.text(rows, 80)


def test_columns_that_do_not_fit_go_below_and_none_is_lost():
    text = table.text(frame.rows(results()), 48)
    assert text.count("(continued)") == 2
    assert sorted(re.findall(r"[\d.]+ ms [\d.]+x", text)) == sorted(
        re.findall(r"[\d.]+ ms [\d.]+x", table.text(frame.rows(results()), 200))
    )


def test_columns_obeys_the_environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "132")
    assert table.columns() == 132
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert table.columns() == 80


def test_a_reason_cannot_steer_the_terminal():
    made = refused(Problem(seq_q=64), "flex", Status.ERROR, "\x1b[2Jboom\r\nmore\x07")
    assert "error: [2Jboom more\n" in table.text(rows_of(made), 80)


@settings(max_examples=40)
@given(
    reason=st.text(max_size=300),
    name=st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=60),
    mask=st.sampled_from(("none", "causal+window:511", "document:" + "-".join(["8"] * 64))),
    width=st.integers(80, 120),
)
def test_no_line_is_wider_than_asked_whatever_names_and_reasons_are(reason, name, mask, width):
    made = [
        measured(Problem(seq_q=512, mask=mask), name, 1e-3),
        measured(Problem(seq_q=512), "naive", 12345.678),
        refused(Problem(seq_q=512), name, Status.ERROR, reason),
    ]
    assert max(map(cell_len, table.text(rows_of(*made), width).splitlines())) <= width


def test_styled_and_plain_text_say_the_same():
    rows = frame.rows(results())
    assert [line.rstrip() for line in table.styled(rows, 80).plain.splitlines()] == table.text(rows, 80).splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.84, "5.8x"), (9.96, "10x"), (123.4, "123x"), (0.996, "1.0x"), (0.834, "0.83x"), (0.0213, "0.021x"), (None, "")],
)
def test_a_ratio_has_two_digits(value, text):
    assert factor(value) == text


def test_footnotes_go_on_after_z():
    notes = Notes()
    letters = [notes.letter(str(number)) for number in range(29)]
    assert (letters[0], letters[25:]) == ("a", ["z", "aa", "ab", "ac"])
