"""Why a backend can or cannot run a case: by its declared limits first, then in a short-lived worker."""

from collections.abc import Iterator

import msgspec

from attnbench.engine import sweep
from attnbench.engine.sweep import Request
from attnbench.engine.worker_process import Worker, WorkerFailedError
from attnbench.errors import UsageError
from attnbench.machine import resources
from attnbench.records import run_directory
from attnbench.records.arm import Arm
from attnbench.records.case import Case, problem_label
from attnbench.records.facts import within_ranges
from attnbench.records.result import Procedure
from attnbench.worker import protocol

FACTS = ("resolved", "dense_mask", "kv_heads_repeated", "block_sparsity", "path", "tiling", "changed_state")


def of_request(request: Request) -> Iterator[str]:
    """One block of lines per problem, one line per backend."""
    ready = sweep.prepare(request)
    lines: dict[str, list[str]] = {}
    for refusal in ready.plan.refusals:
        line = f"  {refusal.arm.name}: {refusal.status.value}: {refusal.reason}"
        lines.setdefault(problem_label(refusal.case.problem, refusal.case.mode), []).append(line)
    for group in ready.plan.groups:
        for arm in group.arms:
            procedure = ready.settings.procedures[arm.parsed_device.kind]
            line = f"  {arm.name}: {attempt(arm, group.case(arm), procedure)}"
            lines.setdefault(problem_label(group.problem, group.mode), []).append(line)
    for label, backends in lines.items():
        yield label
        yield from backends


def of_stored(text: str, run: str) -> Iterator[str]:
    """The stored status, reason and facts of a case."""
    stored = run_directory.read(run_directory.resolve(run, run_directory.results_root()))
    results = [result for result in stored.results if text in (result.case.id, result.case.id[: len(text)])]
    results = results or [result for result in stored.results if text in result.case.label]
    if not results:
        near = sorted({result.case.label for result in stored.results})[:3]
        raise UsageError(f"no case {text!r} in {stored.path}; for example: {'; '.join(near)}")
    if len(cases := {result.case.id for result in results}) > 1:
        raise UsageError(f"{text!r} names {len(cases)} cases of {stored.path}; give more of the label, or an id")
    for result in results:
        yield f"{result.case.label} ({result.case.id}), restart {result.restart}: {result.status.value} {result.reason}"
        for name, value in result.facts.items():
            plain = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            yield from (f"  {name}: {line}" for line in plain.splitlines())


def attempt(arm: Arm, case: Case, procedure: Procedure) -> str:
    """Prepare the case in a separate worker; return the outcome as text."""
    worker = Worker(arm, resources.cores_for(arm.parsed_device), 0)
    try:
        worker.open(procedure.timeout_s)
        reply = worker.ask(protocol.PrepareCase(case=case, procedure=procedure), procedure.timeout_s)
    except WorkerFailedError as failure:
        return f"{failure.status.value}: {failure.reason}"
    finally:
        worker.terminate()
    facts, dropped = within_ranges(reply.facts)
    shown = ", ".join([*(f"{name} {facts[name]}" for name in FACTS if name in facts), *dropped.values()])
    return "runs" + (f": {shown}" if shown else "")
