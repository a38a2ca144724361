"""Joules of a call, from made-up counters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from attnbench.machine.device import energy  # noqa: E402


def zone(root: Path, number: int, name: str, used_uj: int, most_uj: int = 10**9) -> Path:
    """A folder of the powercap tree."""
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{used_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{most_uj}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_other_zones_left_out(tmp_path: Path) -> None:
    first, second = zone(tmp_path, 0, "package-0", 100), zone(tmp_path, 1, "package-1", 500)
    zone(tmp_path, 2, "psys", 0)
    meter = energy.Rapl(tmp_path)
    first.write_text("2000100")
    second.write_text("1000500")
    assert meter() == pytest.approx(3.0)


def test_a_full_counter_starts_again_from_zero(tmp_path: Path) -> None:
    counter = zone(tmp_path, 0, "package-0", 900_000, most_uj=1_000_000)
    meter = energy.Rapl(tmp_path)
    counter.write_text("100000")
    assert meter() == pytest.approx(0.2)
    counter.write_text("150000")
    assert meter() == pytest.approx(0.25)


def test_without_a_package_there_is_a_reason(tmp_path: Path) -> None:
    assert energy.rapl(tmp_path) == f"RAPL: no package under {tmp_path}"


def test_a_counter_that_only_root_reads_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, 0, "package-0", 0)
    plain = Path.read_text

    def refuse(self: Path, *args: Any, **options: Any) -> str:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert energy.rapl(tmp_path) == f"RAPL: {path} can only be read by root"


class Fake:
    """A device that draws 5 W when idle and 3 J more each call."""

    def __init__(self, meter: Callable[[], tuple[str, Callable[[], float]] | str]) -> None:
        self.energy_meter = meter

    def synchronize(self) -> None:
        """Nothing waits."""


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_energy_of_a_call_and_above_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls_made = Clock(), [0]
    monkeypatch.setattr(energy, "time", clock)

    def call() -> None:
        calls_made[0] += 1
        clock.sleep(0.01)

    fake = Fake(lambda: ("made up", lambda: 5.0 * clock.now + 3.0 * calls_made[0]))
    result = energy.measure(fake, call, 0.01)  # type: ignore[arg-type]
    assert isinstance(result, energy.CallEnergy)
    assert result.calls == calls_made[0]
    assert result.above_idle == pytest.approx(3.0)
    assert result.seconds == pytest.approx(energy.STEADY_S, abs=0.011)
    assert result.joules == pytest.approx(3.0 + 5.0 * 0.01)


def test_a_counter_that_stands_still_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "STEADY_S", 0.02)
    monkeypatch.setattr(energy, "IDLE_S", 0.01)
    fake = Fake(lambda: ("NVML", lambda: 7.0))
    assert "did not move" in str(energy.measure(fake, lambda: None, 1e-3))  # type: ignore[arg-type]
    assert energy.measure(Fake(lambda: "no counter"), lambda: None, 1e-3) == "no counter"  # type: ignore[arg-type]
