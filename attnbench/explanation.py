"""Why a backend can or cannot run a case: asked of its limits first, then of a short-lived worker."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from attnbench import api, host, protocol, sweep
from attnbench.arm import Arm, parse_device
from attnbench.case import Case, problem_label
from attnbench.errors import UsageError
from attnbench.pool import BuriedError, Worker
from attnbench.result import Procedure, Result
from attnbench.sweep import Request

FACTS = ("resolved", "dense_mask", "kv_heads_repeated", "block_sparsity", "path", "tiling")


def of_request(request: Request) -> Iterator[str]:
    """One block of lines a problem, one line a backend."""
    ready = sweep.ready(request)
    lines: dict[str, list[str]] = {}
    for refusal in ready.plan.refusals:
        said = f"  {refusal.arm.name}: {refusal.status.value}: {refusal.reason}"
        lines.setdefault(problem_label(refusal.case.problem, refusal.case.mode), []).append(said)
    for group in ready.plan.groups:
        for arm in group.arms:
            procedure = ready.terms.procedures[parse_device(arm.device).kind]
            said = f"  {arm.name}: {tried(arm, group.case(arm), procedure)}"
            lines.setdefault(problem_label(group.problem, group.mode), []).append(said)
    for label, said_of_all in lines.items():
        yield label
        yield from said_of_all


def of_stored(text: str, run: str) -> Iterator[str]:
    """What a stored run knows of a case: status, reason, and the facts of what ran."""
    stored = api.load(run)
    found = [result for result in stored.results if text in (result.case.id, result.case.id[: len(text)])]
    found = found or [result for result in stored.results if text in result.case.label]
    if not found:
        near = sorted({result.case.label for result in stored.results})[:3]
        raise UsageError(f"no case {text!r} in {stored.path}; for example: {'; '.join(near)}")
    cases = {result.case.id for result in found}
    if len(cases) > 1:
        raise UsageError(f"{text!r} names {len(cases)} cases of {stored.path}; say more of the label, or an id")
    for result in found:
        yield f"{result.case.label} ({result.case.id}), launch {result.launch}: {result.status.value} {result.reason}"
        yield from _facts(result)


def tried(arm: Arm, case: Case, procedure: Procedure) -> str:
    """Prepare the case in a worker of its own, and say what came of it."""
    worker = Worker(arm, host.cores_for(parse_device(arm.device)), 0)
    try:
        opened = worker.open(procedure.timeout_s)
        if opened.unavailable:
            return f"unavailable: {opened.unavailable}"
        reply = worker.ask(protocol.Prepare(case=case, procedure=procedure), procedure.timeout_s)
    except BuriedError as buried:
        return f"{buried.status.value}: {buried.reason}"
    finally:
        worker.bury()
    shown = ", ".join(f"{name} {reply.facts[name]}" for name in FACTS if name in reply.facts)
    return "runs" + (f": {shown}" if shown else "")


def _facts(result: Result) -> Iterator[str]:
    for name, value in result.facts.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        yield from (f"  {name}: {line}" for line in text.splitlines())
