"""The noise floor: the difference between equal arms, by the duration of a call."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from scipy.stats import t

from attnbench.analysis import noise_floor
from attnbench.analysis.noise_floor import ControlPair, KernelKind
from attnbench.analysis.restarts import join
from attnbench.errors import StoreError
from attnbench.report.terminal import ceilings as report
from tests.samples import result


def control(seconds: float, effect: float, run: int = 0) -> ControlPair:
    """An A/A control with that effect."""
    day = f"2026-01-{run + 1:02d}"
    return ControlPair(
        device="cpu", label="x", seconds=seconds, effect=effect, half_width=0.01, restarts=6, measured_at=day
    )


def test_below_twenty_runs_the_noise_floor_is_the_largest_effect() -> None:
    (floor,) = noise_floor.classes([control(5e-3, effect, run) for run, effect in enumerate((0.01, -0.03, 0.02))])
    assert floor.effect == pytest.approx(math.expm1(0.03))
    assert floor.label == "largest so far, of 3 runs"
    assert (floor.longest_s, floor.cases) == (1e-2, 3)


def test_from_twenty_runs_on_the_noise_floor_is_the_99th_percentile() -> None:
    pairs = [control(5e-3, 0.001 * case, run) for run in range(20) for case in range(10)]
    (floor,) = noise_floor.classes(pairs)
    assert floor.label == "99th percentile"
    assert floor.effect == pytest.approx(math.expm1(0.009))


def test_short_and_long_calls_have_separate_noise_floors() -> None:
    floors = noise_floor.classes([control(1e-4, 0.10), control(5e-2, 0.01), control(3.0, 0.02)])
    assert [floor.longest_s for floor in floors] == [1e-3, 1e-1, math.inf]
    lines = list(report.noise_floor("cpu", [control(1e-4, 0.10), control(3.0, 0.02)]))
    assert any("under 1.00 ms" in line and "10.5 %" in line for line in lines)
    assert any("2.02 %" in line for line in lines)


def test_a_a_controls_of_a_run_are_distinguished_from_other_arms() -> None:
    def arm(values: list[float], restart: int, copy: int) -> object:
        measured = result(values, restart=restart, facts={"reference": "naive@cpu:threads=1"})
        return msgspec.structs.replace(measured, arm=msgspec.structs.replace(measured.arm, copy=copy))

    results = [arm([1e-3 * (1 + 0.01 * n)] * 4, n, 1) for n in range(3)]
    results += [arm([1.02e-3 * (1 + 0.01 * n)] * 4, n, 2) for n in range(3)]
    (pair,) = noise_floor.of_run(join(results))  # type: ignore[arg-type]
    assert pair.effect == pytest.approx(-math.log(1.02))
    assert pair.restarts == 3
    assert list(noise_floor.of_run(join(results[:3]))) == []  # type: ignore[arg-type]


def test_every_measurement_is_added_to_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    noise_floor.add("abc", [control(1e-3, 0.01)])
    path = noise_floor.add("abc", [control(1e-3, 0.02, run=1)])
    path.write_bytes(path.read_bytes() + b'{"torn": \n')
    assert [pair.effect for pair in noise_floor.load("abc", "cpu")] == [0.01, 0.02]
    assert noise_floor.load("abc", "cuda:0") == []
    assert noise_floor.load("other", "cpu") == []


def test_effects_of_restarts_make_a_pair_and_one_restart_makes_none() -> None:
    (control,) = join([result([1e-3, 1.1e-3, 1.2e-3])])
    pair = noise_floor.of_effects(control, {0: 0.01, 1: 0.03}, "2026-01-01")
    assert pair
    assert (pair.effect, pair.restarts) == (pytest.approx(0.02), 2)
    # Student's t of one degree of freedom is 12.706; the standard error is 0.01.
    assert pair.half_width == pytest.approx(0.12706, rel=1e-4)
    assert noise_floor.of_effects(control, {0: 0.01}, "2026-01-01") is None


def test_kernels_of_users_have_a_noise_floor_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for backend, effect in (("naive", 0.01), ("my_kernel.py:attend", 0.5)):
        (control,) = join([result([1e-3, 1.1e-3, 1.2e-3], backend=backend)])
        pair = noise_floor.of_effects(control, {0: effect, 1: effect + 0.01}, "2026-01-01")
        assert pair
        noise_floor.add("abc", [pair])
    (library,) = noise_floor.load("abc", "cpu:threads=1")
    (user,) = noise_floor.load("abc", "cpu:threads=1", KernelKind.USER)
    assert (library.effect, user.effect) == (pytest.approx(0.015), pytest.approx(0.505))
    lines = list(report.noise_floor("cpu", [library], [user]))
    assert [line for line in lines if line.startswith("noise floor of users' kernels on cpu:")]


def test_stored_pairs_without_a_kind_belong_to_the_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stored = msgspec.to_builtins(control(1e-3, 0.02))
    assert "kernel" not in stored
    noise_floor.add("abc", []).write_bytes(msgspec.json.encode(stored) + b"\n")
    assert noise_floor.load("abc", "cpu") == [control(1e-3, 0.02)]
    assert noise_floor.load("abc", "cpu", KernelKind.USER) == []


def test_a_factor_belongs_to_one_class_of_duration() -> None:
    short = [control(1e-4, 0.03, run) for run in range(20)]
    few = [control(5e-3, 0.01, run) for run in range(3)]
    by_class = {entry.shortest_s: entry for entry in noise_floor.factors([*short, *few])}
    # An effect of 3 half-widths is 3 t standard errors; Student's t of five degrees of freedom is 2.571.
    assert (by_class[0.0].factor, by_class[0.0].runs) == (pytest.approx(3 * 2.5706, rel=1e-4), 20)
    assert (by_class[1e-3].factor, by_class[1e-3].runs) == (0.0, 3)
    assert [noise_floor.class_of(seconds) for seconds in (1e-4, 1e-3, 5.0)] == [0.0, 1e-3, 1e-1]


@pytest.mark.parametrize("restarts", [2, 4, 26])
def test_a_factor_is_that_of_six_restarts_whatever_was_measured(restarts: int) -> None:
    """A difference that 1 of 100 means of normal restarts exceeds is one for any number of them."""
    half_widths = t.ppf(0.995, restarts - 1) / t.ppf(0.975, restarts - 1)
    pairs = [msgspec.structs.replace(control(1e-4, 0.01 * half_widths, run), restarts=restarts) for run in range(20)]
    assert noise_floor.factor(pairs)[0] == pytest.approx(t.ppf(0.995, 5))


def test_between_two_runs_more_is_assumed_than_a_quiet_machine_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    noise_floor.add("abc", [control(5e-3, 0.01)])
    floor, source = noise_floor.BetweenRuns("abc").of("cpu", 5e-3)
    assert floor == noise_floor.BETWEEN_RUNS
    assert source.startswith("assumed for two runs; within a run")


def test_a_calibration_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"cannot write to .*floor\.jsonl: Not a directory"):
        noise_floor.add("abc", [control(1e-3, 0.01)])
