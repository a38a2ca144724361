"""What a run that was stopped lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from attnbench.records import results_file, run_directory
from attnbench.records.result import Procedure, Status
from tests.records.samples import manifest, result, stored


@pytest.mark.parametrize("large", [False, True])
def test_a_run_that_was_stopped_lacks_cases_and_restarts(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_file, "MAX_IN_MEMORY", 0 if large else 2**20)
    twice = Procedure(restarts=2)
    results = [
        *(result(8, restart=number, procedure=twice) for number in range(2)), result(16, procedure=twice),
        result(32, "flex", Status.UNSUPPORTED, procedure=twice),
    ]  # fmt: skip
    fields: dict[str, Any] = {"procedures": {"cpu": twice}, "impossible": (("a cell", "why"),)}
    run = run_directory.read(stored(tmp_path / "run", *results, planned=9, **fields))
    assert run.unmeasured == 5 + 1  # 9 less one impossible and three stored; one lacks a restart
    assert run.left == "5 of 9 cases were not measured"  # a case that lacks a restart was
    assert msgspec.structs.replace(run, partial=True).unmeasured == 0
    assert not msgspec.structs.replace(run, partial=True).left
    gate = msgspec.structs.replace(run.manifest, gate={"base": "x"})
    assert msgspec.structs.replace(run, manifest=gate).unmeasured == 0
    complete = [*results, result(16, restart=1, procedure=twice)]
    assert run_directory.read(stored(tmp_path / "whole", *complete, planned=4, **fields)).unmeasured == 0


def test_a_replay_is_continued_by_its_first_command_and_other_runs_by_their_name() -> None:
    first = "attnbench replay 'a trace' --model config.json"
    tags = {run_directory.REPLAY_TAG: "which"}
    path = Path("results/run")
    parts = (f"{first}\n{first} --out results/run", f"{first} --out results/run")
    for command in (first, *parts):
        assert run_directory.continuing(manifest(tags=tags, command=command), path) == f"{first} --out results/run"
    named = manifest(tags=tags, command=f"{first} -o elsewhere")
    assert run_directory.continuing(named, path) == f"{first} -o elsewhere"
    assert run_directory.continuing(manifest(), path) == "attnbench run --resume results/run"
    assert run_directory.continuing(manifest(), path, "last") == "attnbench run --resume last"
    for of_parts in ({}, tags):
        assert run_directory.continuing(manifest(tags=of_parts, command=f"{first} && {first} -o b"), path) == ""
