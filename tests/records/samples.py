"""Manifests, results and run directories made by hand; quick to import, for processes that tests start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records import run_directory
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Result, Status, TimedBlock, sample
from attnbench.records.run_directory import Manifest
from attnbench.records.run_writer import RunWriter

NOW = datetime(2026, 11, 21, 0, 15, tzinfo=UTC)


def manifest(**fields: Any) -> Manifest:
    usual = {
        "schema_version": run_directory.VERSION,
        "attnbench": "0.1.0",
        "created_at": NOW.isoformat(),
        "suite": "quick",
    }
    return Manifest(**(usual | {"fingerprint": "abc"} | fields))


def result(seq: int, backend: str = "naive", status: Status = Status.OK, **fields: Any) -> Result:
    case = Case(problem=Problem(seq_q=seq, mask="causal"), backend=backend, mode=Mode.FWD)
    arm = Arm(backend=backend, device="cpu:threads=1")
    samples = (
        {"time": sample("s", [1e-3, 1.1e-3], (TimedBlock(round=0, position=1, readings=2),))} if status == "ok" else {}
    )
    return Result(case=case, case_id=case.id, arm=arm, status=status, samples=samples, **fields)


def stored(directory: Path, *results: Result, **fields: Any) -> Path:
    with RunWriter(directory, manifest(**fields)) as writer:
        writer.append(results)
    return directory


def lengths(directory: Path) -> list[int]:
    return [result.case.problem.seq_q for result in run_directory.read(directory).results]
