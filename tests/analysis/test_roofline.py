"""The roofline bound of a case, and why one beats it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.analysis.roofline import Bound, ceilings_by_device, explain_faster, roofline_bound
from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records import ceilings as stored_ceilings
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Environment
from tests.samples import ceilings, result, run

RATE = {"fp32": Rate(burst=1e12, sustained=9e11, size=1024), "bf16": Rate(burst=4e12, sustained=3e12, size=1024)}
TRAFFIC = {
    "copy": (Point(bytes=2**15, rate=4e11), Point(bytes=2**28, rate=4e10)),
    "read": (Point(bytes=2**14, rate=3e11), Point(bytes=2**27, rate=5e10)),
}


def test_a_long_prefill_is_bound_by_compute_and_decode_by_memory() -> None:
    known = ceilings(matmul=RATE, bandwidth=TRAFFIC)
    prefill = roofline_bound(known, Problem(seq_q=4096), Mode.FWD)
    decode = roofline_bound(known, Problem(seq_q=1, seq_kv=4096), Mode.FWD)
    assert prefill is not None
    assert decode is not None
    assert prefill.bound is Bound.COMPUTE
    assert prefill.seconds == pytest.approx(4 * 8 * 4096**2 * 64 / 1e12)
    assert decode.bound is Bound.MEMORY
    # k and v once, q and out nearly nothing, over the best kind of traffic of the largest working set.
    assert decode.seconds == pytest.approx((2 * 4096 + 2) * 8 * 64 * 4 / 5e10)


def test_exp_binds_where_products_are_fast() -> None:
    known = ceilings(matmul={"bf16": Rate(burst=3e15, sustained=3e15, size=8192)}, exp_per_s=4e12)
    bound = roofline_bound(known, Problem(seq_q=4096, head_dim=64, dtype="bf16"), Mode.FWD_BWD)
    assert bound is not None
    assert bound.bound is Bound.EXP
    assert bound.seconds == pytest.approx(2 * 8 * 4096**2 / 4e12)  # the weights are made in both passes


def test_a_dtype_without_a_ceiling_has_no_bound() -> None:
    assert roofline_bound(ceilings(matmul=RATE), Problem(seq_q=64, dtype="fp16"), Mode.FWD) is None


@pytest.mark.parametrize(
    ("share", "expected"), [(1.04, ""), (1.2, "a higher clock"), (2.0, "the FLOPs or the time are wrong")]
)
def test_why_a_case_beats_the_compute_ceiling(share: float, expected: str) -> None:
    problem = Problem(seq_q=1024)
    seconds = 4 * 8 * 1024**2 * 64 / 1e12 / share
    reason = explain_faster(ceilings(matmul=RATE), problem, Mode.FWD, seconds)
    assert expected in reason
    assert bool(reason) is bool(expected)


def test_a_working_set_in_a_cache_explains_more_than_memory_can_give() -> None:
    problem = Problem(seq_q=1, seq_kv=16, heads=1)
    known = ceilings(bandwidth=TRAFFIC)
    traffic = (2 * 16 + 2) * 64 * 4
    assert "stays in a cache" in explain_faster(known, problem, Mode.FWD, traffic / 2e11)
    assert "counted wrong" in explain_faster(known, problem, Mode.FWD, traffic / 8e11)


def test_a_faster_exponential_is_named() -> None:
    reason = explain_faster(ceilings(exp_per_s=1e9), Problem(seq_q=1024), Mode.FWD, 8 * 1024**2 / 2e9)
    assert "faster exponential" in reason


def test_ceilings_that_were_calibrated_after_a_run_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = result([1e-3])
    environment = Environment(device="CPU", packages={"torch": "2"})
    manifest = run(measured, arms=(measured.arm,), environments={measured.arm.id: environment}).manifest
    assert ceilings_by_device(manifest) == {}
    stored_ceilings.save("f", ceilings(matmul=RATE))
    assert ceilings_by_device(manifest) == {"cpu:threads=1": ceilings(matmul=RATE)}
