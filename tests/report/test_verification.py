"""Tables of error figures and probes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from attnbench.attention.problem import Problem
from attnbench.records.result import Result, Status
from attnbench.report import probe_outcomes
from attnbench.report.terminal import verification
from tests.golden.made import refused
from tests.samples import result

ERROR = {
    "max_abs": 2e-6, "mean_abs": 2e-7, "rms": 4e-7, "rel": 1e-6, "budget": 4e-6,
    "plain_max": 1e-6, "plain_mean": 1e-7, "plain_rms": 1e-7, "nan": 0, "inf": 0,
}  # fmt: skip


def verified(seq: int = 64, rms: float = 4e-7, inputs: str = "normal", **facts: Any) -> Result:
    """A case with the error figures of one output."""
    unlabelled = result([1.0], problem=Problem(seq_q=seq), facts={"errors": {"out": {**ERROR, "rms": rms}}, **facts})
    return msgspec.structs.replace(unlabelled, procedure=msgspec.structs.replace(unlabelled.procedure, inputs=inputs))


def test_reasons_that_differ_in_numbers_alone_are_one_note() -> None:
    def wrong(seq: int, reason: str) -> Result:
        return refused(Problem(seq_q=seq), "my.py:f", Status.INCORRECT, reason)

    reasons = ["out: max |error| 5.2 at [b0 h3 q17 d5] is over 1.5e-5", "out: max |error| 6 at [b0 h1 q2 d5] is over 2"]
    shown = list(verification.text([wrong(64, reasons[0]), wrong(128, reasons[1]), wrong(256, "out is on meta")]))
    notes = [line for line in shown if line.startswith("[")]
    assert notes == [f"[1] {reasons[0]} (and 1 similar)", "[2] out is on meta"]
    assert [line.rpartition("  ")[2] for line in shown if "incorrect [" in line] == [
        "incorrect [1]", "incorrect [1]", "incorrect [2]",
    ]  # fmt: skip


def test_errors_are_shown_beside_those_of_the_same_dtype_reference() -> None:
    lines = list(verification.error_figures([verified()]))
    assert lines[2].split() == ["out", "2.0e-6", "2.0e-7", "4.0e-7", "2.00", "2.00", "4.00", "0"]
    assert max(map(len, lines)) <= 80


def test_the_growth_of_errors_is_an_exponent() -> None:
    results = [verified(seq, 1e-7 * seq**0.5) for seq in (64, 128, 256, 512)]
    (line, _) = verification.growth(results)
    assert "seq 64..512, fp32 d64 none fwd normal: exponent 0.50 (0.50..0.50)" in line
    assert list(verification.growth(results[:2])) == []


def test_a_distribution_is_part_of_the_label() -> None:
    assert verification.label(verified(inputs="outlier")).endswith("fp32 fwd outlier")
    text = "\n".join(verification.text([verified(), verified(inputs="outlier")], figures=True))
    assert text.count("outlier") == 2


@pytest.mark.parametrize(
    ("name", "figures", "expected"),
    [
        ("noise", {"gain": {"0.0001": 1.5, "0.1": None}}, "1.5"),
        ("adversarial", {"gain": 14.6, "random_gain": 1.44}, "14.6"),
        ("determinism", {"equal": True, "largest": 0.0}, "equal in 1 of 1 cases"),
        ("batch", {"equal": False, "largest": 0.25}, "differ by up to 0.25"),
        ("double_backward", {"seconds": 0.002, "finite": False}, "not finite"),
        ("batch", {"absent": "sequences of different lengths"}, "in 1 of 1: sequences of different lengths"),
    ],
)
def test_each_probe_has_its_table(name: str, figures: dict[str, Any], expected: str) -> None:
    lines = list(verification.probe_tables([verified(probes={name: figures})]))
    assert lines[0] == verification.PROBES[name]
    assert expected in "\n".join(lines)
    assert max(map(len, lines)) <= 80


def ended(seq: int, status: Status, reason: str, backend: str = "naive") -> Result:
    """A case without figures."""
    return result(backend=backend, problem=Problem(seq_q=seq), status=status, reason=reason)


def test_failures_come_first_with_what_they_have_in_common() -> None:
    good, bad = [verified(64), verified(128)], [ended(seq, Status.INCORRECT, "out: wrong") for seq in (256, 512)]
    others = [result([1.0], backend="sdpa:flash")]
    lines = list(verification.text([*others, good[0], bad[0], good[1], bad[1]]))
    assert lines[0] == "naive on cpu:threads=1"
    assert [("q256" in line, "q512" in line, "q64" in line, "q128" in line).index(True) for line in lines[2:6]] == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert "all 2 failures have seq > 128, and no right case of this backend has it" in lines
    assert lines.index("sdpa:flash on cpu:threads=1") > 5


def test_the_verdict_is_followed_by_few_reasons_of_refusals() -> None:
    refused = [ended(seq, Status.UNSUPPORTED, "sinks unsupported") for seq in range(16, 16 + 58)]
    lines = list(verification.text([*refused, ended(8, Status.SKIPPED, "budget"), verified(64)]))
    assert lines[-5:] == [
        "",
        "the verified case is right",
        "not verified: 58 unsupported, 1 skipped",
        "  58 sinks unsupported (naive)",
        "  1 skipped: budget (naive)",
    ]


def test_many_reasons_are_one_line_unless_asked_for_and_each_stands_once() -> None:
    backends = [f"ring:{count}" for count in range(40)]
    joined = ["backward unsupported", "backward unsupported; sinks unsupported", "alibi unsupported; t5 unsupported"]
    refused = [ended(64, Status.UNSUPPORTED, reason, name) for name in backends for reason in joined]
    lines = list(verification.text([*refused, verified(64)]))
    assert lines[-2:] == ["the verified case is right", "not verified: 120 unsupported; -v lists the 4 reasons"]
    listed = "\n".join(verification.text([*refused, verified(64)], reasons=True))
    assert [listed.count(f"  {text} (ring:0") for text in ("80 backward unsupported", "40 sinks unsupported")] == [1, 1]
    assert max(map(len, listed.splitlines())) <= 80
    assert "40 t5 unsupported" in "\n".join(verification.text(refused)), "where nothing was verified, all are listed"


def test_two_arms_of_a_backend_have_names_of_their_own() -> None:
    plain, other = verified(64), verified(64)
    other = msgspec.structs.replace(other, arm=msgspec.structs.replace(other.arm, python="/other/python"))
    lines = list(verification.text([plain, other]))
    assert "naive on cpu:threads=1" in lines
    assert "naive@/other/python on cpu:threads=1" in lines


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ([Status.OK] * 3, "all 3 verified cases are right"),
        ([Status.INCORRECT, Status.OK, Status.OOM, Status.INCORRECT], "3 of 4 cases failed: 2 incorrect, 1 oom"),
        ([], "no case was verified"),
    ],
)
def test_the_verdict_counts_what_failed(statuses: list[Status], verdict: str) -> None:
    assert verification.verdict([ended(64, status, "") for status in statuses]) == verdict


def test_reasons_hold_no_control_characters() -> None:
    lines = list(verification.text([verified(64), ended(128, Status.ERROR, "a\x1b[31mb")]))
    assert all(line.isprintable() for line in lines)


def test_failures_among_random_problems_come_first_and_the_counts_of_all_last() -> None:
    results = [
        verified(64),
        verified(128),
        *(ended(seq, Status.INCORRECT, f"out: wrong by {seq}") for seq in (256, 512)),
    ]
    lines = list(verification.random_problems(results))
    assert "q256" in lines[2]
    assert "  all 2 failures have seq > 128, and no right case of this backend has it" in lines
    assert lines[-1] == "4 cases: 2 ok, 2 incorrect."


RIGHT, TAKES = {"outcome": "right", "reason": ""}, {"outcome": "takes", "reason": ""}
WRONG, ABSENT = {"outcome": "wrong", "reason": "out: off"}, {"outcome": "absent", "reason": "no streams"}


def sentences(*of_cases: dict[str, Any]) -> list[str]:
    return list(probe_outcomes.sentences([verified(probes=figures) for figures in of_cases], {verified().arm.id: "x"}))


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"sliced": WRONG, "offset": TAKES}, "x, layouts: wrong only for sliced (out: off); takes offset"),
        ({"sliced": WRONG, "offset": WRONG}, "x, layouts: wrong for sliced and offset (out: off)"),
        ({"sliced": WRONG, "offset": ABSENT}, "x, layouts: wrong for sliced (out: off)"),
        (
            {name: {"outcome": "wrong", "reason": f"out: off by {name}"} for name in "012"},
            "x, layouts: wrong for 0, 1 and 2 (out: off by 0 (and 2 similar))",
        ),
        ({"sliced": ABSENT}, "x, layouts: does not apply: no streams"),
        ({"sliced": {"outcome": "refuses", "reason": "E"}}, "x, layouts: refuses sliced (E)"),
        (
            dict.fromkeys("abcd", WRONG) | {"e": RIGHT},
            "x, layouts: wrong only for a, b, c and d (out: off); right for e",
        ),
    ],
)
def test_outcomes_of_unusual_inputs_are_a_sentence(figures: dict[str, Any], expected: str) -> None:
    assert sentences({"layouts": figures}) == [expected]


def test_an_outcome_of_some_cases_is_counted() -> None:
    several = sentences({"values": {"huge": WRONG}}, {"values": {"huge": RIGHT}}, {"noise": {"gain": {}}})
    assert several == ["x, values: wrong for huge (out: off, 1 of 2 cases); right for huge (1 of 2 cases)"]


def test_a_right_case_that_is_wrong_for_unusual_inputs_is_counted_in_the_verdict() -> None:
    results = [verified(probes={"values": {"huge": WRONG}}), verified()]
    assert verification.verdict(results) == "all 2 verified cases right, 1 of them wrong for unusual inputs"
    assert "values: wrong for huge (out: off)" in "\n".join(verification.text(results))


def test_probes_that_a_wrong_case_kept_from_running_are_noted() -> None:
    failed = refused(Problem(seq_q=64), "naive", Status.INCORRECT, "out is wrong")
    assert probe_outcomes.not_run([failed, verified(64)], "lengths") == (
        "probes not run: the case is wrong without them"
    )
    assert probe_outcomes.not_run([failed], "") == probe_outcomes.not_run([verified(64)], "lengths") == ""
