"""calibrate, scaling and profile as a user types them, on small problems."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.engine import sweep, verify_only
from attnbench.engine.runner import Ending
from attnbench.engine.sweep import FinishedSweep
from attnbench.engine.verify_only import Verification
from attnbench.machine import identity
from attnbench.records import ceilings as roofs
from attnbench.records.ceilings import Point, Rate
from attnbench.records.result import Status
from tests.samples import ceilings, result, run

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTNBENCH_RESULTS", raising=False)
    return tmp_path


def test_what_was_not_calibrated_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["calibrate", "--show", "--device", "cpu:threads=1"]) == 6
    assert "not calibrated yet: attnbench calibrate --device cpu:threads=1" in capsys.readouterr().err


def test_a_stored_calibration_is_shown_with_its_peaks(capsys: pytest.CaptureFixture[str]) -> None:
    known = ceilings(
        name="NVIDIA H200",
        torch=identity.packages()["torch"],
        matmul={"bf16": Rate(burst=760e12, sustained=700e12, size=8192)},
        refused={"matmul fp8_e4m3": "not on this device"},
        bandwidth={"copy": (Point(bytes=2**30, rate=3.9e12),), "read": (Point(bytes=2**29, rate=4.5e12),)},
        exp_per_s=4e12,
        exp_derived=True,
        launch_s=4e-6,
    )
    roofs.save(identity.fingerprint()[0], known)
    assert cli.invoke(["calibrate", "--show", "--device", "cpu:threads=1"]) == 0
    output = capsys.readouterr().out
    assert "760 TFLOP/s" in output
    assert "77 %" in output  # of the 989 of the data sheet
    assert "94 % was measured" in output
    assert "(derived: special function units x clock)" in output
    assert "no matmul fp8_e4m3: not on this device" in output
    assert max(map(len, output.splitlines())) <= 100
    assert cli.invoke(["calibrate", "--show", "--device", "cpu:threads=1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["matmul"]["bf16"]["burst"] == 760e12
    assert record["peaks"]["bf16"] == 989.4e12


def test_a_floor_that_was_not_measured_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["calibrate", "--floor", "--show", "--device", "cpu:threads=1"]) == 6
    assert "attnbench calibrate --floor" in capsys.readouterr().out


def test_exponents_of_a_small_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seq", "16..128", "--mask", "none", "-b", "naive", "--rounds", "3", "--progress", "none"]
    assert cli.invoke(["scaling", *options]) == 0
    output = capsys.readouterr().out
    assert output.startswith("quantity")
    assert "peak naive  seq 16..128" in output
    assert "C3  parallel heads save work" in output
    assert cli.invoke(["scaling", "--run", "last", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {record["type"] for record in records} == {"law", "claim"}
    assert records[0]["quantity"] == "peak"
    assert len(records[0]["points"]) == 4


def test_the_search_for_a_length_takes_no_length_and_needs_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["scaling", "--find-max-seq", "--seq", "64"]) == 2
    assert "leave --seq" in capsys.readouterr().err
    assert cli.invoke(["scaling", "--find-max-seq", "--mem-limit", "100MiB"]) == 6
    assert "needs 800 MiB" in capsys.readouterr().err


def test_one_case_is_profiled(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seq", "64", "-b", "naive", "-o", "seen"]
    assert cli.invoke(["profile", *options]) == 0
    output = capsys.readouterr().out
    assert "aten::bmm" in output
    assert "file: seen/trace.json.gz (ui.perfetto.dev)" in output
    assert (here / "seen" / "trace.json.gz").stat().st_size > 100
    assert (here / "seen" / "memory.csv").exists()


def test_profile_takes_one_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.invoke(["profile", "--seq", "64,128", "-b", "naive"]) == 2
    assert "profile takes one case; the options give 2" in capsys.readouterr().err
    assert cli.invoke(["profile", "-b", "xformers"]) == 6
    assert "runs on cuda" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.workers
def test_a_calibration_has_the_rates_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Compared with the best of many calls in this process; neighbours of a shared machine slow either down."""
    import torch

    assert cli.invoke(["calibrate", "--device", "cpu:threads=1", "--json", "--budget", "1s"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["matmul"].keys() >= {"fp32", "bf16"}
    numbers = torch.randn(512, 512)
    products_per_s = 1 / best_s(partial(torch.mm, numbers, numbers))
    exponentials_per_s = numbers.numel() / best_s(partial(torch.exp, numbers))
    assert 1 / 30 < record["matmul"]["fp32"]["burst"] / (2 * 512**3 * products_per_s) < 30
    assert 1 / 30 < record["exp_per_s"] / exponentials_per_s < 30


def best_s(call: Callable[[], object]) -> float:
    """The seconds of the fastest of 20 calls."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.parametrize(
    ("command", "headline"),
    [
        ("scaling", "suite custom · 2 cases · cpu:threads=1 · about "),
        ("verify", "verify custom · 2 cases, 4 results · cpu:threads=1"),
    ],
)
def test_what_is_measured_is_said_first(
    command: str, headline: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured here."""
    stopped = Ending(interrupted=True)
    monkeypatch.setattr(sweep, "run", lambda *_, **__: FinishedSweep(run=run(), ending=stopped))
    monkeypatch.setattr(verify_only, "run", lambda *_, **__: Verification(results=[], impossible=(), ending=stopped))
    inputs = ["--inputs", "normal,uniform"] if command == "verify" else []
    words = [command, "--seq", "64,96", "--mask", "none", "-b", "naive", "--device", "cpu:threads=1", *inputs]
    cli.invoke(words)
    machine, second, *_ = capsys.readouterr().err.splitlines()
    assert machine.startswith("attnbench ")
    assert second.startswith(headline)
    cli.invoke(["-q", *words])
    assert headline not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["scaling", "claims"])
def test_a_failed_case_is_named_and_is_exit_code_5(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured here."""
    right = [result([1e-3, 1.1e-3], problem=Problem(seq_q=n, seq_kv=n)) for n in (128, 256, 512, 1024)]
    wrong = result(backend="sdpa:flash", problem=Problem(seq_q=128, seq_kv=128))
    measured = FinishedSweep(run=run(*right, wrong), ending=Ending())
    monkeypatch.setattr(sweep, "run", lambda *_, **__: measured)
    monkeypatch.setattr(verify_only, "run", lambda *_, **__: Verification(results=[], impossible=(), ending=Ending()))
    monkeypatch.setattr("attnbench.cli.running.find_max_seq", lambda *_: [])
    assert cli.invoke([command, "--device", "cpu:threads=1"]) == 5
    printed = capsys.readouterr().err
    assert "1 of 5 cases failed" in printed
    assert "next: attnbench show --failed" in printed
    monkeypatch.setattr(sweep, "run", lambda *_, **__: FinishedSweep(run=run(wrong), ending=Ending()))
    assert cli.invoke([command, "--device", "cpu:threads=1"]) == 5  # where nothing is right, too
    skipped = msgspec.structs.replace(wrong, status=Status.SKIPPED)
    monkeypatch.setattr(sweep, "run", lambda *_, **__: FinishedSweep(run=run(skipped), ending=Ending()))
    assert cli.invoke([command, "--device", "cpu:threads=1"]) == 6


def test_claims_that_lack_cases_are_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right = result([1e-3, 1.1e-3], problem=Problem(seq_q=128, seq_kv=128))
    skipped = [
        result(problem=Problem(seq_q=256, seq_kv=256), status=Status.SKIPPED, restart=restart) for restart in (0, 1)
    ]
    monkeypatch.setattr("attnbench.cli.output.load", lambda _: run(right, *skipped))
    assert cli.invoke(["claims", "--run", "last"]) == 0
    assert "1 of 2 cases not measured" in capsys.readouterr().err


def test_what_claims_measures_beside_its_suite_is_kept_where_the_suite_has_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = run(result(problem=Problem(seq_q=256, seq_kv=256), status=Status.SKIPPED))
    figures = {"error": {"int8": 0.008}, "bytes": {"fp32": 4096, "int8": 1152}}
    probed = result([1e-3], problem=Problem(seq_q=8), facts={"probes": {"quantisation": figures}})
    monkeypatch.setattr(sweep, "run", lambda *_, **__: FinishedSweep(run=skipped, ending=Ending()))
    verified = Verification(results=[probed], impossible=(), ending=Ending())
    monkeypatch.setattr(verify_only, "run", lambda *_, **__: verified)
    monkeypatch.setattr("attnbench.cli.running.find_max_seq", lambda *_: [])
    assert cli.invoke(["claims", "--device", "cpu:threads=1"]) == 0
    assert "C10" in capsys.readouterr().out
