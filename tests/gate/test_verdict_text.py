"""The table of a gate: widths, words, marks and counts."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from attnbench.gate import judgement
from attnbench.records.result import Outcome, Status, Verdict
from attnbench.records.run_directory import Run
from attnbench.report.formats import gate_comment
from attnbench.report.terminal import gate_verdicts
from tests.gate.test_verdicts import gated, lines


def verdict(base: float, head: float, change: float, interval: tuple[float, float], margin: float = 0.02) -> Verdict:
    return Verdict(
        case_id="a", label="b1 h8 q64 kv64 d64 none fp32 fwd naive", device="cpu:threads=1", backend="naive",
        metric="time_s", outcome=Outcome.SAME, base=base, head=head, change=change, interval=interval, margin=margin,
    )  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits_the_terminal_and_no_device_is_cut(width: int) -> None:
    run = gated(*lines(head=1.5), *lines(n=128), *lines(n=256, restarts=1, backend="sdpa:flash"))
    text = list(gate_verdicts.text(run, judgement.judge(run), width, everything=True))
    assert [line for line in text if len(line) > width and "attnbench " not in line] == []
    assert "cpu:threads=1" in [word for line in text[:3] for word in line.split()]
    assert "sdpa:flash" in "\n".join(text)


def test_a_change_is_marked_where_the_two_times_divide_to_something_outside_its_interval() -> None:
    contradicting = verdict(1.44e-3, 1.37e-3, 0.007, (-0.002, 0.015))
    agreeing = verdict(1.44e-3, 1.45e-3, 0.007, (-0.002, 0.015))
    assert gate_verdicts.marked_cells(contradicting)[2] == "+0.7 %^"
    assert gate_verdicts.marked_cells(agreeing)[2] == "+0.7 %"
    assert gate_verdicts.legend([agreeing]) == []
    (meaning,) = gate_verdicts.legend([agreeing, contradicting])
    assert "paired by round" in meaning


def test_a_margin_above_two_hundred_percent_is_a_factor() -> None:
    noisy = verdict(1e-3, 1.2e-3, 0.2, (-0.5, 52.226), margin=36.248)
    assert gate_verdicts.cells(noisy)[3:5] == ("-50.0 % .. 53x", "37x")
    assert "margin 37x" in gate_verdicts.annotation(noisy)


def test_a_case_whose_margin_hides_large_slowdowns_is_marked() -> None:
    noisy, quiet = (verdict(1e-3, 1.01e-3, 0.01, (-0.2, 0.2), margin) for margin in (0.26, 0.02))
    assert (gate_verdicts.marked_cells(noisy)[4], gate_verdicts.marked_cells(quiet)[4]) == ("26.0 %!", "2.0 %")
    assert [line[0] for line in gate_verdicts.legend([noisy, quiet])] == ["!"]


def test_broken_cases_are_one_line_above_the_table() -> None:
    wrong = {"status": Status.INCORRECT, "reason": "out: max |error| 5.2 is over 1.5e-05"}
    run = gated(*lines(), *(line for n in (128, 256) for line in lines(n=n, head_fields=wrong)))
    judged = judgement.judge(run)
    failure = "naive@cpu:threads=1 is broken in 2 cases: incorrect: out: max |error| 5.2 is over 1.5e-05"
    text = list(gate_verdicts.text(run, judged, 120))
    assert text[1] == failure
    assert "\n".join(text).count("error| 5.2") == 1
    assert gate_comment.markdown(run, judged).count("error| 5.2".replace("|", "\\|")) == 1


def test_one_case_is_no_cases() -> None:
    run = gated(*lines())
    text = list(gate_verdicts.text(run, judgement.judge(run), 80))
    assert "naive: 1.001x over 1 case, geometric mean" in text
    assert text[-1] == "1 case: 1 same."


def test_a_comment_counts_unchanged_figures_and_their_cases() -> None:
    run = gated(*lines(), *lines(n=128), *lines(n=256))
    judged = judgement.judge(run)
    comment = gate_comment.markdown(run, judged)
    assert "3 cases: 3 same." in comment.replace("\\", "")
    assert f"<summary>{len(judged.verdicts)} unchanged figures of 3 cases</summary>" in comment
    assert len(re.findall(r"^\| b1 ", comment, re.MULTILINE)) == len(judged.verdicts)


def test_the_commands_of_a_case_repeat_the_interpreter_of_its_backend() -> None:
    run = gated(*lines(head=1.5))
    manifest = replace(run.manifest, request={"backend_python": ["naive=/opt/python", "jax=/opt/jax"]})
    run = Run(path=run.path, manifest=manifest, results=run.results)
    text = list(gate_verdicts.text(run, judgement.judge(run), 80))
    (profile,) = [line for line in text if "profile head: " in line]
    (repeat,) = [line for line in text if "repeat: " in line]
    assert profile.endswith("-b naive --backend-python naive=/opt/python")
    assert "--backend-python naive=/opt/python --backend-python jax=/opt/jax" in repeat
