"""Results made by hand: every shape of cell that a table can show, with times that are easy to check by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnbench.attention.choices import Mode
from attnbench.attention.problem import Problem
from attnbench.records.arm import Arm
from attnbench.records.case import Case
from attnbench.records.result import Procedure, Result, Sample, Status, TimedBlock, sample
from attnbench.records.run_directory import Manifest, Run

ROUNDS = 8


def timed(time_s: float, spread: tuple[float, ...] = (0.0,), rounds: int = ROUNDS, position: int = 0) -> Sample:
    """One reading a round; round r is `spread[r]` above or below `time_s`, as a share of it."""
    values = [time_s * (1 + spread[r % len(spread)]) for r in range(rounds)]
    blocks = tuple(TimedBlock(round=r, position=position, readings=1, calls=4) for r in range(rounds))
    return sample("s", values, blocks)


def measured(problem: Problem, backend: str, time_s: float, **other: Any) -> Result:
    """A case that went well."""
    device, restart, copy = other.pop("device", "cpu"), other.pop("restart", 0), other.pop("copy", 1)
    facts = {"reference": f"naive@{device}", "errors": {"out": {"max_abs": 2e-7, "mean_abs": 3e-8, "rel": 1e-7}}}
    facts |= other.pop("facts", {})
    samples = {
        "time": timed(time_s, other.pop("spread", (0.004, -0.004, 0.002, -0.002))),
        "import": sample("s", [1.9]),
        "first_call": sample("s", [time_s * 12]),
        "peak_memory": sample("B", [other.pop("peak", 4 * problem.seq_q * problem.seq_kv * problem.heads)]),
    }
    samples |= other.pop("samples", {})
    case = Case(problem=problem, backend=backend, mode=other.pop("mode", Mode.FWD))
    return Result(
        case=case,
        case_id=case.id,
        arm=Arm(backend=backend, device=device, copy=copy),
        status=Status.OK,
        restart=restart,
        group=other.pop("group", f"g-{problem.mask}-{problem.seq_q}-{device}"),
        procedure=Procedure(),
        samples=samples,
        facts=facts,
        **other,
    )


def refused(problem: Problem, backend: str, status: Status, reason: str, device: str = "cpu", **other: Any) -> Result:
    """A case that has no time."""
    case = Case(problem=problem, backend=backend, mode=other.pop("mode", Mode.FWD))
    return Result(
        case=case, case_id=case.id, arm=Arm(backend=backend, device=device), status=status, reason=reason, **other
    )


def results() -> list[Result]:
    """Two masks, three lengths, five backends: fastest, tied, noisy, late pass, skipped, unsupported, wrong, absent."""
    cases = []
    noisy = (0.0, 0.5, 0.45, 0.5, 0.4, 0.6, 0.5, 0.55)
    for mask in ("none", "causal"):
        for seq in (512, 1024, 4096):
            problem = Problem(seq_q=seq, mask=mask)
            unit_s = 1e-3 * (seq / 512) ** 2
            cases.append(measured(problem, "naive", 6 * unit_s))
            close = 1.005 if seq == 512 else 2.0
            cases.append(
                measured(problem, "sdpa:math", close * unit_s, spread=noisy if seq == 1024 else (0.004, -0.004))
            )
            cases.append(measured(problem, "sdpa:flash", unit_s, peak=seq * 64 * 8 * 4))
            if seq == 4096:
                cases.append(refused(problem, "flex", Status.SKIPPED, "needs 16.1 GiB, limit 9.6 GiB"))
            elif mask == "causal":
                cases.append(refused(problem, "flex", Status.INCORRECT, "out: error 0.3 over the bound 1e-5"))
            else:
                late = {"reference_time": timed(6.6 * unit_s), "compile": sample("s", [4.2])}
                cases.append(measured(problem, "flex", 1.5 * unit_s, group=f"late-{seq}", samples=late))
            cases.append(refused(problem, "xformers", Status.UNAVAILABLE, "not installed: xformers"))
    return cases


def run() -> Run:
    """These results as a stored run, on a machine that is not there."""
    cases = results()
    manifest = Manifest(
        schema_version=1,
        attnbench="0.1.0",
        created_at="2026-01-02T03:04:05Z",
        suite="made",
        command="attnbench run --seq 512,1024,4096 --mask none,causal",
        machine={"cpu": "Abacus | 2 cores", "memory_bytes": 8 * 1024**3},
        planned=len(cases) + 1,
        impossible=(("heads=12 kv_heads=8", "heads=12 is not a multiple of kv_heads=8"),),
        tags={"note": "=1+1 <b> \U0001f600"},
    )
    return Run(path=Path("results/made"), manifest=manifest, results=cases)
