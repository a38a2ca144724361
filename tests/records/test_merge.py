"""Runs merged into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench import cli
from attnbench.attention.problem import Problem
from attnbench.errors import StoreError
from attnbench.records import merge, run_directory, run_writer
from attnbench.records.arm import Arm
from attnbench.records.result import Result
from attnbench.records.run_directory import Manifest, Run
from tests.samples import result


def run(tmp_path: Path, name: str, *results: Result, **fields: Any) -> Run:
    """A run on disk."""
    plain = {
        "schema_version": 1,
        "attnbench": "0",
        "created_at": "",
        "suite": "s",
        "fingerprint": "abc",
        "planned": len(results),
    }
    manifest = Manifest(
        **{**plain, **fields, "arms": tuple({result.arm.id: result.arm for result in results}.values())}
    )
    with run_writer.RunWriter(tmp_path / name, manifest) as writer:
        writer.append(results)
    return run_directory.read(tmp_path / name)


def at(seq: int, seconds: float = 1e-3, device: str = "cpu:threads=1") -> Result:
    measured = result([seconds] * 3, problem=Problem(seq_q=seq))
    return msgspec.structs.replace(measured, arm=Arm(backend="naive", device=device))


def test_shards_become_one_run(tmp_path: Path) -> None:
    first, second = run(tmp_path, "a", at(16), at(32)), run(tmp_path, "b", at(64), tags={"k": "v"})
    assert merge.merge([first, second], tmp_path / "both") == []
    whole = run_directory.read(tmp_path / "both")
    assert [r.case.problem.seq_q for r in whole.results] == [16, 32, 64]
    assert (whole.manifest.planned, whole.manifest.suite, whole.manifest.tags) == (3, "s", {"k": "v"})


def test_a_result_in_two_runs_is_reported_and_the_first_is_stored(tmp_path: Path) -> None:
    first, second = run(tmp_path, "a", at(16, 1e-3)), run(tmp_path, "b", at(16, 2e-3))
    (conflict,) = merge.merge([first, second], tmp_path / "both")
    assert "in a and b; the first stays" in conflict
    (stored,) = run_directory.read(tmp_path / "both").results
    assert stored.samples["time"].values[0] == 1e-3


def test_results_of_another_machine_are_marked(tmp_path: Path) -> None:
    first = run(tmp_path, "a", at(16))
    second = run(tmp_path, "b", at(16, device="cuda:0"), fingerprint="xyz")
    merge.merge([first, second], tmp_path / "both")
    marks = {r.arm.device: r.facts.get("fingerprint") for r in run_directory.read(tmp_path / "both").results}
    assert marks == {"cpu:threads=1": None, "cuda:0": "xyz"}


def test_a_run_is_never_merged_over_another(tmp_path: Path) -> None:
    first, second = run(tmp_path, "a", at(16)), run(tmp_path, "b", at(32))
    with pytest.raises(StoreError, match="holds a run already"):
        merge.merge([first, second], tmp_path / "a")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "a", at(16))
    run(tmp_path, "b", at(16))
    assert cli.invoke(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "c")]) == 0
    assert "conflict: b1 h8 q16" in capsys.readouterr().err
    assert cli.invoke(["merge", str(tmp_path / "a"), "-o", str(tmp_path / "d")]) == 2
