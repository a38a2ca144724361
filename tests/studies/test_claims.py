"""Verdicts on the articles' claims, from made-up times whose truth is known."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attnbench import cli, suite
from attnbench.analysis.rows import rows_of
from attnbench.attention.choices import Dtype, Mode
from attnbench.attention.problem import Problem
from attnbench.attention.scores import Score
from attnbench.engine import request
from attnbench.records.case import Case
from attnbench.records.result import Result, Status
from attnbench.studies import claims as study
from attnbench.studies import max_seq
from attnbench.studies.claims import Ratio
from attnbench.studies.scaling import ClaimVerdict
from attnbench.suite import files
from tests.samples import result


def measured(seconds: float, backend: str = "naive", mode: Mode = Mode.FWD, **problem: Any) -> Result:
    """A case that takes that long, to a thousandth."""
    times = [seconds * (1 + 1e-4 * n) for n in range(6)]
    measured_result = result(times, backend, problem=Problem(**problem))
    case = Case(problem=measured_result.case.problem, backend=backend, mode=mode)
    from msgspec.structs import replace

    return replace(measured_result, case=case, case_id=case.id)


def told(results: list[Result], **options: Any) -> dict[str, list[Any]]:
    beside = {"robust": [], "quantised": [], "longest": [], **options}
    verdicts: dict[str, list[Any]] = {}
    for claim in study.judged(rows_of(results), **beside):
        verdicts.setdefault(claim.id, []).append(claim)
    return verdicts


@pytest.mark.parametrize(
    ("ratio", "bound", "above", "verdict"),
    [
        (Ratio(0.5, 0.4, 0.6), 1.0, False, ClaimVerdict.CONFIRMED),
        (Ratio(0.98, 0.9, 1.1), 1.0, False, ClaimVerdict.INCONCLUSIVE),
        (Ratio(1.2, 1.1, 1.3), 1.0, False, ClaimVerdict.REFUTED),
        (Ratio(1.2, 1.1, 1.3), 1.0, True, ClaimVerdict.CONFIRMED),
        (Ratio(0.5, 0.4, 0.6), 1.0, True, ClaimVerdict.REFUTED),
    ],
)
def test_a_ratio_is_judged_by_both_of_its_ends(ratio: Ratio, bound: float, above: bool, verdict: ClaimVerdict) -> None:
    assert ratio.against(bound, above) is verdict


CAUSAL = {"seq_q": 2048, "mask": "causal", "heads": 4}


def test_relative_position_saves_nothing_and_a_window_does() -> None:
    verdicts = told([
        measured(1.0, **CAUSAL), measured(1.2, **CAUSAL, score=Score(bias="alibi")),
        measured(1.0, "flex", **CAUSAL), measured(1.3, "flex", **CAUSAL, score=Score(bias="alibi")),
        measured(0.3, "flex", **{**CAUSAL, "mask": "causal+window:255"}),
    ])  # fmt: skip
    alibi, window = verdicts["C6"]
    assert alibi.verdict is ClaimVerdict.REFUTED
    assert "flex 1.3" in alibi.measured
    assert "naive 1.2" in alibi.measured
    assert window.verdict is ClaimVerdict.CONFIRMED
    assert "naive" not in window.measured
    pairs = 2048 * 256 - 256 * 255 / 2
    assert f"ideal {pairs / (2048 * 2049 / 2):.2f}" in window.predicts


def test_backends_that_disagree_are_named() -> None:
    base = {"seq_q": 1024, "mask": "none", "heads": 4}
    verdicts = told([
        measured(1.0, **base), measured(0.4, **base, dtype="bf16"),
        measured(1.0, "sdpa:flash", **base), measured(1.5, "sdpa:flash", **base, dtype="bf16"),
    ])  # fmt: skip
    (precision,) = verdicts["C8"]
    assert precision.verdict is ClaimVerdict.DEPENDS
    assert precision.measured.startswith("naive 0.4 (")


def test_segments_count_as_often_as_they_are_computed() -> None:
    xl = {"mask": "causal", "heads": 4, "score": Score(bias="xl")}
    verdicts = told([measured(1.0, seq_q=2048, **xl), measured(0.05, seq_q=256, seq_kv=512, **xl)])
    (segments,) = verdicts["C7"]
    assert segments.measured.startswith("naive 0.4 (")
    assert segments.verdict is ClaimVerdict.CONFIRMED


def test_two_calls_against_one() -> None:
    shape = {"batch": 4, "heads": 4, "mask": "none"}
    times = {77: 1.0, 257: 3.0, 334: 6.0}
    (joint,) = told([measured(time, seq_q=seq, **shape) for seq, time in times.items()])["C16"]
    assert joint.measured.startswith("naive 1.5 (")
    assert joint.verdict is ClaimVerdict.CONFIRMED


def test_dropout_is_cheap_below_a_tenth() -> None:
    shape = {"batch": 2, "seq_q": 512, "heads": 4, "mask": "none"}
    for factor, verdict in (
        (1.05, ClaimVerdict.CONFIRMED),
        (1.1, ClaimVerdict.INCONCLUSIVE),
        (1.4, ClaimVerdict.REFUTED),
    ):
        (dropout,) = told([measured(1.0, **shape), measured(factor, **shape, dropout=0.1)])["C14"]
        assert dropout.verdict is verdict


def test_packing_is_found_wherever_it_stands_in_the_run() -> None:
    rows = [
        measured(1.0, "flex", seq_q=1434, heads=4, mask="document:474-397-320-243"),
        measured(2.0, "flex", batch=4, seq_q=512, heads=4, mask="padding:0.3"),
        measured(3.0, "flex", seq_q=64, mask="none"),
    ]
    (packed,) = told(rows)["M16"]
    assert packed.measured.startswith("flex 0.5 (")
    assert packed.verdict is ClaimVerdict.CONFIRMED


def test_a_case_that_is_wrong_refutes_unequal_lengths() -> None:
    right = measured(1.0, seq_q=3, seq_kv=5)
    assert told([right])["C13"][0].verdict is ClaimVerdict.CONFIRMED
    wrong = result(backend="sdpa:flash", problem=Problem(seq_q=3, seq_kv=5))
    assert told([right, wrong])["C13"][0].verdict is ClaimVerdict.REFUTED
    skipped = result(backend="sdpa:flash", problem=Problem(seq_q=3, seq_kv=5), status=Status.SKIPPED)
    (unequal,) = told([right, skipped])["C13"]
    assert unequal.measured == "1 of 1 cases right against float64"
    assert unequal.verdict is ClaimVerdict.CONFIRMED


def test_figures_of_probes_are_told() -> None:
    noisy = measured(1.0, seq_q=8, score=Score(scale=1.0))
    few = measured(1.0, seq_q=8)
    noisy = Result(**{**_fields(noisy), "facts": {"probes": {"noise": {"gain": {"0.01": 3.25}}}}})
    figures = {"error": {"int8": 0.008, "fp8_e4m3": 0.03}, "bytes": {"fp32": 4096, "int8": 1152, "fp8_e4m3": 1152}}
    few = Result(**{**_fields(few), "facts": {"probes": {"quantisation": figures}}})
    verdicts = told([], robust=[noisy], quantised=[few])
    assert "dot scale 1 3.2" in verdicts["C11"][0].measured
    assert verdicts["C10"][0].verdict is ClaimVerdict.CONFIRMED
    assert "int8 0.008" in verdicts["C10"][0].measured


def _fields(measured_result: Result) -> dict[str, Any]:
    return {name: getattr(measured_result, name) for name in measured_result.__struct_fields__}


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert set(told([])) <= {"C3", "C4"}


def test_the_suite_has_a_case_for_every_claim() -> None:
    """Made-up times for every cell of the suite give each claim that the suite is for."""
    claims_suite = suite.load("claims")
    results = []
    for cell in suite.expand(claims_suite, kind="cpu", dtype=Dtype.FP32):
        problem = cell.problem
        for backend in cell.backends:
            fields = {name: getattr(problem, name) for name in problem.__struct_fields__}
            results.append(measured(1e-3 * problem.seq_q**2 / 1e6, backend, cell.mode, **fields))
    verdicts = told(results)
    named = {
        word for table in claims_suite.tables for word in table.name.split() if word[0] in "CM" and word[1:].isdigit()
    }
    assert named <= set(verdicts)
    assert {"C1", "C2", "C5", "C3", "C4", "C6", "C7", "C8", "C9", "C12", "C13", "C14", "C16", "M14", "M16"} <= set(
        verdicts
    )


@pytest.mark.slow  # it judges no time, so it need not run alone
def test_the_command_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tables of the suite, the probes, and the search for the longest sequence; the test above has every table."""
    monkeypatch.chdir(tmp_path)
    head, *tables = (files.shipped_folder() / "claims.toml").read_text(encoding="utf-8").split("[[problem]]")
    few = [table for table in tables if '"C13' in table or '"C16' in table]
    Path("claims.toml").write_text("[[problem]]".join((head, *few)), encoding="utf-8")
    monkeypatch.setattr(study, "SUITE", "claims.toml")
    # Shortest blocks; and of the search for the longest sequence the last doublings, without bisection.
    monkeypatch.setattr(request, "Procedure", partial(request.Procedure, block_s=1e-4))
    monkeypatch.setattr(max_seq, "FIRST", 8192)
    monkeypatch.setattr(max_seq, "STEP_SHARE", 1.0)
    code = cli.invoke(["claims", "--json", "--progress", "none", "--rounds", "1", "--budget", "0"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert {json.loads(line)["id"] for line in printed.out.splitlines()} >= {"C10", "C11", "C13", "C16", "C17"}
    assert cli.invoke(["claims", "--run", "last"]) == 0
    assert "claims:" in capsys.readouterr().out.splitlines()[-1]
