"""Which dtype or device is preferred, by worked examples."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from attnbench.analysis.preferences import Basis, preferences
from attnbench.analysis.rows import Row, rows_of
from attnbench.attention.choices import Dtype
from attnbench.cli import output
from attnbench.records.ceilings import Rate
from attnbench.records.result import Result, Status
from attnbench.report import pages, summary
from attnbench.report.formats import markdown
from attnbench.report.pages.page import report_data
from attnbench.report.terminal import dispatch_table
from attnbench.studies.recommend import dispatch
from tests.samples import ceilings, run
from tests.studies.test_claims import measured

DEVICE = "cpu:threads=1"


def case(seconds: float, dtype: Dtype, seq: int, backend: str = "naive", device: str = DEVICE) -> Result:
    result = measured(seconds, backend, seq_q=seq, dtype=dtype)
    return msgspec.structs.replace(result, arm=msgspec.structs.replace(result.arm, device=device))


def rows(times: dict[tuple[Dtype, int], float], **fields: Any) -> list[Row]:
    return rows_of([case(seconds, dtype, seq, **fields) for (dtype, seq), seconds in times.items()])


TWO_LENGTHS = {(Dtype.FP32, 64): 1.0, (Dtype.BF16, 64): 50.0, (Dtype.FP32, 128): 2.0, (Dtype.BF16, 128): 200.0}


def test_a_dtype_that_is_slower_in_every_pair_is_named_with_its_geometric_mean() -> None:
    (preference,) = preferences(rows(TWO_LENGTHS))
    assert (preference.axis, preference.better, preference.worse, preference.pairs) == ("dtype", "fp32", "bf16", 2)
    assert preference.factor == pytest.approx((50 * 100) ** 0.5, rel=1e-3)
    assert preference.text == (
        "prefer fp32 on cpu:threads=1: bf16 is 71x slower (geometric mean of 2 measured pairs of cases: naive)"
    )


@pytest.mark.parametrize(
    "changed",
    [{(Dtype.BF16, 64): 1.5, (Dtype.BF16, 128): 3.5}, {(Dtype.BF16, 64): 0.9}],
    ids=["small factor", "not in every pair"],
)
def test_a_small_or_inconsistent_difference_is_no_preference(changed: dict[tuple[Dtype, int], float]) -> None:
    assert preferences(rows(TWO_LENGTHS | changed)) == []


def test_cases_that_failed_are_in_no_pair() -> None:
    failed = [
        msgspec.structs.replace(case(1.0, dtype, 256), status=Status.CRASHED, samples={})
        for dtype in (Dtype.FP32, Dtype.BF16)
    ]
    measured = [case(seconds, dtype, seq) for (dtype, seq), seconds in TWO_LENGTHS.items()]
    (preference,) = preferences(rows_of([*measured, *failed]))
    assert (preference.better, preference.pairs) == ("fp32", 2)


def test_only_cases_that_differ_in_dtype_alone_are_pairs() -> None:
    assert preferences(rows({(Dtype.FP32, 64): 1.0, (Dtype.BF16, 128): 50.0})) == []


def test_backends_that_agree_share_a_note_and_the_others_are_left_out() -> None:
    fast = dict.fromkeys(TWO_LENGTHS, 1.0)
    every = [
        case(seconds, dtype, seq, backend)
        for backend, times in (("naive", TWO_LENGTHS), ("sdpa:math", TWO_LENGTHS), ("flex", fast))
        for (dtype, seq), seconds in times.items()
    ]
    (preference,) = preferences(rows_of(every))
    assert (preference.backends, preference.pairs) == (("naive", "sdpa:math"), 4)
    assert preference.text == (
        f"prefer fp32 on {DEVICE} with naive, sdpa:math: "
        "bf16 is 71x slower (geometric mean of 4 measured pairs of cases)"
    )


def test_devices_are_compared_like_dtypes() -> None:
    results = [
        case(seconds, Dtype.FP32, seq, device=device)
        for device, factor in ((DEVICE, 8.0), ("cuda:0", 1.0))
        for seq, seconds in ((64, 1e-3 * factor), (128, 4e-3 * factor))
    ]
    (preference,) = preferences(rows_of(results))
    assert preference.text == (
        "prefer cuda:0 for fp32: cpu:threads=1 is 8.0x slower (geometric mean of 2 measured pairs of cases: naive)"
    )


RATES = {
    "fp32": Rate(burst=100e9, sustained=1e11, size=256),
    "fp16": Rate(burst=400e9, sustained=4e11, size=256),
    "bf16": Rate(burst=2.5e9, sustained=2.5e9, size=256),
}


def test_the_calibration_is_used_for_a_dtype_that_was_measured_alone() -> None:
    known = {DEVICE: ceilings(matmul=RATES)}
    (preference,) = preferences(rows({(Dtype.BF16, 64): 1.0}), known)
    assert (preference.better, preference.factor, preference.basis) == ("fp32", pytest.approx(40), Basis.CALIBRATED)
    assert summary.notes(rows({(Dtype.BF16, 64): 1.0}), known) == [
        "prefer fp32 on cpu:threads=1: matrix products in bf16 are 40x slower (by the calibration; fp32 was not "
        "measured)"
    ]
    # fp16 is faster, but has fewer bits than fp32.
    assert preferences(rows({(Dtype.FP32, 64): 1.0}), known) == []
    (measured_,) = preferences(rows(TWO_LENGTHS), known)
    assert measured_.basis is Basis.MEASURED


def test_run_report_and_recommend_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    results = [case(seconds, dtype, seq) for (dtype, seq), seconds in TWO_LENGTHS.items()]
    stored = run(*results)
    output.show(stored, "table")
    note = "prefer fp32 on cpu:threads=1: bf16 is 71x slower"
    assert note in capsys.readouterr().out
    answer, sections = pages.contents(report_data([stored]))
    assert note in " ".join(caution.text for caution in answer.cautions)
    assert f"- {note}" in markdown.page(answer, sections)
    assert note in "\n".join(dispatch_table.lines(dispatch(rows_of(results)), 200))
