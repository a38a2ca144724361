"""Measured ceilings, stored by machine, device and torch version."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.errors import StoreError
from attnbench.machine import datasheet
from attnbench.records import ceilings as roofs
from attnbench.records.ceilings import ForeignLoad, Point, Rate
from tests.samples import ceilings

RATE = {"fp32": Rate(burst=1e12, sustained=9e11, size=1024), "bf16": Rate(burst=4e12, sustained=3e12, size=1024)}
TRAFFIC = {
    "copy": (Point(bytes=2**15, rate=4e11), Point(bytes=2**28, rate=4e10)),
    "read": (Point(bytes=2**14, rate=3e11), Point(bytes=2**27, rate=5e10)),
}


def test_the_working_set_decides_on_the_bandwidth() -> None:
    known = ceilings(bandwidth=TRAFFIC)
    assert known.memory == 5e10
    assert known.within(2**14) == 4e11
    assert known.within(2**30) == 5e10
    assert ceilings().memory is None
    assert ceilings().within(1) is None


def test_saved_ceilings_are_loaded_by_machine_device_and_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = ceilings(matmul=RATE, bandwidth=TRAFFIC, exp_per_s=1e9)
    roofs.save("abc", known)
    assert roofs.load("abc", "cpu:threads=1", "2") == known
    assert roofs.load("abc", "cpu:threads=2", "2") is None
    assert roofs.load("abc", "cpu:threads=1", "2.13") is None
    assert roofs.load("other", "cpu:threads=1", "2") is None


def test_an_unreadable_calibration_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = roofs.save("abc", ceilings())
    assert path
    path.write_text('{"device": 1')
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
    data = datasheet.sheet(name)
    assert data is not None
    assert (data.name, data.flop_per_s["bf16"]) == (sheet, bf16)
    assert data.source.startswith("https://")


def test_an_unknown_device_has_no_data_sheet() -> None:
    assert datasheet.sheet("NVIDIA L400") is None
    assert datasheet.silicon("CPU", "fp32", {}) is None
    assert datasheet.silicon("CPU", "fp32", {"isa": "AVX2", "threads": 2}) == 2 * 32 * 6.5e9


def test_ceilings_that_cannot_be_written_are_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(StoreError, match="cannot write to"):
        roofs.save("abc", ceilings())


LOADED = {"matmul": ForeignLoad(cores=0.5, machine=0.6), "exp": ForeignLoad(cores=0.01, machine=0.1)}
CALM = {"matmul": ForeignLoad(cores=0.02, machine=0.2)}


@pytest.mark.parametrize(
    ("load", "disturbs"),
    [
        (ForeignLoad(cores=0.04, machine=0.2), False),
        (ForeignLoad(cores=0.06, machine=0.06), True),  # of its only core, on a large machine
        (ForeignLoad(cores=0.0, machine=0.3), True),  # memory bandwidth is shared
        (ForeignLoad(cores=0.0), False),
    ],
)
def test_other_processes_disturb_from_a_share_on(load: ForeignLoad, disturbs: bool) -> None:
    known = ceilings(foreign_load={"matmul": load})
    assert list(known.disturbed) == (["matmul"] if disturbs else [])
    assert bool(known.disturbance) is disturbs


def test_the_disturbed_parts_are_named_with_their_load() -> None:
    assert ceilings(foreign_load=LOADED).disturbance == (
        "disturbed by other processes (matmul: 50.0 % of its cores), rates may be too low"
    )


def test_disturbed_ceilings_replace_undisturbed_ones_only_by_force(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    disturbed, calm = ceilings(foreign_load=LOADED), ceilings(foreign_load=CALM)
    assert roofs.save("abc", disturbed)  # better than none
    assert roofs.load("abc", "cpu:threads=1", "2") == disturbed
    assert roofs.save("abc", calm)
    assert roofs.save("abc", disturbed) is None
    assert roofs.load("abc", "cpu:threads=1", "2") == calm
    assert roofs.save("abc", disturbed, force=True)
    assert roofs.load("abc", "cpu:threads=1", "2") == disturbed


def test_a_calibration_without_a_load_is_read_as_undisturbed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = roofs.save("abc", ceilings(matmul=RATE))
    assert path
    assert "foreign_load" not in path.read_text()
    known = roofs.load("abc", "cpu:threads=1", "2")
    assert known
    assert not known.disturbed
