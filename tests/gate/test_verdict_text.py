"""The table of a gate: widths, words, marks and counts."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from attnbench import units
from attnbench.gate import judgement
from attnbench.records.result import Outcome, Result, Status, Verdict
from attnbench.records.run_directory import Run
from attnbench.report.formats import gate_comment
from attnbench.report.terminal import gate_verdicts
from attnbench.worker.output_checks import REPEATED
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
    other_sign, too_small = (verdict(1.35e-3, 1.38e-3, change, (-0.1, 0.08)) for change in (-0.02, -0.0004))
    assert gate_verdicts.marked_cells(other_sign)[2] == "-2.0 %^"
    assert gate_verdicts.marked_cells(verdict(1.38e-3, 1.35e-3, 0.02, (-0.1, 0.08)))[2] == "+2.0 %^"
    assert gate_verdicts.marked_cells(too_small)[2] == "0.0 %"
    (meaning,) = gate_verdicts.legend([agreeing, contradicting])
    assert "paired by round" in meaning


def test_an_interval_has_the_unit_of_its_change_and_a_margin_above_two_hundred_percent_is_a_factor() -> None:
    noisy = verdict(1e-3, 1.2e-3, 0.2, (-0.5, 52.226), margin=36.248)
    assert gate_verdicts.cells(noisy)[2:5] == ("+20.0 %", "-50.0 % .. +5,223 %", "37x")
    assert " +20.0 % (-50.0 % .. +5,223 %), margin 37x: same" in gate_verdicts.annotation(noisy)
    slower = verdict(1e-3, 3.1e-3, 2.1, (0.4, 3.2))
    assert gate_verdicts.cells(slower)[2:4] == ("3.1x", "1.4x..4.2x")


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
    of_base = [line for line in text if line.endswith(" broken")]
    assert [line.split()[-7:] for line in of_base] == [["1.00", "ms", "-", "-", "-", "-", "broken"]] * 2
    broken = [each for each in judged.verdicts if each.outcome is Outcome.BROKEN]
    assert gate_verdicts.describe(broken[0]) == f"status broken: {failure.partition(': ')[2]}"
    assert "\n".join(text).count("error| 5.2") == 1
    assert gate_comment.markdown(run, judged).count("error| 5.2".replace("|", "\\|")) == 1


def test_the_sensitivity_of_one_case_and_of_several() -> None:
    judged = judgement.judge(gated(*lines()))
    cases = [verdict(1.0, 1.0, 0.01, (0.0, 0.02), margin) for margin in (0.02, 0.04, 0.06)]
    single, spread = (gate_verdicts.reach(replace(judged, verdicts=tuple(some))) for some in (cases[:1], cases))
    start, end = "equal arms differed by up to 1.0 %; ", "at least 8 of 10 runs (docs/gate.md): here "
    assert single.startswith(f"{start}margin 2.0 %. ")
    assert single.endswith(f"{end}3.0 %.")
    assert spread.startswith(f"{start}margins from 2.0 % to 6.0 %, median 4.0 %. ")
    assert spread.endswith(f"{end}6.0 % in the median case.")


def test_head_against_itself_is_said_once() -> None:
    run = gated(*lines())
    judged = replace(judgement.judge(run), base="the working tree")
    assert next(gate_verdicts.text(run, judged, 80)) == "the working tree against itself (A/A)"
    assert "the working tree against itself (A/A)." in gate_comment.markdown(run, judged)


def test_one_case_is_no_cases() -> None:
    run = gated(*lines())
    text = list(gate_verdicts.text(run, judgement.judge(run), 80))
    assert "naive: +0.1 % over 1 case, geometric mean" in text
    assert text[-1] == "1 case: 1 same."


def test_the_geometric_mean_is_a_change_as_in_the_table() -> None:
    run = gated(*lines(head=1.944), *lines(n=128, head=1.944))
    text = list(gate_verdicts.text(run, judgement.judge(run), 120))
    assert "naive: +94.5 % over 2 cases, geometric mean (+94.5 % .. +94.5 %)" in text


def test_where_no_time_was_judged_no_margins_are_told() -> None:
    run = gated(*lines(head_fields={"status": Status.INCORRECT, "reason": "out: error 0.3"}))
    judged = judgement.judge(run)
    assert "margins: " not in "\n".join(gate_verdicts.text(run, judged, 80))
    assert "margins: " not in gate_comment.markdown(run, judged)


def test_a_number_is_never_apart_from_its_unit() -> None:
    run = gated(
        *lines(noise=60.0, restarts=26), *lines(n=128, noise=30.0), *lines(n=256, head=1.5, noise=3.0, restarts=4)
    )
    judged = judgement.judge(run)
    for width in range(40, 120):
        text = list(gate_verdicts.text(run, judged, width))
        assert not [line for line in text if re.match(r"\s*(%|(ms|s|us|MiB)\b)", line)]


def test_each_reason_of_broken_cases_is_told_once_and_in_full_with_verbose() -> None:
    long = "out: max |error| 5.2 at [b0 h3 q17 d5] is over 1.5e-05, 2 x the error of the plain formula and rounding"
    reasons = [long, long, long.replace("5.2", "6.3"), "out is on meta", "a", "b"]
    results = [
        line
        for n, reason in enumerate(reasons, 1)
        for line in lines(n=64 * n, head_fields={"status": Status.INCORRECT, "reason": reason})
    ]
    run = gated(*results)
    judged = judgement.judge(run)
    name = "naive@cpu:threads=1 is broken in"
    whole = [line for line in gate_verdicts.text(run, judged, 1000, verbose=True) if name in line]
    assert whole == [
        f"{name} 3 cases: incorrect: {long}", *(f"{name} 1 case: incorrect: {reason}" for reason in reasons[3:])
    ]  # fmt: skip
    short = list(gate_verdicts.text(run, judged, 1000))
    told = [line for line in short if name in line]
    assert [line.partition(" is broken in ")[2].partition(":")[0] for line in told] == [
        "3 cases", "1 case", "1 case", "1 more case, for 1 other reason"
    ]  # fmt: skip
    assert told[0].endswith(" ...")
    assert "  reasons in full: attnbench gate -v gate" in short
    assert len(told[0]) < len(whole[0])


def test_one_case_has_one_figure_of_what_may_be_hidden() -> None:
    judged = judgement.judge(gated(*lines(head=0.97, noise=60.0, restarts=26)))
    (time,) = [verdict for verdict in judged.verdicts if verdict.metric == "time_s"]
    assert time.interval is not None
    figure = units.in_percent(time.interval[1])
    assert f"a slowdown of up to {figure} may be hidden" in time.reason
    plain = judgement.judge(gated(*lines(head=3.0, noise=130.0, restarts=4)))
    assert {each.outcome for each in plain.verdicts if each.metric == "time_s"} == {Outcome.INCONCLUSIVE}
    assert not [note for note in plain.notes if "hidden" in note]
    assert judged.notes[-1].startswith(
        f"the largest slowdown that may be hidden, the upper end of its 95 % interval: {figure} ("
    )
    several = judgement.judge(gated(*lines(head=0.97, noise=60.0, restarts=26), *lines(n=128), *lines(n=256)))
    assert "with 95 % confidence for all cases: " in several.notes[-1]
    assert f": {figure} (" not in several.notes[-1]


def test_what_did_not_change_is_one_line_of_counts() -> None:
    run = gated(*lines(), *lines(n=128), *lines(n=256))
    judged = judgement.judge(run)
    table = re.compile(r"^b1 |^q\d+ |peak_bytes", re.MULTILINE)
    assert not table.search("\n".join(gate_verdicts.text(run, judged, 80)))
    times = "\n".join(gate_verdicts.text(run, judged, 80, everything=True))
    assert len(re.findall(r"  same$", times, re.MULTILINE)) == 3
    figures = "\n".join(gate_verdicts.text(run, judged, 80, verbose=True))
    assert len(re.findall(r"  same$", figures, re.MULTILINE)) == len(judged.verdicts)
    comment = gate_comment.markdown(run, judged).replace("\\", "").splitlines()
    assert f"- margins: {judged.margin_source}" in comment
    assert comment[:3] == ["### attnbench gate: **passed**", "", "3 cases: 3 same."]
    assert not [line for line in comment if line.startswith("|")]


@pytest.mark.parametrize(
    ("results", "word"),
    [
        (lines(head=1.5) + lines(n=128), "regressed"),
        (lines(restarts=1) + lines(n=128), "inconclusive"),
        (lines(head_fields={"status": Status.INCORRECT, "reason": "out: error 0.3"}), "failed"),
        ([], "nothing measured"),
    ],
)
def test_a_comment_begins_with_the_verdict_then_counts_then_changed_cases(results: list[Result], word: str) -> None:
    run = gated(*results)
    judged = judgement.judge(run)
    first, _, counts, *rest = gate_comment.markdown(run, judged).replace("\\", "").splitlines()
    assert first == f"### attnbench gate: **{word}**"
    assert counts == gate_verdicts.sentence(judged)
    cases = [line.split()[3] for line in rest if line.startswith("| b1 ")]
    assert cases == (["q64"] if results else [])
    assert gate_verdicts.summary(run, judged, gate_verdicts.exit_code(judged))["verdict"] == word


def test_one_changed_case_is_one_row_with_its_backend() -> None:
    run = gated(*lines(head=1.5, memory=(2**22, 2**23)), *lines(n=128))
    _, common, empty, _, memory, time, *_ = gate_verdicts.text(run, judgement.judge(run), 120)
    assert common == "b1 h8 q64 kv64 d64 none fp32 fwd cpu:threads=1"
    assert empty == ""
    assert (memory.split()[:2], time.split()[:2]) == (["naive", "peak_bytes"], ["naive", "1.00"])


def test_the_margin_of_memory_is_a_number_of_bytes() -> None:
    run = gated(*lines(memory=(2**22, 2**23)))
    judged = judgement.judge(run)
    (memory,) = [verdict for verdict in judged.verdicts if verdict.metric == "peak_bytes"]
    assert gate_verdicts.cells(memory)[4] == "1.00 MiB"
    assert "margin 1.00 MiB: regressed" in gate_verdicts.annotation(memory)


def test_the_commands_of_a_case_repeat_the_interpreter_of_its_backend() -> None:
    run = gated(*lines(head=1.5))
    manifest = replace(run.manifest, request={"backend_python": ["naive=/opt/python", "jax=/opt/jax"]})
    run = Run(path=run.path, manifest=manifest, results=run.results)
    text = list(gate_verdicts.text(run, judgement.judge(run), 80))
    (profile,) = [line for line in text if "profile head: " in line]
    (repeat,) = [line for line in text if "repeat: " in line]
    assert profile.endswith("-b naive --device cpu:threads=1 --backend-python naive=/opt/python")
    assert "--backend-python naive=/opt/python --backend-python jax=/opt/jax" in repeat


def test_what_a_kernel_may_do_wrong_is_told_after_a_long_error() -> None:
    """As `run` and `verify` tell it."""
    error = "out: max |error| 5.2 at [b0 h3 q17 d5] is over 1.5e-05, 2 x the error of the plain formula and rounding"
    run = gated(*lines(head_fields={"status": Status.INCORRECT, "reason": f"{error}; {REPEATED}"}))
    judged = judgement.judge(run)
    assert f" ...; {REPEATED}" in "\n".join(gate_verdicts.text(run, judged, 1000))
    assert f"; {REPEATED}" in gate_comment.markdown(run, judged)
