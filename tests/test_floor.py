"""The noise floor: equal arms, by how long a call takes."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from attnbench import floor, frame
from attnbench.floor import Twins
from attnbench.report import ceilings as report
from tests.samples import result


def twins(seconds: float, effect: float, run: int = 0) -> Twins:
    """One pair."""
    day = f"2026-01-{run + 1:02d}"
    return Twins(device="cpu", label="x", seconds=seconds, effect=effect, half_width=0.01, launches=6, measured_at=day)


def test_until_there_are_twenty_runs_the_largest_effect_stands_and_says_so() -> None:
    (found,) = floor.classes([twins(5e-3, effect, run) for run, effect in enumerate((0.01, -0.03, 0.02))])
    assert found.effect == pytest.approx(math.expm1(0.03))
    assert found.label == "largest so far, of 3 runs"
    assert (found.longest_s, found.cases) == (1e-2, 3)


def test_from_twenty_runs_on_it_is_the_99th_percentile() -> None:
    pairs = [twins(5e-3, 0.001 * case, run) for run in range(20) for case in range(10)]
    (found,) = floor.classes(pairs)
    assert found.label == "99th percentile"
    assert found.effect == pytest.approx(math.expm1(0.009))


def test_short_and_long_calls_have_floors_of_their_own() -> None:
    found = floor.classes([twins(1e-4, 0.10), twins(5e-2, 0.01), twins(3.0, 0.02)])
    assert [one.longest_s for one in found] == [1e-3, 1e-1, math.inf]
    lines = list(report.floor_text("cpu", [twins(1e-4, 0.10), twins(3.0, 0.02)]))
    assert any("under 1.00 ms" in line and "10.5%" in line for line in lines)
    assert any("2.02%" in line for line in lines)


def test_twins_of_a_run_are_told_from_other_arms() -> None:
    def arm(values: list[float], launch: int, twin: int) -> object:
        one = result(values, launch=launch, facts={"reference": "naive@cpu:threads=1"})
        return msgspec.structs.replace(one, arm=msgspec.structs.replace(one.arm, twin=twin))

    made = [arm([1e-3 * (1 + 0.01 * n)] * 4, n, 1) for n in range(3)]
    made += [arm([1.02e-3 * (1 + 0.01 * n)] * 4, n, 2) for n in range(3)]
    (found,) = floor.of_run(frame.join(made))  # type: ignore[arg-type]
    assert found.effect == pytest.approx(-math.log(1.02))
    assert found.launches == 3
    assert list(floor.of_run(frame.join(made[:3]))) == []  # type: ignore[arg-type]


def test_every_measurement_adds_to_what_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    floor.add("abc", [twins(1e-3, 0.01)])
    path = floor.add("abc", [twins(1e-3, 0.02, run=1)])
    path.write_bytes(path.read_bytes() + b'{"torn": \n')
    assert [one.effect for one in floor.load("abc", "cpu")] == [0.01, 0.02]
    assert floor.load("abc", "cuda:0") == []
    assert floor.load("other", "cpu") == []
