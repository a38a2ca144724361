"""Samples and Results made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnbench.attention.problem import Problem
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.ceilings import Ceilings
from attnbench.records.result import Result, Sample, Status, TimedBlock, sample
from attnbench.records.run_directory import Manifest, Run


def timed(values: Sequence[float], rounds: Sequence[int] | None = None) -> Sample:
    """One reading a block, one block a round."""
    numbers = rounds or range(len(values))
    return sample("s", list(values), tuple(TimedBlock(round=n, position=0, readings=1) for n in numbers))


def result(
    values: Sequence[float] = (), backend: str = "naive", restart: int = 0, group: str = "g", **fields: Any
) -> Result:
    """A Result of that backend on a small problem; ok if it has times."""
    case = Case(problem=fields.pop("problem", Problem(seq_q=64)), backend=backend)
    samples = {"time": timed(values)} if values else {}
    status = Status.OK if values else Status.ERROR
    return Result(
        case=case,
        case_id=case.id,
        arm=Arm(backend=backend, device="cpu:threads=1"),
        restart=restart,
        group=group,
        **{"status": status, "reason": "" if values else "x", "samples": samples, **fields},
    )


def ceilings(**fields: Any) -> Ceilings:
    """Ceilings of the device of `result`, with nothing measured but the given fields."""
    plain = {"version": 1, "device": "cpu:threads=1", "name": "CPU", "measured_at": "", "seconds": 1.0, "torch": "2"}
    return Ceilings(**{**plain, **fields})


def run(*results: Result, **fields: Any) -> Run:
    """A stored run of these results; fields are those of its manifest."""
    plain = {"schema_version": 1, "attnbench": "0", "created_at": "", "suite": "made", "fingerprint": "f"}
    return Run(path=Path("run"), manifest=Manifest(**{**plain, **fields}), results=list(results))
