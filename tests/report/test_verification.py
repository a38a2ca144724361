"""Tables of error figures and probes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from attnbench.attention.problem import Problem
from attnbench.records.result import Result, Status
from attnbench.report.terminal import verification
from tests.samples import result

ERROR = {
    "max_abs": 2e-6, "mean_abs": 2e-7, "rms": 4e-7, "rel": 1e-6, "budget": 4e-6,
    "plain_max": 1e-6, "plain_mean": 1e-7, "plain_rms": 1e-7, "nan": 0, "inf": 0,
}  # fmt: skip


def verified(seq: int = 64, rms: float = 4e-7, inputs: str = "normal", **facts: Any) -> Result:
    """A case with the error figures of one output."""
    unlabelled = result([1.0], problem=Problem(seq_q=seq), facts={"errors": {"out": {**ERROR, "rms": rms}}, **facts})
    return msgspec.structs.replace(unlabelled, procedure=msgspec.structs.replace(unlabelled.procedure, inputs=inputs))


def test_errors_are_shown_beside_those_of_the_same_dtype_reference() -> None:
    lines = list(verification.error_figures([verified()]))
    assert lines[2].split() == ["out", "2.0e-06", "2.0e-07", "4.0e-07", "2.00", "2.00", "4.00", "0"]
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
    assert "all 2 failures have seq > 128; no case that is ok has" in lines
    assert lines.index("sdpa:flash on cpu:threads=1") > 5


def test_refusals_of_one_reason_are_one_line() -> None:
    refused = [ended(seq, Status.UNSUPPORTED, "no sinks") for seq in range(16, 16 + 58)]
    skipped = [ended(8, Status.SKIPPED, "budget")]
    lines = list(verification.text([*refused, *skipped, verified(64)]))
    assert "58 unsupported: no sinks" in lines
    assert sum(line.startswith("1 skipped: b1 h8 q8 ") for line in lines) == 1
    assert len(lines) < 10


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
    assert "  all 2 failures have seq > 128; no case that is ok has" in lines
    assert lines[-1] == "4 cases: 2 ok, 2 incorrect."
