"""A plan as text: the headline of a run, and what `--dry-run` prints."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping

import msgspec

import attnbench
from attnbench import host, plan
from attnbench.case import Case
from attnbench.plan import Forecast
from attnbench.sweep import Sweep
from attnbench.units import seconds, size


def headline(sweep: Sweep) -> None:
    """Two lines on stderr: the machine and how busy it is; the suite, its cases, and how long they may take."""
    versions = host.packages()
    load = host.load()
    machine = [
        f"attnbench {attnbench.__version__}",
        f"torch {versions.get('torch', 'not installed')}",
        f"{host.cpu_model() or 'unknown CPU'}, {host.physical_cores()} cores",
        *([f"load {load:.1f}{', busy' if host.busy() else ''}"] if load is not None else []),
    ]
    print(" · ".join(machine), file=sys.stderr)
    devices = ", ".join(device.text for device in sweep.devices)
    print(f"suite {sweep.name} · {sweep.plan.cases} cases · {devices} · {_time(sweep)}", file=sys.stderr)


def _time(sweep: Sweep) -> str:
    needed = sweep.plan.seconds * sweep.terms.launches
    if sweep.terms.budget_s is not None and needed > sweep.terms.budget_s:
        return f"more than the budget of {seconds(sweep.terms.budget_s)}"
    return f"at least {seconds(needed)}"


def show(sweep: Sweep, format_: str, origins: Mapping[str, str]) -> None:
    """Every case with its predicted time and memory, every refusal with its reason, then the sums."""
    as_json = format_ == "jsonl"
    write = sys.stdout.write
    forecast, spent = Forecast(), 0.0
    for group in sweep.plan.groups:
        spent += group.seconds * sweep.terms.launches
        late = sweep.terms.budget_s is not None and spent > sweep.terms.budget_s
        for arm in group.arms:
            case = group.case(arm)
            call_s, peak = forecast.call_s(arm, case), plan.peak_bytes(case)
            if as_json:
                write(_json(case, arm.id, "planned", "", call_s, peak))
            else:
                beyond = "  beyond the budget" if late else ""
                write(f"{case.label}@{arm.device}  ~{seconds(call_s)}  {size(peak)}{beyond}\n")
    for refusal in sweep.plan.refusals:
        if as_json:
            write(_json(refusal.case, refusal.arm.id, refusal.status.value, refusal.reason, None, None))
        else:
            write(f"{refusal.case.label}@{refusal.arm.device}  {refusal.status.value}: {refusal.reason}\n")
    for text, reason in sweep.plan.impossible:
        record = {"type": "impossible", "cell": text, "reason": reason}
        write(_line(record) if as_json else f"{text}  skipped: {reason}\n")
    _sums(sweep, as_json)
    for name, origin in origins.items():
        print(f"{name}: {origin}", file=sys.stderr)


def _sums(sweep: Sweep, as_json: bool) -> None:
    counts = Counter(refusal.status.value for refusal in sweep.plan.refusals)
    planned = sum(len(group.arms) for group in sweep.plan.groups)
    counts["skipped"] += len(sweep.plan.impossible)
    needed = sweep.plan.seconds * sweep.terms.launches
    if as_json:
        summary = {"type": "summary", "cases": sweep.plan.cases, "planned": planned, "refused": dict(counts)}
        sys.stdout.write(_line({**summary, "least_s": needed, "budget_s": sweep.terms.budget_s}))
        return
    refused = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none"
    budget = "no budget" if sweep.terms.budget_s is None else f"budget {seconds(sweep.terms.budget_s)}"
    limit = size(sweep.terms.memory_bytes)
    print(f"{planned} of {sweep.plan.cases} cases to measure, refused: {refused}")
    print(
        f"predicted: at least {seconds(needed)} ({budget}); memory limit of a group: {limit}; times are rough guesses"
    )


def _json(case: Case, arm: str, status: str, reason: str, call_s: float | None, peak: int | None) -> str:
    record = {"type": "case", "case_id": case.id, "label": case.label, "arm": arm, "backend": case.backend}
    predicted = {"predicted_time_s": call_s, "predicted_peak_bytes": peak}
    return _line({**record, "mode": case.mode.value, "status": status, "reason": reason, **predicted})


def _line(record: Mapping[str, object]) -> str:
    return msgspec.json.encode(record).decode() + "\n"
