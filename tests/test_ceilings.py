"""Roofs over a case, kept by machine, device and torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench import ceilings as roofs
from attnbench import datasheet
from attnbench.attention.problem import Mode, Problem
from attnbench.ceilings import Bound, Point, Rate
from tests.samples import ceilings

RATE = {"fp32": Rate(burst=1e12, sustained=9e11, size=1024), "bf16": Rate(burst=4e12, sustained=3e12, size=1024)}
TRAFFIC = {
    "copy": (Point(bytes=2**15, rate=4e11), Point(bytes=2**28, rate=4e10)),
    "read": (Point(bytes=2**14, rate=3e11), Point(bytes=2**27, rate=5e10)),
}


def test_a_long_prefill_is_bound_by_compute_and_decode_by_memory() -> None:
    known = ceilings(matmul=RATE, bandwidth=TRAFFIC)
    prefill = roofs.roof(known, Problem(seq_q=4096), Mode.FWD)
    decode = roofs.roof(known, Problem(seq_q=1, seq_kv=4096), Mode.FWD)
    assert prefill is not None
    assert decode is not None
    assert prefill.bound is Bound.COMPUTE
    assert prefill.seconds == pytest.approx(4 * 8 * 4096**2 * 64 / 1e12)
    assert decode.bound is Bound.MEMORY
    # k and v once, q and out nearly nothing, over the best kind of traffic of the largest working set.
    assert decode.seconds == pytest.approx((2 * 4096 + 2) * 8 * 64 * 4 / 5e10)


def test_exp_binds_where_products_are_fast() -> None:
    known = ceilings(matmul={"bf16": Rate(burst=3e15, sustained=3e15, size=8192)}, exp_per_s=4e12)
    found = roofs.roof(known, Problem(seq_q=4096, head_dim=64, dtype="bf16"), Mode.FWD_BWD)
    assert found is not None
    assert found.bound is Bound.EXP
    assert found.seconds == pytest.approx(2 * 8 * 4096**2 / 4e12)  # the weights are made in both passes


def test_another_dtype_has_no_roof_of_its_own() -> None:
    assert roofs.roof(ceilings(matmul=RATE), Problem(seq_q=64, dtype="fp16"), Mode.FWD) is None


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.04, ""), (1.2, "a higher clock"), (2.0, "the FLOPs or the time are wrong")],
)
def test_why_the_compute_ceiling_is_beaten(share: float, said: str) -> None:
    problem = Problem(seq_q=1024)
    seconds = 4 * 8 * 1024**2 * 64 / 1e12 / share
    found = roofs.beaten(ceilings(matmul=RATE), problem, Mode.FWD, seconds)
    assert said in found
    assert bool(found) is bool(said)


def test_a_working_set_in_a_cache_explains_more_than_memory_can_give() -> None:
    problem = Problem(seq_q=1, seq_kv=16, heads=1)
    known = ceilings(bandwidth=TRAFFIC)
    traffic = (2 * 16 + 2) * 64 * 4
    assert "stays in a cache" in roofs.beaten(known, problem, Mode.FWD, traffic / 2e11)
    assert "counted wrong" in roofs.beaten(known, problem, Mode.FWD, traffic / 8e11)


def test_a_faster_exponential_is_named() -> None:
    found = roofs.beaten(ceilings(exp_per_s=1e9), Problem(seq_q=1024), Mode.FWD, 8 * 1024**2 / 2e9)
    assert "faster exponential" in found


def test_the_working_set_decides_on_the_bandwidth() -> None:
    known = ceilings(bandwidth=TRAFFIC)
    assert known.memory == 5e10
    assert known.within(2**14) == 4e11
    assert known.within(2**30) == 5e10
    assert ceilings().memory is None
    assert ceilings().within(1) is None


def test_what_is_saved_is_loaded_by_machine_device_and_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = ceilings(matmul=RATE, bandwidth=TRAFFIC, exp_per_s=1e9)
    roofs.save("abc", known)
    assert roofs.load("abc", "cpu:threads=1", "2") == known
    assert roofs.load("abc", "cpu:threads=2", "2") is None
    assert roofs.load("abc", "cpu:threads=1", "2.13") is None
    assert roofs.load("other", "cpu:threads=1", "2") is None


def test_a_calibration_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    roofs.save("abc", ceilings()).write_text('{"device": 1')
    assert roofs.load("abc", "cpu:threads=1", "2") is None


@pytest.mark.parametrize(
    ("name", "sheet", "bf16"),
    [
        ("NVIDIA H200", "H200 SXM", 989.4e12),
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 989.4e12),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40GB", 312e12),
        ("NVIDIA B200", "B200 SXM", 2250e12),
        ("NVIDIA L4", "L4", 121e12),
        ("NVIDIA L40S", "L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", "MI300X", 1307.4e12),
    ],
)
def test_a_gpu_is_found_by_the_name_that_it_gives_itself(name: str, sheet: str, bf16: float) -> None:
    found = datasheet.sheet(name)
    assert found is not None
    assert (found.name, found.flop_per_s["bf16"]) == (sheet, bf16)
    assert found.source.startswith("https://")


def test_an_unknown_device_has_no_data_sheet() -> None:
    assert datasheet.sheet("NVIDIA L400") is None
    assert datasheet.silicon("CPU", "fp32", {}) is None
    assert datasheet.silicon("CPU", "fp32", {"isa": "AVX2", "threads": 2}) == 2 * 32 * 6.5e9
