"""Which parts of a calibration are measured again, by scripted replies."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from attnbench.analysis.preferences import preferences
from attnbench.analysis.rows import rows_of
from attnbench.attention.choices import Dtype
from attnbench.attention.problem import Problem
from attnbench.engine import calibration
from attnbench.machine import identity
from attnbench.records.arm import parse_device
from attnbench.records.ceilings import ForeignLoad, Rate
from attnbench.records.result import Environment
from attnbench.report.pages import speed
from attnbench.report.pages.page import report_data
from attnbench.report.terminal import ceilings as table
from attnbench.studies import doctor
from attnbench.worker.protocol import DeviceCalibrated
from tests.samples import ceilings, result, run


def scripted(loads: dict[str, list[float | None]]) -> tuple[Callable[[str], DeviceCalibrated], list[str]]:
    """A worker that sees these loads part by part, and the parts that it was asked for. exp_per_s numbers the calls."""
    requested: list[str] = []

    def ask(part: str) -> DeviceCalibrated:
        requested.append(part)
        cores = loads[part].pop(0)
        return DeviceCalibrated(
            matmul={}, refused={}, bandwidth={}, exp_per_s=float(len(requested)), exp_derived=False, launch_s=None,
            foreign_load=None if cores is None else ForeignLoad(cores=cores, machine=cores),
        )  # fmt: skip

    return ask, requested


def test_only_disturbed_parts_are_measured_again_until_they_are_calm() -> None:
    ask, requested = scripted({"matmul": [0.5, 0.6, 0.01], "exp": [0.0], "launch": [None]})
    lines: list[str] = []
    replies = calibration.measure_parts(ask, ("matmul", "exp", "launch"), math.inf, lines.append, pause_s=0.0)
    assert requested == ["matmul", "exp", "launch", "matmul", "matmul"]
    assert replies["matmul"].exp_per_s == 5.0  # the last one
    assert lines[0] == "other processes are running (matmul: 50.0 % of its cores): measuring again in 0 s"


def test_under_constant_load_the_least_disturbed_measurement_counts() -> None:
    ask, requested = scripted({"exp": [0.5, 0.3, 0.4, 0.6]})
    replies = calibration.measure_parts(ask, ("exp",), math.inf, lambda text: None, pause_s=0.0)
    assert len(requested) == 1 + calibration.RETRIES
    assert replies["exp"].exp_per_s == 2.0


def test_the_load_of_a_disturbed_part_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, _ = scripted({"matmul": [0.5], "exp": [0.0]})
    environment = Environment(device="CPU", facts={}, packages={"torch": "2"})
    worker = SimpleNamespace(
        open=lambda _: SimpleNamespace(environment=environment),
        ask=lambda request, _: ask(request.parts[0]),
        terminate=lambda: None,
    )
    monkeypatch.setattr(calibration, "Worker", lambda *_: worker)
    stored = calibration.measure(parse_device("cpu:threads=1"), ("matmul", "exp"), deadline=0.0)
    assert not isinstance(stored, str)
    assert stored.foreign_load["matmul"].cores == 0.5
    assert stored.disturbed


def test_after_the_deadline_nothing_is_measured_again() -> None:
    ask, requested = scripted({"exp": [0.5, 0.0]})
    calibration.measure_parts(ask, ("exp",), 0.0, lambda text: None, pause_s=0.0)
    assert requested == ["exp"]


RATES = {dtype: Rate(burst=rate, sustained=rate, size=256) for dtype, rate in (("fp32", 1e11), ("bf16", 1e9))}
DISTURBED = ceilings(matmul=RATES, foreign_load={"matmul": ForeignLoad(cores=0.5, machine=0.5)})
MARK = "disturbed by other processes (matmul: 50.0 % of its cores), rates may be too low"


def test_disturbed_ceilings_are_marked_wherever_they_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    by_device = {"cpu:threads=1": DISTURBED}
    assert MARK in " ".join(" ".join(table.text(DISTURBED)).split())
    (row,) = rows_of([result([1e-6] * 5)], ceilings=by_device)
    assert row.notes == f"ceilings {MARK}"  # the reason why it is above its bound, too
    data = report_data([run(result([1e-3] * 5), ceilings=by_device)])
    assert MARK in " ".join(speed.page(data).text)
    here = msgspec.structs.replace(DISTURBED, torch=identity.packages()["torch"])
    calibration.save(identity.fingerprint()[0], here, force=False)
    assert MARK in doctor.calibration_state("cpu:threads=1")


def test_no_dtype_is_preferred_by_disturbed_rates() -> None:
    rows = rows_of([result([1e-3] * 5, problem=Problem(seq_q=64, dtype=Dtype.BF16))])
    assert preferences(rows, {"cpu:threads=1": DISTURBED}) == []
