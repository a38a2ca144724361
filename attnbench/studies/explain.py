"""Why a backend can or cannot run a case: by its declared limits first, then in a worker."""

from collections import defaultdict
from collections.abc import Callable, Iterator

import msgspec

from attnbench import units
from attnbench.engine import plan, sweep
from attnbench.engine.group import Group
from attnbench.engine.sweep import Request, Sweep
from attnbench.engine.worker_process import WorkerFailedError, Workers
from attnbench.errors import UsageError
from attnbench.records import run_directory
from attnbench.records.arm import Arm
from attnbench.records.case import problem_label
from attnbench.records.facts import within_ranges
from attnbench.records.result import Procedure, Status
from attnbench.worker import protocol

MEMORY = ("outputs", "saved", "workspace", "predicted", "requested", "reserved", "outside", "first_kept", "first_call")
FACTS = ("resolved", "dense_mask", "kv_heads_repeated", "block_sparsity", "path", "tiling", "changed_state")
DEFAULT_AXES = {"seq": "512", "mask": "causal"}  # where no length is given
# How numbers are shown, by the end of the name of a fact; the first counts.
UNITS: dict[str, Callable[[float], str]] = {
    "flop_per_s": lambda value: units.rate(value, "FLOP/s"),
    "bytes_per_s": lambda value: units.rate(value, "B/s"),
    **dict.fromkeys(("_s", "seconds"), units.seconds),
    **dict.fromkeys(("_bytes", *(f"memory_{part}" for part in MEMORY)), units.size),
    "_flops": lambda value: units.rate(value, "FLOP"),
    "_hz": lambda value: units.rate(value, "Hz"),
    "_share": units.percent,
    "block_sparsity": lambda value: f"{units.figure(value)} %",
}


def prepare(request: Request) -> tuple[Sweep, tuple[str, ...]]:
    """The plan of a request, and the backends that are tried; empty for all.

    Without a length the problem is DEFAULT_AXES. Without a backend every one is planned, and those are tried that run
    by default and the backend `sdpa`: a worker takes seconds to start, and some compile.
    """
    if not sweep.LENGTHS & set(request.axes):
        request = msgspec.structs.replace(request, axes=DEFAULT_AXES | request.axes)
    if request.backend:
        return sweep.prepare(request), ()
    ready = sweep.prepare(msgspec.structs.replace(request, backend="all"))
    kinds = {device.kind for device in ready.devices}
    names = {name for cell, _ in ready.cells for kind in kinds for name in plan.auto(kind, cell.problem, cell.mode)}
    return ready, ("sdpa", *sorted(names))


def of_request(request: Request) -> Iterator[str]:
    """One block of lines per problem, one line per backend, each as soon as it is known."""
    ready, tried = prepare(request)
    groups = defaultdict(list)
    refusals = defaultdict(list)
    for group in ready.plan.groups:
        groups[group.problem, group.mode].append(group)
    for refusal in ready.plan.refusals:
        refusals[refusal.case.problem, refusal.case.mode].append(refusal)
    workers = Workers(0, ready.settings.timeout_s, None, defaultdict(float), lambda _: None)
    try:
        for problem, mode in dict.fromkeys((cell.problem, cell.mode) for cell, _ in ready.cells):
            yield problem_label(problem, mode)
            for refusal in refusals[problem, mode]:
                yield f"  {refusal.arm.name}: {refusal.status.value}: {refusal.reason}"
            for group in sorted(groups[problem, mode], key=lambda group: group.late):
                yield from _outcomes(group, workers, ready.settings.procedures, tried)
    finally:
        workers.terminate_all()


def _outcomes(
    group: Group, workers: Workers, procedures: dict[str, Procedure], tried: tuple[str, ...]
) -> Iterator[str]:
    arms = [arm for arm in group.arms if not tried or arm.backend in tried]
    workers.open(arms)
    for arm in group.arms:
        if arm in arms:
            yield f"  {arm.name}: {_attempt(group, arm, workers, procedures[arm.parsed_device.kind])}"
        else:
            yield f"  {arm.name}: supported; not tried without -b {arm.backend}"


def _attempt(group: Group, arm: Arm, workers: Workers, procedure: Procedure) -> str:
    """Prepare the case in the worker of its arm; return the outcome as text."""
    try:
        if failure := workers.failures.get(arm.id):
            raise failure
        request = protocol.PrepareCase(case=group.case(arm), procedure=procedure)
        reply = workers[arm].ask(request, procedure.timeout_s)
    except WorkerFailedError as failure:
        if failure.status is not Status.UNSUPPORTED:
            workers.terminate(arm)  # its next problem gets a new one
        return f"{failure.status.value}: {failure.reason}"
    facts, dropped = within_ranges(reply.facts)
    known = {name: facts[name] for name in FACTS if name in facts}
    texts = (f"{name} {_shown(name, value)}" for name, value in known.items())
    shown = ", ".join([*texts, *dropped.values()])
    return "runs" + (f": {shown}" if shown else "")


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
        reason = f": {result.reason}" if result.reason else ""
        yield f"{result.case.label} ({result.case.id}), restart {result.restart}: {result.status.value}{reason}"
        for name, value in result.facts.items():
            yield from _lines(name, value)


def _shown(name: str, value: object) -> str:
    """A fact as text: what is in base units with its unit, other numbers with three digits."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            plain = units.figure(value) if isinstance(value, float) else str(value)
            return next((show(value) for ending, show in UNITS.items() if name.endswith(ending)), plain)
        case dict():
            return ", ".join(f"{key} {_shown(key, each)}" for key, each in value.items())
        case list() | tuple():
            return "; ".join(_shown(name, each) for each in value)
    return str(value)


def _lines(name: str, value: object) -> Iterator[str]:
    """A fact by its name; of a table of tables, such as `errors`, a line for each."""
    if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
        for key, each in value.items():
            yield from _lines(f"{name} of {key}", each)
    else:
        first, *rest = _shown(name, value).splitlines() or [""]
        yield f"  {name}: {first}"
        yield from (f"    {line}" for line in rest)
